//! An object of the host that the guest knows.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys::{SetId, Stat};

/// First nodeid of the table: nodeid 0 means none, and 1 is the device's root directory.
pub const FIRST_ID: u64 = 2;

/// What makes two host objects the same to the guest. The mount counts because a bind mount may have
/// other rights than the mount below it, and the share because one directory may be shared twice.
///
/// Packed to save memory, since every entry has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, packed(2))]
pub struct Key {
    /// Inode number.
    pub inode: u64,
    /// Major number in the upper 12 bits, minor number in the lower 20.
    pub device: u32,
    /// Number of the mount.
    pub mount: u32,
    /// Number of the share.
    pub share: u16,
}

impl Key {
    /// The key of an object with these attributes, found below this share.
    pub fn new(stat: &Stat, share: u16) -> Self {
        // Linux has 12 bits of major and 20 bits of minor number.
        let device = stat.stx_dev_major << 20 | stat.stx_dev_minor & 0xf_ffff;
        Self { inode: stat.stx_ino, device, mount: stat.stx_mnt_id as u32, share }
    }

    /// Number of the share that the object is below.
    pub fn share(&self) -> u16 {
        self.share
    }

    /// Whether both are on one mount of one file system.
    pub fn same_mount(&self, other: &Key) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }
}

/// How the host object of an entry is reached.
pub enum Anchor {
    /// Held by this `O_PATH` descriptor.
    Hot(OwnedFd),
    /// To be found again under this name in the parent directory. Nothing has the empty name.
    Cold(CString),
}

/// A host object that the guest knows. There may be a million: 80 bytes, and its name when cold.
pub struct Inode {
    /// How the server reaches the host object.
    pub anchor: Anchor,
    /// Which host object the entry is.
    pub key: Key,
    /// Nodeid of the directory that the object was last found in.
    pub parent: u64,
    /// Birth time in nanoseconds, which tells the object from a later one of the same inode number.
    pub born: i64,
    /// How often the guest was told of the object without having forgotten it since.
    pub lookups: u64,
    /// Number of open handles of the object.
    pub opens: u32,
    /// Change time at the last open, in nanoseconds; 0 before the first.
    pub opened_at: i64,
    /// Change time that the guest was told last; 0 when the guest itself has made a later change.
    pub known: i64,
    /// `S_IFREG`, `S_IFDIR`, …
    pub kind: u32,
    /// Setuid and setgid bits of the attributes that the guest was told last.
    pub set_id: SetId,
    /// Number of the request that used the object last.
    pub used: Cell<u32>,
    /// Whether the object is a share's root, which stays in the table, and hot, whatever the guest forgets.
    pub pinned: bool,
}

impl Inode {
    /// The object's `O_PATH` descriptor. `ESTALE` while the object is cold: warm it first.
    pub fn fd(&self) -> Served<BorrowedFd<'_>> {
        match &self.anchor {
            Anchor::Hot(fd) => Ok(fd.as_fd()),
            Anchor::Cold(_) => Err(Errno(libc::ESTALE)),
        }
    }

    /// Number of the share that the object is below, as an index.
    pub fn share(&self) -> usize {
        usize::from(self.key.share())
    }

    /// Fails with `ENXIO` unless the object may be opened on the host: only regular files and directories may.
    pub fn check_openable(&self) -> Served {
        if self.kind == libc::S_IFREG || self.kind == libc::S_IFDIR { Ok(()) } else { Err(Errno(libc::ENXIO)) }
    }
}
