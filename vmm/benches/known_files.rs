//! Memory and time that known files cost the file-system device, for docs/performance.md:
//!
//! ```text
//! DIRECTORIES=100 cargo bench -p vmm
//! ```
//!
//! A guest looks up 1,000 files in each directory, once with a descriptor for each ("hot", as far as `RLIMIT_NOFILE`
//! allows) and once with almost none ("cold"); then the device is saved and restored. Each run is a process of its own, so
//! that none starts with another one's memory.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::virtio::driver::{Silent, queue};
use vmm::virtio::fs::{Cache, Common, Fs, Policy, Share};
use vmm::virtio::queue::Ring;
use vmm::virtio::{Context, Device, Event};

const FILES: usize = 1000;
/// `RLIMIT_NOFILE` under which the device keeps a thousand descriptors of files.
const FEW_DESCRIPTORS: u64 = 1550;

/// Opcodes of FUSE.
const LOOKUP: u32 = 1;
const INIT: u32 = 26;

/// Addresses in guest memory.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
const READABLE: u64 = 0x1_0000;
const WRITABLE: u64 = 0x2_0000;
const SIZE: u16 = 512;

/// A driver with its device, one request at a time.
struct Guest {
    device: Fs,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    requests: u16,
}

impl Guest {
    fn new(device: Fs) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let (interrupt, queue) = (Silent::interrupt(), queue(SIZE, [DESCRIPTORS, AVAILABLE, USED]));
        let rings = vec![Ring::new(Queue::new(64).unwrap(), interrupt.clone()), Ring::new(queue, interrupt)];
        let mut guest = Self { device, memory, rings, requests: 0 };
        guest.with_device(|device, context| {
            device.enter_thread().unwrap();
            device.activate(0, context).unwrap();
        });
        // Version 7.41, no flags.
        guest.request(INIT, 0, &[7u32, 41, 0, 0].map(u32::to_le_bytes).concat(), 64);
        guest
    }

    fn with_device(&mut self, act: impl FnOnce(&mut Fs, &mut Context)) {
        let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut Silent };
        act(&mut self.device, &mut context);
    }

    /// Sends a request and returns the reply's body.
    fn request(&mut self, opcode: u32, nodeid: u64, body: &[u8], room: usize) -> Vec<u8> {
        let mut request = [40 + body.len() as u32, opcode].map(u32::to_le_bytes).concat();
        request.extend([1u64, nodeid].map(u64::to_le_bytes).concat());
        request.extend([0; 16]);
        request.extend(body);
        self.memory.write_slice(&request, GuestAddress(READABLE)).unwrap();
        let chain = [(READABLE, request.len(), 1u16, 1u16), (WRITABLE, 16 + room, 2, 0)];
        for (at, (address, length, flags, next)) in (DESCRIPTORS..).step_by(16).zip(chain) {
            self.memory.write_obj(address, GuestAddress(at)).unwrap();
            self.memory.write_obj(length as u32, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj([flags, next], GuestAddress(at + 12)).unwrap();
        }
        self.memory.write_obj(0u16, GuestAddress(AVAILABLE + 4 + u64::from(self.requests % SIZE) * 2)).unwrap();
        self.requests = self.requests.wrapping_add(1);
        self.memory.write_obj(self.requests, GuestAddress(AVAILABLE + 2)).unwrap();
        self.with_device(|device, context| device.handle(Event::Queue(1), context).unwrap());
        let error: i32 = self.memory.read_obj(GuestAddress(WRITABLE + 4)).unwrap();
        assert_eq!(error, 0, "opcode {opcode} about {nodeid}");
        let mut reply = vec![0; room];
        self.memory.read_slice(&mut reply, GuestAddress(WRITABLE + 16)).unwrap();
        reply
    }

    /// Looks a name up; returns its nodeid.
    fn lookup(&mut self, parent: u64, name: &str) -> u64 {
        let reply = self.request(LOOKUP, parent, CString::new(name).unwrap().as_bytes_with_nul(), 128);
        u64::from_le_bytes(*reply.first_chunk().unwrap())
    }
}

/// This process's anonymous memory in KiB.
fn anonymous() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn device(directory: &Path) -> Fs {
    let root: OwnedFd = rustix::fs::open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let cache = Cache { valid: Duration::from_secs(1), exclusive: false, host_locks: false };
    let policy = Policy::unrestricted();
    Fs::new(
        "test",
        vec![Share { name: "s".to_owned(), root, read_only: false, cache, policy, common: Common::Nothing }],
    )
    .unwrap()
}

/// Files with names of 15 bytes, looked up and then saved and restored.
fn measure(directory: &Path, directories: usize, limit: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }).unwrap();
    let mut guest = Guest::new(device(directory));
    let (root, before) = (guest.lookup(1, "s"), anonymous());
    for number in 0..directories {
        let parent = guest.lookup(root, &format!("{number}"));
        for file in 0..FILES {
            guest.lookup(parent, &format!("module-{file:05}.js"));
        }
    }
    let (known, grown) = (directories * (FILES + 1) + 1, anonymous().saturating_sub(before));
    println!("  {known} known: {grown} KiB more, {} bytes each", grown * 1024 / known);
    let start = Instant::now();
    let state = guest.device.save().unwrap();
    println!("  saved in {:?}: {} bytes", start.elapsed(), state.len());
    drop(guest);
    let mut restored = device(directory);
    let (start, before) = (Instant::now(), anonymous());
    restored.restore(&state).unwrap();
    println!("  restored in {:?}, {} KiB more", start.elapsed(), anonymous().saturating_sub(before));
}

fn main() {
    let directories = env::var("DIRECTORIES").ok().and_then(|number| number.parse().ok()).unwrap_or(2);
    if let (Ok(directory), Ok(limit)) = (env::var("KNOWN_FILES_IN"), env::var("KNOWN_FILES_LIMIT")) {
        return measure(Path::new(&directory), directories, limit.parse().unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    for number in 0..directories {
        fs::create_dir(directory.path().join(format!("{number}"))).unwrap();
        for file in 0..FILES {
            fs::write(directory.path().join(format!("{number}/module-{file:05}.js")), "").unwrap();
        }
    }
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    for (name, limit) in [("hot", most), ("cold", FEW_DESCRIPTORS)] {
        println!("{name} (RLIMIT_NOFILE {limit}):");
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("KNOWN_FILES_IN", directory.path()).env("KNOWN_FILES_LIMIT", limit.to_string());
        assert!(command.status().unwrap().success());
    }
}
