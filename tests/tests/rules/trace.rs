//! System calls by kind of thread, from the host's kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syscalls::Sysno;

/// What was seen of each kind of thread since its filter is there.
pub type Seen = BTreeMap<&'static str, BTreeSet<Sysno>>;

/// Records system calls of the calling thread's children, and of theirs, while this is there.
pub struct Trace(PathBuf);

impl Trace {
    /// Begins to record, as this instance of the kernel's.
    pub fn new(name: &str) -> Self {
        let trace = Self(Path::new("/sys/kernel/tracing/instances").join(name));
        fs::create_dir(&trace.0).unwrap();
        let write = |file: &str, text: &str| fs::write(trace.0.join(file), text).unwrap();
        fs::write("/sys/kernel/tracing/saved_cmdlines_size", "16384").unwrap();
        write("buffer_size_kb", "131072");
        write("options/event-fork", "1");
        write("set_event_pid", &rustix::thread::gettid().as_raw_nonzero().to_string());
        write("events/raw_syscalls/sys_enter/enable", "1");
        write("events/sched/sched_process_fork/enable", "1");
        trace
    }

    /// Ends the recording; what threads with filters called, where these processes are join proxies.
    pub fn seen(&self, proxies: &[i32]) -> Seen {
        // Reading would be recorded, too.
        fs::write(self.0.join("tracing_on"), "0").unwrap();
        let text = fs::read_to_string(self.0.join("trace")).unwrap();
        let is_whole = |line: &str| {
            let (recorded, written) = line.split_once(": ")?.1.split_once('/')?;
            Some(recorded == written.split_whitespace().next()?)
        };
        let header = text.lines().find(|line| line.contains("entries-in-buffer"));
        assert_eq!(header.and_then(is_whole), Some(true), "not all calls are recorded: {header:?}");
        let mut threads = Threads { proxies, ..Threads::default() };
        text.lines().filter(|line| !line.starts_with('#')).for_each(|line| {
            threads.take(line);
        });
        threads.seen
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("events/enable"), "0");
        let _ = fs::remove_dir(&self.0);
    }
}

/// Threads, as the events of a trace tell of them.
#[derive(Default)]
struct Threads<'a> {
    proxies: &'a [i32],
    /// Those with filters, their own and those that they have from who made them: each must allow what they call.
    confined: BTreeMap<i32, Vec<&'static str>>,
    seen: Seen,
}

impl Threads<'_> {
    /// Takes a line: `NAME-PID [CPU] FLAGS TIME: EVENT: FIELDS`. None if it tells nothing.
    fn take(&mut self, line: &str) -> Option<()> {
        let (head, event) =
            line.split_once(": sys_enter: NR ").or_else(|| line.split_once(": sched_process_fork: "))?;
        let (name, pid) = head.split_once(" [")?.0.trim().rsplit_once('-')?;
        let pid: i32 = pid.trim().parse().unwrap();
        if let Some((_, child)) = event.split_once(" child_pid=") {
            let inherited = self.confined.get(&pid)?.clone();
            self.confined.insert(child.trim().parse().unwrap(), inherited);
            return Some(());
        }
        let (number, arguments) = event.split_once(' ')?;
        let call = Sysno::new(number.parse().unwrap())?;
        for kind in self.confined.get(&pid).into_iter().flatten() {
            self.seen.entry(kind).or_default().insert(call);
        }
        let sets_filter = call == Sysno::seccomp && arguments.starts_with("(1,");
        if sets_filter {
            let kind = if self.proxies.contains(&pid) { "proxy" } else { kind(name) };
            self.confined.entry(pid).or_default().push(kind);
        }
        Some(())
    }
}

/// The kind of a thread, by its name.
fn kind(name: &str) -> &'static str {
    match name {
        "node-maker" => "nodes",
        "network-helper" => "network-helper",
        "virtio-vsock" => "vsock",
        "virtio-fs" => "fs",
        "virtio-net" => "net",
        "virtio-block" => "block",
        "virtio-rng" | "virtio-balloon" => "device",
        name if name.starts_with("vcpu") => "vcpu",
        "exe" => "main",
        // Has a filter of its own.
        name if name.starts_with("passt") => "passt",
        other => panic!("a thread {other} has a filter"),
    }
}
