//! The container's cgroup: one directory below the guest's cgroup2 root, with its limits.

use crate::error::{Context, Error, Result};
use crate::event::{Fd, watch};
use crate::sys;
use protocol::KeyValue;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;

/// Number of attempts to remove a cgroup, and the pause between them.
const REMOVAL_ATTEMPTS: usize = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup, with every controller available, and applies `files` in order.
    pub fn create(root: &Path, path: &str, files: &[KeyValue]) -> Result<Self> {
        let mut directory = root.to_owned();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => {
                    enable_controllers(&directory);
                    directory.push(name);
                    make_directory(&directory)?;
                }
                Component::RootDir | Component::CurDir => {}
                _ => return Err(Error::invalid(format!("cgroup path {path:?} leads out of its root"))),
            }
        }
        if directory == root {
            return Err(Error::invalid("cgroup path is empty"));
        }
        let this = Self { directory };
        this.apply(files)?;
        Ok(this)
    }

    /// Lets processes of the cgroup use the devices that a program allows; empty: all.
    pub fn filter_devices(&self, program: &[u8]) -> Result<()> {
        match program.is_empty() {
            true => Ok(()),
            false => {
                let program = device_filter::load(program).context(|| "load device filter program")?;
                device_filter::attach(self.open()?, &program).context(|| "attach device filter program to cgroup")
            }
        }
    }

    /// Writes interface files in order, up to the first that the kernel refuses.
    pub fn apply(&self, files: &[KeyValue]) -> Result<()> {
        files.iter().try_for_each(|file| self.write(&file.key, &file.value))
    }

    /// Writes an interface file.
    fn write(&self, name: &str, value: &str) -> Result<()> {
        sys::write_file(self.file(name)?, value).context(|| format!("write {value:?} to cgroup file {name}"))
    }

    /// Reads interface files; those that are not there are left out.
    pub fn read(&self, names: &[String]) -> Result<Vec<KeyValue>> {
        let mut files = Vec::new();
        for name in names {
            let text = std::fs::read_to_string(self.file(name)?);
            files.extend(text.ok().map(|value| KeyValue { key: name.clone(), value, ..Default::default() }));
        }
        Ok(files)
    }

    /// Path of an interface file.
    fn file(&self, name: &str) -> Result<PathBuf> {
        match name.is_empty() || name.contains('/') {
            true => Err(Error::invalid(format!("cgroup file {name:?} is not a name"))),
            false => Ok(self.directory.join(name)),
        }
    }

    /// Opens the cgroup's directory, for `CLONE_INTO_CGROUP`.
    pub fn open(&self) -> Result<OwnedFd> {
        open_directory(&self.directory).context(|| format!("open cgroup {}", self.directory.display()))
    }

    /// Opens the directory of the cgroup that a process of the container is in: the container's own or one below it.
    pub fn open_where(&self, root: &Path, pid: i32) -> Result<OwnedFd> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let directory = root.join(path);
        let below = directory != self.directory && directory.starts_with(&self.directory);
        // It may have gone meanwhile.
        below.then(|| open_directory(&directory).ok()).flatten().map_or_else(|| self.open(), Ok)
    }

    /// Number of processes that the kernel killed here because memory ran out.
    pub fn oom_kills(&self) -> u64 {
        let events = std::fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        count_in(&events, "oom_kill")
    }

    /// Opens `memory.events`, to wait for changes.
    pub fn memory_events(&self) -> Result<MemoryEvents> {
        let path = self.directory.join("memory.events");
        let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let file = opened.context(|| format!("open {}", path.display()))?;
        Ok(MemoryEvents { file: watch(file, Interest::PRIORITY)? })
    }

    /// Pids of processes in the cgroup and below it.
    pub fn pids(&self) -> Vec<u32> {
        let read = |cgroup: PathBuf| std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        // Processes of pid namespaces that can't be seen from here read as 0.
        let numbers = |text: String| -> Vec<u32> {
            text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid != 0).collect()
        };
        tree(&self.directory).into_iter().map(read).flat_map(numbers).collect()
    }

    /// Sends SIGKILL to every process in the cgroup and below it. Nothing may be started there afterwards: a kernel (seen
    /// on 6.18) kills whatever `CLONE_INTO_CGROUP` starts in a cgroup that was killed once.
    pub fn kill(&self) {
        if sys::write_file(self.directory.join("cgroup.kill"), "1").is_err() {
            // A kernel older than 5.14, or a test without cgroup2.
            self.signal(libc::SIGKILL as u32);
        }
    }

    /// Removes the cgroup and those below it, which are busy for a moment after their processes were killed.
    pub async fn remove(&self) -> Result<()> {
        for _ in 0..REMOVAL_ATTEMPTS {
            match remove_tree(&self.directory) {
                Err(Errno::BUSY) => tokio::time::sleep(REMOVAL_PAUSE).await,
                Ok(()) => return Ok(()),
                Err(errno) => return Err(errno).context(|| format!("remove cgroup {}", self.directory.display())),
            }
        }
        Err(Errno::BUSY).context(|| format!("remove cgroup {}", self.directory.display()))
    }

    /// Sends a signal to every process in the cgroup and below it, except those that have ended meanwhile.
    pub fn signal(&self, signal: u32) {
        for pid in self.pids().into_iter().filter_map(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 1) {
            let _ = sys::kill(pid, signal);
        }
    }
}

/// File in which the kernel counts what it did for want of memory.
pub struct MemoryEvents {
    file: Fd,
}

impl MemoryEvents {
    /// Waits until the kernel has killed more processes than `seen`; gives their number.
    pub async fn more_kills_than(&self, seen: u64) -> Result<u64> {
        loop {
            let mut text = [0; 512];
            let length = rustix::io::pread(&self.file, &mut text, 0).context(|| "read memory.events")?;
            let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
            let kills = count_in(&text, "oom_kill");
            if kills > seen {
                return Ok(kills);
            }
            // What changes after the reading above makes it ready again.
            self.file.ready(Interest::PRIORITY).await.context(|| "wait for memory.events")?.clear_ready();
        }
    }
}

fn open_directory(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A cgroup and those below it, each after the one it is in. However deep: a container may make its own.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let (mut all, mut next) = (vec![directory.to_owned()], 0);
    while let Some(parent) = all.get(next) {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        all.extend(below);
        next += 1;
    }
    all
}

fn remove_tree(directory: &Path) -> std::result::Result<(), Errno> {
    tree(directory).iter().rev().try_for_each(|cgroup| match rustix::fs::rmdir(cgroup) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    })
}

fn make_directory(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).context(|| format!("create cgroup {}", path.display())),
    }
}

/// Hands every controller that a cgroup has to its children; one that refuses does not stop the others.
fn enable_controllers(directory: &Path) {
    let available = std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let control = directory.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control).unwrap_or_default();
    let missing: Vec<String> = available
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|on| on == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || sys::write_file(&control, &missing.join(" ")).is_ok() {
        return;
    }
    for one in missing {
        let _ = sys::write_file(&control, &one);
    }
}

fn count_in(events: &str, name: &str) -> u64 {
    events.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn oom_kills_are_counted() {
        let events = "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(count_in(events, "oom_kill"), 1);
        assert_eq!(count_in("", "oom_kill"), 0);
    }

    #[test]
    fn paths_stay_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        assert!(Cgroup::create(root.path(), "/../x", &[]).is_err());
        assert!(Cgroup::create(root.path(), "/", &[]).is_err());
        let made = Cgroup::create(root.path(), "/docker/abc", &[]).unwrap();
        assert_eq!(made.directory, root.path().join("docker/abc"));
    }

    #[test]
    fn cgroups_far_below_are_found_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let made = Cgroup::create(root.path(), "/c", &[]).unwrap();
        let deep = made.directory.join(["d"; 100].join("/"));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("cgroup.procs"), "0\n7\n8\n").unwrap();
        std::fs::write(made.directory.join("cgroup.procs"), "3\n").unwrap();
        assert_eq!(made.pids(), [3, 7, 8]);
        // The kernel's files are no reason for a cgroup to stay; these are.
        for directory in [&deep, &made.directory] {
            std::fs::remove_file(directory.join("cgroup.procs")).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(made.remove()).unwrap();
        assert!(!made.directory.exists() && root.path().exists());
        runtime.block_on(made.remove()).unwrap();
    }

    #[test]
    fn an_error_names_file_and_value() {
        let root = tempfile::tempdir().unwrap();
        let error = Cgroup::create(root.path(), "/c", &[file("cpu.max", "100 100")]).unwrap_err();
        assert_eq!(error.message, "write \"100 100\" to cgroup file cpu.max: no such file or directory");
        assert!(Cgroup::create(root.path(), "/c", &[file("../x", "1")]).is_err());
    }
}
