//! Makes the host's kernel kill for lack of memory, where the guest's kernel has.
//!
//! Engines learn of an OOM kill (`docker inspect`: `OOMKilled`) from the container's cgroup on the host: by
//! `memory.events` of version 2, by an event of `memory.oom_control` in version 1. The guest's kernel kills in a cgroup of
//! its own, which shows in neither. So the monitor gives the host's kernel something to kill: for a moment the limit is
//! what is in use, and a process made for this allocates more, as the first one to be killed.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::directory::{self, read, write};
use crate::log;

/// Bytes that the allocating process can take before it is killed, and that are free while nobody has taken them.
const MARGIN: u64 = 4 << 20;

/// How long the host's kernel may take to kill.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

const PAGE: usize = 4096;

/// The container's memory cgroup on the host.
pub struct HostOomTrigger {
    cgroup: OwnedFd,
    /// The host's /proc, where a process says how soon it is to be killed; the monitor's own view has none.
    proc: OwnedFd,
    legacy: bool,
}

/// Has the host notice that the guest's kernel killed a process; only logs that where the host limits no memory.
pub async fn report(trigger: Option<&HostOomTrigger>) {
    log::warning("the guest's kernel killed a process of the container for lack of memory");
    let Some(trigger) = trigger else { return };
    if let Err(error) = trigger.pull().await {
        log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
    }
}

/// Files that were written, and are put back when this is dropped.
struct Changed<'a>(Vec<Change<'a>>);

struct Change<'a> {
    directory: &'a OwnedFd,
    file: &'static str,
    before: String,
    /// Content after that, as the kernel gives it back.
    now: String,
}

/// File in /proc: how soon a process is killed for lack of memory, from -1000 (never) to 1000.
const SCORE: &str = "self/oom_score_adj";

impl HostOomTrigger {
    /// Takes the one of these cgroups that limits memory; none where the host limits none.
    pub fn find(cgroups: &[PathBuf]) -> anyhow::Result<Option<Self>> {
        let has = |file: &'static str| move |path: &&PathBuf| path.join(file).exists();
        let legacy = cgroups.iter().find(has("memory.limit_in_bytes"));
        let Some(path) = legacy.or_else(|| cgroups.iter().find(has("memory.max"))) else { return Ok(None) };
        let cgroup = directory::open(path).with_context(|| format!("open cgroup {}", path.display()))?;
        let proc = directory::open("/proc").context("open /proc")?;
        Ok(Some(Self { cgroup, proc, legacy: legacy.is_some() }))
    }

    /// Has a process killed for lack of memory. Nothing else may want memory in this cgroup meanwhile.
    async fn pull(&self) -> anyhow::Result<()> {
        let mut changed = Changed(Vec::new());
        // The guest's memory belongs to this process: by size, it would be the first.
        changed.set(&self.proc, SCORE, "-1000")?;
        self.lower(&mut changed)?;
        let used = number(&self.cgroup, if self.legacy { "memory.usage_in_bytes" } else { "memory.current" })?;
        let size = usize::try_from(used.saturating_add(4 * MARGIN)).context("the memory in use")?;
        let killed = wait_for_kill(spawn_allocator(self.proc.as_raw_fd(), size)?).await;
        drop(changed);
        if !killed? {
            bail!("the host's kernel killed no process for lack of memory");
        }
        Ok(())
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
        if read(&self.cgroup, "memory.oom.group").is_ok_and(|group| group == "1") {
            // Or all would be killed together.
            changed.set(&self.cgroup, "memory.oom.group", "0")?;
        }
        for &(limit, usage, margin) in limits {
            let limited = read(&self.cgroup, limit).map(|text| text.parse().unwrap_or(u64::MAX));
            match (limited, number(&self.cgroup, usage)) {
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
    fn set(&mut self, directory: &'a OwnedFd, file: &'static str, value: &str) -> anyhow::Result<()> {
        let before = read(directory, file).with_context(|| format!("read {file}"))?;
        write(directory, file, value).with_context(|| format!("write {value} to {file}"))?;
        let now = read(directory, file).with_context(|| format!("read {file}"))?;
        self.0.push(Change { directory, file, before, now });
        Ok(())
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        for Change { directory, file, before, now } in self.0.drain(..).rev() {
            // Somebody else has changed it meanwhile, and means it.
            if read(directory, file).is_ok_and(|found| found != now) {
                continue;
            }
            if let Err(error) = write(directory, file, &before) {
                log::warning(&format!("write {before} to {file} again: {error}"));
            }
        }
    }
}

fn number(directory: &OwnedFd, file: &str) -> io::Result<u64> {
    read(directory, file)?.parse().map_err(|_| ErrorKind::InvalidData.into())
}

/// Starts a process that allocates so many bytes, and is the first one to be killed for it.
fn spawn_allocator(proc: RawFd, size: usize) -> io::Result<Pid> {
    // SAFETY: the child, of a process with many threads, only makes the system calls of `allocate`, and ends there.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => allocate(proc, size),
        pid => Pid::from_raw(pid).ok_or(ErrorKind::InvalidData.into()),
    }
}

/// Nothing in here allocates or locks: the memory is a copy of one that other threads were working on.
fn allocate(proc: RawFd, size: usize) -> ! {
    const WORST: &[u8] = b"1000";
    // SAFETY: the strings are constants that end with 0, the buffer has the length given; the mapping is written to
    // only where it was made.
    unsafe {
        let score = libc::openat(proc, c"self/oom_score_adj".as_ptr(), libc::O_WRONLY);
        if libc::write(score, WORST.as_ptr().cast(), WORST.len()) == WORST.len() as isize {
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

/// Waits for a process's end; true if it was killed.
async fn wait_for_kill(pid: Pid) -> anyhow::Result<bool> {
    let ended = async {
        loop {
            match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => return Ok(status),
                Ok(None) | Err(rustix::io::Errno::INTR) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    };
    if let Ok(status) = tokio::time::timeout(PATIENCE, ended).await {
        return Ok(status.context("wait for the process to be killed")?.terminating_signal() == Some(libc::SIGKILL));
    }
    rustix::process::kill_process(pid, Signal::KILL)?;
    let _: Option<(Pid, WaitStatus)> = rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
    Ok(false)
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
        let read = |file: &str| read(&trigger.cgroup, file).unwrap();
        assert_eq!((read("memory.max").get(..7), changed.0.len()), (Some("5194304"), 1));
        drop(changed);
        assert_eq!((read("memory.max").get(..3), read("memory.swap.max")), (Some("max"), "0".to_owned()));
    }

    #[test]
    fn a_host_without_limits_has_nothing_to_trigger() {
        assert!(trigger(&[]).1.is_none());
    }

    #[test]
    fn an_allocating_process_that_nobody_kills_ends() {
        let proc = directory::open("/proc").unwrap();
        let pid = spawn_allocator(proc.as_raw_fd(), 8 << 20).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(!runtime.block_on(wait_for_kill(pid)).unwrap());
    }
}
