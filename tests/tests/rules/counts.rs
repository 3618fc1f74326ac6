//! System calls by thread, as the host's kernel counts them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syscalls::Sysno;
use tests::{Created, process};

/// Calls by thread.
pub type Calls = BTreeMap<i32, BTreeSet<Sysno>>;

/// Counts system calls while this is there.
pub struct Counter(PathBuf);

impl Counter {
    const TRIGGER: &str = "events/raw_syscalls/sys_enter/trigger";
    const COUNTS: &str = "hist:keys=common_pid,id:size=65536";

    /// Counts those of these threads and of those that they start from now on; of all if none is named.
    pub fn new(name: &str, of: &[i32]) -> Self {
        let counter = Self(Path::new("/sys/kernel/tracing/instances").join(name));
        fs::create_dir(&counter.0).unwrap();
        let write = |file: &str, text: &str| fs::write(counter.0.join(file), text).unwrap();
        if !of.is_empty() {
            write("options/event-fork", "1");
            write("set_event_pid", &of.iter().map(i32::to_string).collect::<Vec<_>>().join(" "));
        }
        write(Self::TRIGGER, Self::COUNTS);
        counter
    }

    /// What was counted so far.
    pub fn calls(&self) -> Calls {
        let text = fs::read_to_string(self.0.join("events/raw_syscalls/sys_enter/hist")).unwrap();
        assert!(text.contains("Dropped: 0"), "not all calls were counted");
        let mut calls = Calls::new();
        for line in text.lines().filter(|line| line.starts_with("{ common_pid:")) {
            let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<usize>().ok());
            let (pid, id) = (numbers.next().unwrap(), numbers.next().unwrap());
            calls.entry(pid as i32).or_default().extend(Sysno::new(id));
        }
        calls
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join(Self::TRIGGER), format!("!{}", Self::COUNTS));
        let _ = fs::remove_dir(&self.0);
    }
}

/// What each kind of threads was seen to call.
#[derive(Default)]
pub struct Seen(pub BTreeMap<String, BTreeSet<Sysno>>);

impl Seen {
    /// Adds calls of a thread of this kind.
    pub fn add(&mut self, kind: &str, calls: Option<&BTreeSet<Sysno>>) {
        self.0.entry(kind.to_owned()).or_default().extend(calls.into_iter().flatten());
    }

    /// Adds calls of these threads.
    pub fn add_each(&mut self, calls: &Calls, threads: &Threads) {
        threads.iter().for_each(|(id, kind)| self.add(kind, calls.get(id)));
    }

    /// Adds calls of the main thread and of those that it started, but for these threads of the VM.
    pub fn add_main(&mut self, calls: &Calls, threads: &Threads) {
        calls.iter().filter(|(id, _)| !threads.contains_key(id)).for_each(|(_, calls)| self.add("main", Some(calls)));
    }
}

/// Threads that serve a guest and processes beside its monitor, with their kinds.
pub type Threads = BTreeMap<i32, &'static str>;

/// Those of the one container that is up.
pub fn threads(up: &Created) -> Threads {
    let tasks = fs::read_dir(format!("/proc/{}/task", up.pid)).unwrap().flatten();
    let name = |path: PathBuf| fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
    let inside = tasks.map(|task| (task.file_name().to_str().unwrap().parse().unwrap(), name(task.path())));
    let all = inside.chain(process::descendants());
    all.map(|(id, name)| (id, kind(&name))).filter(|(_, kind)| *kind != "main").collect()
}

/// The kind of a thread, by its name.
fn kind(name: &str) -> &'static str {
    match name {
        name if name.starts_with("node-maker") => "nodes",
        name if name.starts_with("network-helper") => "network-helper",
        "virtio-vsock" => "vsock",
        "virtio-fs" => "fs",
        "virtio-net" => "net",
        "virtio-block" => "block",
        "virtio-rng" | "virtio-balloon" => "device",
        name if name.starts_with("vcpu") => "vcpu",
        _ => "main",
    }
}
