//! What cases are written in: short names for calls, and checks that say where they failed.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

pub use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
pub use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// The directory that a case runs in.
pub const HERE: rustix::fd::BorrowedFd<'static> = rustix::fs::CWD;

/// Insists on an error.
#[track_caller]
pub fn fails<T>(result: Result<T, Errno>, errno: Errno) {
    match result {
        Err(error) => assert_eq!(error, errno, "failed, but with another error"),
        Ok(_) => panic!("succeeded, where {errno:?} is due"),
    }
}

/// Opens or makes a file, with mode 0644.
pub fn try_open(name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(name, flags, Mode::from_raw_mode(0o644))
}

/// The same, which must succeed.
#[track_caller]
pub fn open(name: &str, flags: OFlags) -> OwnedFd {
    try_open(name, flags).unwrap_or_else(|error| panic!("open {name} {flags:?}: {error}"))
}

/// Opens a new file for reading and writing.
#[track_caller]
pub fn create(name: &str) -> OwnedFd {
    open(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
}

/// Makes a file of this content and mode, whatever the mask.
#[track_caller]
pub fn file(name: &str, content: impl AsRef<[u8]>, mode: u32) {
    std::fs::write(name, content).unwrap_or_else(|error| panic!("write {name}: {error}"));
    chmod(name, mode);
}

/// Makes a directory of this mode, whatever the mask.
#[track_caller]
pub fn dir(name: &str, mode: u32) {
    rustix::fs::mkdir(name, Mode::from_raw_mode(0o777)).unwrap_or_else(|error| panic!("mkdir {name}: {error}"));
    chmod(name, mode);
}

/// Sets permission bits.
#[track_caller]
pub fn chmod(name: &str, mode: u32) {
    try_chmod(name, mode).unwrap_or_else(|error| panic!("chmod {name}: {error}"));
}

/// The same, which may fail.
pub fn try_chmod(name: &str, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmod(name, Mode::from_raw_mode(mode))
}

/// Sets owner and group; `None` leaves one.
pub fn chown(name: &str, user: Option<u32>, group: Option<u32>) -> Result<(), Errno> {
    rustix::fs::chown(name, user.map(Uid::from_raw), group.map(Gid::from_raw))
}

/// Attributes of a name, of a link itself.
#[track_caller]
pub fn stat(name: &str) -> Stat {
    try_stat(name).unwrap_or_else(|error| panic!("stat {name}: {error}"))
}

/// The same, which may fail.
pub fn try_stat(name: &str) -> Result<Stat, Errno> {
    rustix::fs::lstat(name)
}

/// Attributes of an open file.
#[track_caller]
pub fn fstat(fd: impl AsFd) -> Stat {
    rustix::fs::fstat(fd).expect("fstat")
}

/// Permission bits of a name.
#[track_caller]
pub fn mode(name: &str) -> u32 {
    stat(name).st_mode & 0o7777
}

/// What sort of object a name stands for.
#[track_caller]
pub fn kind(name: &str) -> FileType {
    FileType::from_raw_mode(stat(name).st_mode)
}

/// The content of a file.
#[track_caller]
pub fn content(name: &str) -> Vec<u8> {
    std::fs::read(name).unwrap_or_else(|error| panic!("read {name}: {error}"))
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(dir: &str) -> Vec<String> {
    let list = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("list {dir}: {error}"));
    let mut names: Vec<_> =
        list.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Writes all of it where the descriptor is.
#[track_caller]
pub fn write(fd: impl AsFd, bytes: &[u8]) {
    assert_eq!(rustix::io::write(fd, bytes), Ok(bytes.len()), "a write was not whole");
}

/// Writes all of it at an offset.
#[track_caller]
pub fn pwrite(fd: impl AsFd, bytes: &[u8], offset: u64) {
    assert_eq!(rustix::io::pwrite(fd, bytes, offset), Ok(bytes.len()), "a write was not whole");
}

/// Reads up to so many bytes at an offset, till the file's end.
#[track_caller]
pub fn pread(fd: impl AsFd, length: usize, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0xaa; length];
    let mut got = 0;
    while got < length {
        match rustix::io::pread(&fd, &mut bytes[got..], offset + got as u64).expect("pread") {
            0 => break,
            more => got += more,
        }
    }
    bytes.truncate(got);
    bytes
}

/// Sleeps.
pub fn nap(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}

/// Bytes without a pattern, the same for each seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Numbers without a pattern (splitmix64).
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next one below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// One byte through a pipe: processes of a case wait for each other.
pub struct Gate(std::io::PipeReader, std::io::PipeWriter);

impl Gate {
    /// A closed one.
    pub fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("make a pipe");
        Self(reader, writer)
    }

    /// Lets one process through.
    pub fn open(&self) {
        write(&self.1, b"x");
    }

    /// Waits until it is opened.
    pub fn pass(&self) {
        let mut byte = [0];
        (&self.0).read_exact(&mut byte).expect("a gate was closed for ever");
    }
}

/// A mapping of a file.
pub struct Map {
    start: *mut u8,
    length: usize,
}

impl Map {
    /// Maps the begin of a file for reading and writing, shared.
    pub fn shared(file: &File, length: usize) -> Self {
        Self::new(file, length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED).expect("mmap")
    }

    /// Maps the begin of a file.
    pub fn new(file: impl AsFd, length: usize, rights: ProtFlags, flags: MapFlags) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses a free place, so nothing else is there.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, rights, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    /// Writes bytes.
    pub fn set(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, checked above; volatile, as others see it change.
            unsafe { self.start.add(at + i).write_volatile(*byte) };
        }
    }

    /// Reads bytes.
    pub fn get(&self, at: usize, length: usize) -> Vec<u8> {
        assert!(at + length <= self.length);
        // SAFETY: within the mapping, checked above.
        (at..at + length).map(|i| unsafe { self.start.add(i).read_volatile() }).collect()
    }

    /// Flushes it to the file.
    pub fn sync(&self) {
        // SAFETY: the mapping lives as long as self.
        unsafe { rustix::mm::msync(self.start.cast(), self.length, MsyncFlags::SYNC) }.expect("msync");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its address is given to nobody.
        let _ = unsafe { rustix::mm::munmap(self.start.cast(), self.length) };
    }
}
