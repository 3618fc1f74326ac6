//! What a test leaves on the host: a list of names before, a list after, and the difference must be nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::{command, place, process};

/// How long what is ending may take to be gone.
const GRACE: Duration = Duration::from_secs(10);

/// Folders in which a runtime may forget files.
const FOLDERS: [&str; 8] =
    ["/run", "/run/runvm", "/run/runc", "/run/crun", "/run/netns", "/tmp", "/dev/shm", "/dev/mqueue"];

/// A folder that podman's storage binds onto itself, or not any more, as its commands come and go.
const PODMANS_OWN: &str = "/podman/store/overlay";

/// The host's network namespace, which dockerd mounts when the first container wants it.
const DOCKERS_OWN: &str = "/docker/exec/netns/default";

/// Everything on the host that a runtime could leave behind, each with the word for what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<(&'static str, String)>);

impl Leftovers {
    /// What there is now.
    pub fn now() -> Self {
        process::reap();
        let mut found = BTreeSet::new();
        let mut add = |kind, names: Vec<String>| found.extend(names.into_iter().map(|name| (kind, name)));
        add("process", process::descendants().iter().map(|(pid, what)| format!("{pid} {what}")).collect());
        add("mount", mounts());
        add("cgroup", cgroups());
        add("link", names(Path::new("/sys/class/net")));
        add("qdisc", lines(Command::new("tc").args(["qdisc", "show"])));
        for folder in FOLDERS {
            add("file", names(Path::new(folder)).iter().map(|name| format!("{folder}/{name}")).collect());
        }
        Self(found).ours()
    }

    /// On a machine that has other users, only what bears our name can be held against the runtime.
    fn ours(mut self) -> Self {
        if !place::host_is_ours() {
            self.0.retain(|(kind, name)| *kind == "process" || name.contains("runvm"));
        }
        self
    }

    /// A process that was started meanwhile, and is to stay.
    pub fn allow_process(&mut self, pid: i32) {
        self.0.insert(("process", format!("{pid} {}", process::describe(pid))));
    }

    /// Insists that the host is as it was; waits for what is still ending.
    #[track_caller]
    pub fn check(&self) {
        let deadline = Instant::now() + GRACE;
        loop {
            let difference = self.difference(&Self::now());
            if difference.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind or lost:\n  {}", difference.join("\n  "));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn difference(&self, now: &Self) -> Vec<String> {
        let new = now.0.difference(&self.0).map(|(kind, name)| format!("left {kind}: {name}"));
        let lost = self.0.difference(&now.0).filter(|(kind, _)| *kind != "process");
        new.filter(|text| !self.knows(text)).chain(lost.map(|(kind, name)| format!("lost {kind}: {name}"))).collect()
    }

    /// Removes what a failed test left, so that it does not fail the next ones as well.
    pub fn sweep(&self) {
        process::reap();
        for (pid, what) in process::descendants() {
            if !self.knows(&format!("left process: {pid} {what}")) {
                process::signal(pid, Signal::KILL);
                process::wait_end(pid, GRACE);
            }
        }
        process::reap();
        let now = Self::now();
        let new: Vec<_> = now.0.difference(&self.0).collect();
        // What is inside comes before what it is in.
        for (kind, name) in new.into_iter().rev() {
            match *kind {
                "mount" => drop(rustix::mount::unmount(mount_point(name), UnmountFlags::DETACH)),
                "cgroup" => drop(std::fs::remove_dir(name)),
                "link" => drop(command::run(Command::new("ip").args(["link", "del", name]))),
                "file" if name != "/run/runvm-test" => remove(Path::new(name)),
                _ => {}
            }
        }
    }

    /// Whether a process was there before. It is known by its pid: state and name may change while it lives.
    fn knows(&self, difference: &str) -> bool {
        self.0.iter().any(|(kind, name)| *kind == "process" && same_pid(name, difference))
    }
}

fn same_pid(before: &str, difference: &str) -> bool {
    let pid = |text: &str| text.split(' ').next().and_then(|word| word.parse::<i32>().ok());
    difference.strip_prefix("left process: ").is_some_and(|now| pid(now) == pid(before))
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Mount points with the source and type of each.
fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let describe = |line: &str| {
        let mut words = line.split(' ');
        let (source, point, kind) = (words.next()?, words.next()?, words.next()?);
        (!point.ends_with(PODMANS_OWN) && !point.ends_with(DOCKERS_OWN)).then(|| format!("{point} ({kind}, {source})"))
    };
    text.lines().filter_map(describe).collect()
}

fn mount_point(description: &str) -> &str {
    description.split(" (").next().unwrap_or_default()
}

/// Every cgroup of every hierarchy, by path.
fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path().to_string_lossy().into_owned());
                open.push(entry.path());
            }
        }
    }
    found
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn lines(command: &mut Command) -> Vec<String> {
    command::run(command).success().stdout.lines().map(str::to_owned).collect()
}
