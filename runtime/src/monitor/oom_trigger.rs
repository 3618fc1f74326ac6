//! Makes the host's kernel kill for lack of memory, where the guest's kernel has.
//!
//! Engines learn of an OOM kill (`docker inspect`: `OOMKilled`) from the container's cgroup on the host: by
//! `memory.events` of version 2, by an event of `memory.oom_control` in version 1. The guest's kernel kills in a cgroup of
//! its own, which shows in neither. So the monitor gives the host's kernel something to kill: for a moment the limit is
//! what is in use, and a process made for this allocates more, as the first one to be killed.
//!
//! How soon a process is killed stands in a file of its own in /proc, and a process inherits it. So the monitor, which sees
//! no /proc, keeps its own file open. It has the highest score while it makes that process, and a low one after that: what it
//! has mapped of files counts as well, and the limit does not. To lower the score takes a right over the host that the monitor
//! gives up; Linux lets a process return to what it was once given.

use std::fs::File;
use std::io::{self, ErrorKind, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::log;

/// Bytes that the allocating process can take before it is killed, and that are free while nobody has taken them.
const MARGIN: u64 = 4 << 20;

/// How long the host's kernel may take to kill.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

const PAGE: usize = 4096;

/// Most bytes of a file: one number.
const NUMBER: usize = 64;

/// Says how soon this process is killed for lack of memory, from -1000 (never) to 1000.
const SCORE: &str = "/proc/self/oom_score_adj";
/// Killed first.
const WORST: &[u8] = b"1000";
/// Killed when there is nobody else.
const LAST: &[u8] = b"-999";

/// Files of a cgroup of version 1 that are read and written.
const LEGACY_FILES: [&str; 4] =
    ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"];
/// Those of version 2.
const UNIFIED_FILES: [&str; 5] =
    ["memory.max", "memory.current", "memory.swap.max", "memory.swap.current", "memory.oom.group"];

/// Files of the container's memory cgroup on the host, and none of another's.
pub struct HostOomTrigger {
    cgroup: CgroupFiles,
    score: Score,
    legacy: bool,
}

/// Open files of a cgroup, by name; what the kernel does not have is left out.
struct CgroupFiles(Vec<(&'static str, File)>);

impl CgroupFiles {
    fn open(cgroup: &Path, names: &[&'static str]) -> anyhow::Result<Self> {
        let open = |&name: &&'static str| {
            let path = cgroup.join(name);
            // What is in use can only be read.
            let file = File::options().read(true).write(true).open(&path).or_else(|_| File::open(&path));
            match file {
                Ok(file) => Some(Ok((name, file))),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => Some(Err(error).with_context(|| format!("open {}", path.display()))),
            }
        };
        Ok(Self(names.iter().filter_map(open).collect::<anyhow::Result<_>>()?))
    }

    fn file(&self, name: &str) -> io::Result<&File> {
        Ok(self.0.iter().find(|(known, _)| *known == name).map(|(_, file)| file).ok_or(ErrorKind::NotFound)?)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = [0; NUMBER];
        let length = self.file(name)?.read_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(text.get(..length).unwrap_or_default()).trim().to_owned())
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        self.file(name)?.write_all_at(value.as_bytes(), 0)
    }

    fn number(&self, name: &str) -> io::Result<u64> {
        self.read(name)?.parse().map_err(|_| ErrorKind::InvalidData.into())
    }
}

/// Has the host notice that the guest's kernel killed a process; only logs that where the host limits no memory.
pub async fn report(trigger: Option<&HostOomTrigger>) {
    log::warning("the guest's kernel killed a process of the container for lack of memory");
    let Some(trigger) = trigger else { return };
    if let Err(error) = trigger.pull().await {
        log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
    }
}

/// How soon this process is killed for lack of memory.
struct Score {
    file: File,
    usual: Vec<u8>,
    /// Whether this process may lower it.
    falls: bool,
}

impl Score {
    /// Opens it, and lowers it as far as it will ever be, if this process may: from then on it may again.
    fn open() -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).open(SCORE).with_context(|| format!("open {SCORE}"))?;
        let mut usual = Vec::new();
        (&file).read_to_end(&mut usual).with_context(|| format!("read {SCORE}"))?;
        let falls = file.write_all_at(LAST, 0).is_ok();
        Ok(Self { file, usual, falls })
    }

    fn set(&self, score: &[u8]) -> anyhow::Result<()> {
        let set = self.file.write_all_at(score, 0);
        set.with_context(|| format!("write {} to {SCORE}", String::from_utf8_lossy(score).trim()))
    }

    fn be_as_usual(&self) {
        if let Err(error) = self.set(&self.usual) {
            log::warning(&format!("{error:#}"));
        }
    }
}

/// Files that were written, and are put back when this is dropped.
struct Changed<'a>(Vec<Change<'a>>);

struct Change<'a> {
    cgroup: &'a CgroupFiles,
    file: &'static str,
    before: String,
    /// Content after that, as the kernel gives it back.
    now: String,
}

impl HostOomTrigger {
    /// Takes the one of these cgroups that limits memory; none where the host limits none.
    pub fn find(cgroups: &[PathBuf]) -> anyhow::Result<Option<Self>> {
        let has = |file: &'static str| move |path: &&PathBuf| path.join(file).exists();
        let legacy = cgroups.iter().find(has("memory.limit_in_bytes"));
        let Some(path) = legacy.or_else(|| cgroups.iter().find(has("memory.max"))) else { return Ok(None) };
        let cgroup = CgroupFiles::open(path, if legacy.is_some() { &LEGACY_FILES } else { &UNIFIED_FILES })?;
        Ok(Some(Self { cgroup, score: Score::open()?, legacy: legacy.is_some() }))
    }

    /// Gives the process the score that it had before [`HostOomTrigger::find`]; to be called once it has no rights over the host.
    pub fn be_as_usual(&self) {
        self.score.be_as_usual();
    }

    /// Has a process killed for lack of memory. Nothing else may want memory in this cgroup meanwhile.
    async fn pull(&self) -> anyhow::Result<()> {
        if !self.score.falls {
            bail!("the container's process may not lower its {SCORE}, and would be killed itself");
        }
        let used = self.cgroup.number(if self.legacy { "memory.usage_in_bytes" } else { "memory.current" })?;
        let size = usize::try_from(used.saturating_add(4 * MARGIN)).context("the memory in use")?;
        let killed = self.kill(size).await;
        self.score.be_as_usual();
        if !killed? {
            bail!("the host's kernel killed no process for lack of memory");
        }
        Ok(())
    }

    async fn kill(&self, size: usize) -> anyhow::Result<bool> {
        // One that is not told to begin ends.
        let allocator = spawn_allocator(&self.score, size)?;
        let mut changed = Changed(Vec::new());
        self.lower(&mut changed)?;
        allocator.be_killed().await
    }

    fn lower<'a>(&'a self, changed: &mut Changed<'a>) -> anyhow::Result<()> {
        // The limit of memory and swap together cannot be less than that of memory.
        let limits: &[(&str, &str, u64)] = match self.legacy {
            true => &[
                ("memory.limit_in_bytes", "memory.usage_in_bytes", MARGIN),
                ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", MARGIN),
            ],
            false => &[("memory.swap.max", "memory.swap.current", 0), ("memory.max", "memory.current", MARGIN)],
        };
        if self.cgroup.read("memory.oom.group").is_ok_and(|group| group == "1") {
            // Or all would be killed together.
            changed.set(&self.cgroup, "memory.oom.group", "0")?;
        }
        for &(limit, usage, margin) in limits {
            let limited = self.cgroup.read(limit).map(|text| text.parse().unwrap_or(u64::MAX));
            match (limited, self.cgroup.number(usage)) {
                (Ok(limited), Ok(used)) if limited <= used.saturating_add(margin) => {}
                (Ok(_), Ok(used)) => changed.set(&self.cgroup, limit, &used.saturating_add(margin).to_string())?,
                // A kernel that does not account for swap.
                (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::NotFound => {}
                (Err(error), _) | (_, Err(error)) => return Err(error).with_context(|| format!("read {usage}")),
            }
        }
        Ok(())
    }
}

impl<'a> Changed<'a> {
    fn set(&mut self, cgroup: &'a CgroupFiles, file: &'static str, value: &str) -> anyhow::Result<()> {
        let read = || cgroup.read(file).with_context(|| format!("read {file}"));
        let before = read()?;
        cgroup.write(file, value).with_context(|| format!("write {value} to {file}"))?;
        self.0.push(Change { cgroup, file, before, now: read()? });
        Ok(())
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        for Change { cgroup, file, before, now } in self.0.drain(..).rev() {
            // Somebody else has changed it meanwhile, and means it.
            if cgroup.read(file).is_ok_and(|found| found != now) {
                continue;
            }
            if let Err(error) = cgroup.write(file, &before) {
                log::warning(&format!("write {before} to {file} again: {error}"));
            }
        }
    }
}

/// A process that allocates memory when it is told to, and is the first one to be killed for it.
struct Allocator {
    /// None once the process has been waited for.
    pid: Option<Pid>,
    /// Has it begin.
    begin: PipeWriter,
}

/// Makes the process. It ends without having done anything when the result is dropped.
fn spawn_allocator(score: &Score, size: usize) -> anyhow::Result<Allocator> {
    let (wait, begin) = io::pipe()?;
    // For a moment, and before any limit is lowered: the guest's memory belongs to this process.
    score.set(WORST)?;
    // SAFETY: the child, of a process with many threads, only makes the system calls of `allocate`, and ends there.
    let made = match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(begin);
            allocate(wait.as_raw_fd(), size)
        }
        pid => Ok(Allocator { pid: Pid::from_raw(pid), begin }),
    };
    score.set(if score.falls { LAST } else { &score.usual })?;
    made.context("make a process to be killed")
}

/// Waits for a byte, then takes memory. Nothing in here allocates or locks: the memory is a copy of one that other threads
/// were working on.
fn allocate(wait: RawFd, size: usize) -> ! {
    // SAFETY: the buffer has the length given; the mapping is written to only where it was made.
    unsafe {
        let mut byte = 0u8;
        if libc::read(wait, (&raw mut byte).cast(), 1) == 1 {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let memory = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if memory != libc::MAP_FAILED {
                for offset in (0..size).step_by(PAGE) {
                    memory.cast::<u8>().add(offset).write_volatile(1);
                }
            }
        }
        libc::_exit(1)
    }
}

impl Allocator {
    /// Has it begin, and waits for its end; true if it was killed.
    async fn be_killed(mut self) -> anyhow::Result<bool> {
        self.begin.write_all(b"y").context("have a process allocate memory")?;
        let ended = async {
            loop {
                match rustix::process::waitpid(self.pid, WaitOptions::NOHANG) {
                    Ok(Some((_, status))) => return Ok(status),
                    Ok(None) | Err(rustix::io::Errno::INTR) => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error),
                }
            }
        };
        if let Ok(status) = tokio::time::timeout(PATIENCE, ended).await {
            self.pid = None;
            return Ok(status.context("wait for the process to be killed")?.terminating_signal() == Some(libc::SIGKILL));
        }
        Ok(false)
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(files: &[(&str, &str)]) -> (tempfile::TempDir, Option<HostOomTrigger>) {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let found = HostOomTrigger::find(&["/nowhere".into(), dir.path().to_owned()]).unwrap();
        (dir, found)
    }

    #[test]
    fn limits_are_lowered_and_put_back() {
        let files = [
            ("memory.max", "max\n"),
            ("memory.current", "1000000\n"),
            ("memory.swap.max", "0\n"),
            ("memory.swap.current", "0\n"),
        ];
        let (_dir, found) = trigger(&files);
        let trigger = found.unwrap();
        let mut changed = Changed(Vec::new());
        trigger.lower(&mut changed).unwrap();
        let read = |file: &str| trigger.cgroup.read(file).unwrap();
        assert_eq!((read("memory.max").get(..7), changed.0.len()), (Some("5194304"), 1));
        drop(changed);
        assert_eq!((read("memory.max").get(..3), read("memory.swap.max")), (Some("max"), "0".to_owned()));
    }

    #[test]
    fn a_host_without_limits_has_nothing_to_trigger() {
        assert!(trigger(&[]).1.is_none());
    }

    #[test]
    fn an_allocating_process_ends_by_itself() {
        let read = |pid: &dyn std::fmt::Display| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let before = read(&"self");
        let score = Score::open().unwrap();
        let make = || spawn_allocator(&score, 8 << 20).unwrap();
        let pid = |allocator: &Allocator| allocator.pid.unwrap().as_raw_nonzero();
        // Nobody kills it.
        let allocator = make();
        assert_eq!(read(&pid(&allocator)).trim(), "1000");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(!runtime.block_on(allocator.be_killed()).unwrap());
        // Nobody tells it to begin.
        let allocator = make();
        let pid = pid(&allocator);
        drop(allocator);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        score.be_as_usual();
        assert_eq!(read(&"self"), before);
    }
}
