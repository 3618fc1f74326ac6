//! A driver small enough for a test: one ring of requests in guest memory, one request at a time, and one of messages.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::fuse::*;
use super::super::{Cache, Common, Fs, Policy, Share};
use crate::virtio::driver::{Silent, queue};
use crate::virtio::queue::Ring;
use crate::virtio::{AtExit, Context, Device, Error, Event};

const SIZE: u16 = 512;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
const READABLE: u64 = 0x1_0000;
const WRITABLE: u64 = 0x30_0000;
/// The ring of messages without a reply, and the messages.
const MESSAGE_RING: [u64; 3] = [0x50_0000, 0x50_1000, 0x50_2000];
const MESSAGES: u64 = 0x51_0000;
const MEMORY: usize = 0x60_0000;
const EVENTS: [u64; 3] = [0x8000, 0x9000, 0xa000];
const EVENT: u64 = 0x5e_0000;
/// Descriptors of a request's buffers are this long, as pages are.
const PIECE: usize = 4096;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver with its device.
pub struct Guest {
    pub device: Fs,
    pub uid: u32,
    pub pid: u32,
    pub gid: u32,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    available: u16,
    messages: u16,
}

/// An `O_PATH` descriptor.
pub fn path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Most times that a device may come back to a request.
const LONGEST: usize = 64;

/// What a test's guest keeps unless the test says otherwise.
pub const CACHE: Cache = Cache { valid: Duration::from_secs(1), exclusive: false, host_locks: false };

/// Waits until what was changed before is no longer a change of just now.
pub fn age() {
    std::thread::sleep(Duration::from_millis(30));
}

/// The ring of buffers for events.
fn events() -> virtio_queue::Queue {
    queue(16, EVENTS)
}

/// A share of a directory.
pub fn share(name: &str, directory: &Path, read_only: bool) -> Share {
    let (name, root, policy) = (name.to_owned(), path(directory), Policy::unrestricted());
    Share { name, root, read_only, cache: CACHE, policy, common: Common::Nothing }
}

impl Guest {
    /// A guest of this device, `INIT` done with all flags.
    pub fn of(device: Fs) -> Self {
        let mut guest = Self::unborn(device);
        guest.init(u64::MAX);
        guest
    }

    /// A guest that has said nothing yet.
    pub fn unborn(mut device: Fs) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let (interrupt, requests) = (Silent::interrupt(), queue(SIZE, [DESCRIPTORS, AVAILABLE, USED]));
        assert!(requests.is_valid(&memory));
        let messages = Ring::new(queue(64, MESSAGE_RING), interrupt.clone());
        let mut rings = vec![messages, Ring::new(requests, interrupt.clone()), Ring::new(events(), interrupt)];
        let mut context = Context { memory: &memory, rings: &mut rings, watcher: &mut Silent };
        device.enter_thread().unwrap();
        device.activate(0, &mut context).unwrap();
        Self { device, uid: 0, gid: 0, pid: 0, memory, rings, available: 0, messages: 0 }
    }

    /// A guest with one writable share `s` of an empty directory, and its nodeid.
    pub fn with_share() -> (Self, tempfile::TempDir, u64) {
        let directory = tempfile::tempdir().unwrap();
        let mut guest = Self::of(Fs::new("test", vec![share("s", directory.path(), false)]).unwrap());
        let root = guest.lookup(1, "s").unwrap().nodeid;
        (guest, directory, root)
    }

    pub fn init(&mut self, flags: u64) -> InitOut {
        let first = InitIn { major: 7, minor: 41, max_readahead: 1 << 17, flags: flags as u32 };
        let second = InitIn2 { flags2: (flags >> 32) as u32, ..InitIn2::default() };
        self.call(opcode::INIT, 0, &first, second.as_bytes()).unwrap()
    }

    /// Puts bytes into the ring as one chain; gives back what the device wrote.
    pub fn raw(&mut self, request: &[u8], room: usize) -> Result<Vec<u8>, Error> {
        self.offer(request, room);
        self.event(Event::Queue(1))?;
        let used = self.finish(LONGEST)?;
        assert_eq!(used, self.available, "the request was not given back");
        let place = USED + 4 + u64::from((used.wrapping_sub(1)) % SIZE) * 8;
        let length: u32 = self.memory.read_obj(GuestAddress(place + 4)).unwrap();
        let mut reply = vec![0; length as usize];
        self.memory.read_slice(&mut reply, GuestAddress(WRITABLE)).unwrap();
        Ok(reply)
    }

    /// Has the device go on, as long as there is something that it comes back to, so often at most; returns how many requests
    /// were given back so far.
    pub fn finish(&mut self, times: usize) -> Result<u16, Error> {
        for _ in 0..times {
            if self.used() == self.available {
                break;
            }
            self.event(Event::Fd(0, libc::EPOLLIN as u32))?;
        }
        Ok(self.used())
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Makes the last chain available once more.
    pub fn offer_again(&mut self) {
        let place = AVAILABLE + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write_obj(0u16, GuestAddress(place)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.write_obj(self.available, GuestAddress(AVAILABLE + 2)).unwrap();
    }

    /// Puts bytes into the ring as one chain.
    pub fn offer(&mut self, request: &[u8], room: usize) {
        self.memory.write_slice(request, GuestAddress(READABLE)).unwrap();
        let mut index = 0u64;
        let pieces = |base: u64, length: usize, flags: u16| {
            let starts = (0..length).step_by(PIECE);
            starts.map(move |at| (base + at as u64, (length - at).min(PIECE) as u32, flags))
        };
        // The headers have descriptors of their own, as Linux lays requests out.
        let header = request.len().min(40);
        let head = pieces(READABLE, header, 0).chain(pieces(READABLE + header as u64, request.len() - header, 0));
        let answer = room.min(16);
        let tail = pieces(WRITABLE, answer, WRITE).chain(pieces(WRITABLE + answer as u64, room - answer, WRITE));
        let all: Vec<_> = head.chain(tail).collect();
        for (at, &(address, length, flags)) in all.iter().enumerate() {
            let next = if at + 1 < all.len() { NEXT } else { 0 };
            let base = DESCRIPTORS + index * 16;
            self.memory.write_obj(address, GuestAddress(base)).unwrap();
            self.memory.write_obj(length, GuestAddress(base + 8)).unwrap();
            self.memory.write_obj(flags | next, GuestAddress(base + 12)).unwrap();
            index += 1;
            self.memory.write_obj(index as u16, GuestAddress(base + 14)).unwrap();
        }
        assert!(index <= u64::from(SIZE), "the test's request has too many descriptors");
        self.offer_again();
    }

    /// Offers the only buffer for events, for the so many-th time; what the device has written there by now, if anything.
    pub fn offer_for_events(&mut self, length: u32, times: u16) -> Result<Option<Vec<u8>>, Error> {
        let [descriptors, available, used] = EVENTS;
        self.memory.write_obj(EVENT, GuestAddress(descriptors)).unwrap();
        self.memory.write_obj(length, GuestAddress(descriptors + 8)).unwrap();
        self.memory.write_obj(WRITE, GuestAddress(descriptors + 12)).unwrap();
        self.memory.write_obj(times, GuestAddress(available + 2)).unwrap();
        self.event(Event::Queue(2))?;
        let done: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        if done < times {
            return Ok(None);
        }
        let place = used + 4 + u64::from((times - 1) % 16) * 8;
        let length: u32 = self.memory.read_obj(GuestAddress(place + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(EVENT)).unwrap();
        Ok(Some(bytes))
    }

    /// Adds a message that has no reply, and does not notify the device of it.
    pub fn add_message(&mut self, message: &[u8]) {
        let [descriptors, available, _] = MESSAGE_RING;
        let slot = u64::from(self.messages % 64);
        let address = MESSAGES + slot * 256;
        self.memory.write_slice(message, GuestAddress(address)).unwrap();
        self.memory.write_obj(address, GuestAddress(descriptors + slot * 16)).unwrap();
        self.memory.write_obj(message.len() as u64, GuestAddress(descriptors + slot * 16 + 8)).unwrap();
        self.memory.write_obj(slot as u16, GuestAddress(available + 4 + slot * 2)).unwrap();
        self.messages = self.messages.wrapping_add(1);
        self.memory.write_obj(self.messages, GuestAddress(available + 2)).unwrap();
    }

    /// How many messages the device has given back.
    pub fn messages_served(&self) -> u16 {
        self.memory.read_obj(GuestAddress(MESSAGE_RING[2] + 2)).unwrap()
    }

    /// Has the device handle an event.
    pub fn event(&mut self, event: Event) -> Result<(), Error> {
        let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut Silent };
        self.device.handle(event, &mut context)
    }

    /// Has the device serve the queue of requests as a vCPU does that notifies it.
    pub fn exit(&mut self) -> Result<AtExit, Error> {
        self.device.serve_at_exit(1, &self.memory, &mut self.rings)
    }

    /// A request that a vCPU is to serve: its errno, or `None` where it is left to the device's thread, which serves it then.
    pub fn at_exit(&mut self, code: u32, nodeid: u64, body: &[u8], room: usize) -> Option<i32> {
        self.offer(&self.message(code, nodeid, body), 16 + room);
        let left = self.exit().unwrap() == AtExit::Left;
        assert_eq!(left, self.used() != self.available);
        if left {
            self.event(Event::Queue(1)).unwrap();
            assert_eq!(self.finish(LONGEST).unwrap(), self.available);
        }
        let header: OutHeader = OutHeader::read_from_bytes(&self.written(16)).unwrap();
        (!left).then_some(-header.error)
    }

    fn written(&self, bytes: usize) -> Vec<u8> {
        let mut reply = vec![0; bytes];
        self.memory.read_slice(&mut reply, GuestAddress(WRITABLE)).unwrap();
        reply
    }

    /// The bytes of a request.
    pub fn message(&self, code: u32, nodeid: u64, body: &[u8]) -> Vec<u8> {
        let len = (40 + body.len()) as u32;
        let header = InHeader {
            len,
            opcode: code,
            unique: 77,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            ..Default::default()
        };
        [header.as_bytes(), body].concat()
    }

    /// One request with room for `room` bytes after the reply's header: its body, or an errno.
    pub fn request(&mut self, code: u32, nodeid: u64, body: &[u8], room: usize) -> Result<Vec<u8>, i32> {
        let reply = self.raw(&self.message(code, nodeid, body), 16 + room).unwrap();
        if reply.is_empty() {
            return Ok(reply);
        }
        let (header, body) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!((header.len as usize, header.unique), (reply.len(), 77));
        if header.error == 0 { Ok(body.to_vec()) } else { Err(-header.error) }
    }

    /// A request of a structure and what follows it, whose reply is a structure.
    pub fn call<A: IntoBytes + Immutable, R: FromBytes>(
        &mut self,
        code: u32,
        nodeid: u64,
        args: &A,
        rest: &[u8],
    ) -> Result<R, i32> {
        let body = [args.as_bytes(), rest].concat();
        let reply = self.request(code, nodeid, &body, size_of::<R>())?;
        Ok(R::read_from_prefix(&reply).expect("a reply too short").0)
    }

    /// A request whose reply is empty.
    pub fn tell<A: IntoBytes + Immutable>(&mut self, code: u32, nodeid: u64, args: &A, rest: &[u8]) -> Result<(), i32> {
        let body = [args.as_bytes(), rest].concat();
        let reply = self.request(code, nodeid, &body, 0)?;
        assert!(reply.is_empty());
        Ok(())
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.call(opcode::LOOKUP, parent, &(), &z(name))
    }

    pub fn forget(&mut self, nodeid: u64, nlookup: u64) {
        self.tell(opcode::FORGET, nodeid, &ForgetIn { nlookup }, &[]).unwrap();
    }

    pub fn getattr(&mut self, nodeid: u64) -> Result<Attr, i32> {
        let out: AttrOut = self.call(opcode::GETATTR, nodeid, &GetattrIn::default(), &[])?;
        Ok(out.attr)
    }

    pub fn setattr(&mut self, nodeid: u64, args: SetattrIn) -> Result<Attr, i32> {
        let out: AttrOut = self.call(opcode::SETATTR, nodeid, &args, &[])?;
        Ok(out.attr)
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(EntryOut, OpenOut), i32> {
        let args = CreateIn { flags: (flags | libc::O_CREAT) as u32, mode, ..CreateIn::default() };
        self.create_with(opcode::CREATE, parent, name, args)
    }

    pub fn create_with(
        &mut self,
        code: u32,
        parent: u64,
        name: &str,
        args: CreateIn,
    ) -> Result<(EntryOut, OpenOut), i32> {
        let body = [args.as_bytes(), &z(name)].concat();
        let reply = self.request(code, parent, &body, size_of::<EntryOut>() + size_of::<OpenOut>())?;
        let (entry, rest) = EntryOut::read_from_prefix(&reply).unwrap();
        Ok((entry, OpenOut::read_from_prefix(rest).unwrap().0))
    }

    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<EntryOut, i32> {
        self.call(opcode::MKDIR, parent, &MkdirIn { mode, umask: 0 }, &z(name))
    }

    pub fn open(&mut self, nodeid: u64, flags: i32) -> Result<OpenOut, i32> {
        self.call(opcode::OPEN, nodeid, &OpenIn { flags: flags as u32, open_flags: 0 }, &[])
    }

    pub fn opendir(&mut self, nodeid: u64) -> Result<OpenOut, i32> {
        self.call(opcode::OPENDIR, nodeid, &OpenIn::default(), &[])
    }

    pub fn release(&mut self, fh: u64) -> Result<(), i32> {
        self.tell(opcode::RELEASE, 0, &ReleaseIn { fh, ..ReleaseIn::default() }, &[])
    }

    pub fn read(&mut self, fh: u64, offset: u64, size: usize) -> Result<Vec<u8>, i32> {
        let args = ReadIn { fh, offset, size: size as u32, ..ReadIn::default() };
        self.request(opcode::READ, 0, args.as_bytes(), size)
    }

    pub fn write(&mut self, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_with(WriteIn { fh, offset, ..WriteIn::default() }, data)
    }

    pub fn write_with(&mut self, args: WriteIn, data: &[u8]) -> Result<u32, i32> {
        let args = WriteIn { size: data.len() as u32, ..args };
        let out: WriteOut = self.call(opcode::WRITE, 0, &args, data)?;
        Ok(out.size)
    }

    pub fn readlink(&mut self, nodeid: u64) -> Result<Vec<u8>, i32> {
        self.request(opcode::READLINK, nodeid, &[], 4096)
    }

    pub fn setxattr(&mut self, nodeid: u64, name: &str, value: &[u8], setxattr_flags: u32) -> Result<(), i32> {
        let args = SetxattrIn { size: value.len() as u32, setxattr_flags, ..SetxattrIn::default() };
        self.tell(opcode::SETXATTR, nodeid, &args, &[&z(name), value].concat())
    }

    pub fn getxattr(&mut self, nodeid: u64, name: &str, size: u32) -> Result<Vec<u8>, i32> {
        let args = GetxattrIn { size, padding: 0 };
        self.request(opcode::GETXATTR, nodeid, &[args.as_bytes(), &z(name)].concat(), size.max(8) as usize)
    }

    pub fn listxattr(&mut self, nodeid: u64, size: u32) -> Result<Vec<u8>, i32> {
        let args = GetxattrIn { size, padding: 0 };
        self.request(opcode::LISTXATTR, nodeid, args.as_bytes(), size.max(8) as usize)
    }
}

/// A string with its NUL.
pub fn z(string: &str) -> Vec<u8> {
    CString::new(string).unwrap().into_bytes_with_nul()
}

/// Two strings with their NULs.
pub fn zz(one: &str, two: &str) -> Vec<u8> {
    [z(one), z(two)].concat()
}

/// A path below a temporary directory.
pub fn at(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}
