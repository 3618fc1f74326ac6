//! Processes by pid: waiting, signals, family.

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use crate::command::{PATIENCE, code};

fn id(pid: i32) -> Pid {
    Pid::from_raw(pid).unwrap_or_else(|| panic!("{pid} is no pid"))
}

/// Makes this process the parent of every orphan below it, as an engine's shim is.
pub fn become_subreaper() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap());
}

/// Waits until a process has ended; false when it has not within the limit. Leaves its status alone.
pub fn wait_end(pid: i32, limit: Duration) -> bool {
    let pidfd = match rustix::process::pidfd_open(id(pid), PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return true,
        opened => opened.unwrap(),
    };
    poll(&pidfd, PollFlags::IN, limit)
}

/// Waits for the end of an orphan that was re-parented to us, and returns its exit code.
#[track_caller]
pub fn wait_orphan(pid: i32) -> i32 {
    assert!(wait_end(pid, PATIENCE), "process {pid} has not ended after {PATIENCE:?}: {}", describe(pid));
    match rustix::process::waitpid(Some(id(pid)), WaitOptions::empty()) {
        Ok(Some((_, status))) => code(std::os::unix::process::ExitStatusExt::from_raw(status.as_raw())),
        other => panic!("process {pid} is not our child: {other:?}"),
    }
}

/// Takes the exit status of every orphan that has ended.
pub fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) {
    match rustix::process::kill_process(id(pid), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {signal:?} to {pid}: {error}"),
    }
}

/// Whether a process lives; a zombie does not.
pub fn lives(pid: i32) -> bool {
    status_field(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The parent of a process.
pub fn parent(pid: i32) -> Option<i32> {
    status_field(pid, "PPid")?.parse().ok()
}

/// A line of `/proc/PID/status`.
pub fn status_field(pid: i32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&text, name)
}

/// The value of `name:` in a text like `/proc/PID/status`.
pub fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// One of a process's namespaces, e.g. `net:[4026531840]`.
pub fn namespace(pid: impl std::fmt::Display, kind: &str) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    link.unwrap_or_else(|error| panic!("{kind} namespace of {pid}: {error}")).to_string_lossy().into_owned()
}

/// Every process below this one, with its name and command line. As a subreaper we lose none.
pub fn descendants() -> BTreeMap<i32, String> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeMap::new();
    let mut open = vec![std::process::id() as i32];
    while let Some(pid) = open.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.insert(child, describe(child));
            open.push(child);
        }
    }
    found
}

/// What a process is, for messages.
pub fn describe(pid: i32) -> String {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let state = status_field(pid, "State").unwrap_or_else(|| "gone".to_owned());
    format!("{} [{state}] {}", read("comm").trim(), read("cmdline").replace('\0', " ").trim())
}

/// Waits for an event on a descriptor; false when none came within the limit.
pub fn poll(fd: &impl std::os::fd::AsFd, flags: PollFlags, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(fd, flags)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Waits for something that announces itself by no event.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()));
}

/// The same for something that is of use when it is there.
#[track_caller]
pub fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
