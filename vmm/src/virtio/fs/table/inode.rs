//! An object of the host that the guest knows.

use std::cell::Cell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::virtio::fs::place::{Place, WayId};
use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys::{self, SetId, Stat};

/// First nodeid of the table: nodeid 0 means none, and 1 is the device's root directory.
pub const FIRST_ID: u64 = 2;

/// What an object has of the directory that it is found in.
#[derive(Clone, Copy, Debug)]
pub struct Above {
    /// Where objects count as the same.
    pub place: Place,
    /// Shares that they are reached through.
    pub way: WayId,
    /// The mount of the directory's descriptor.
    pub mount: u32,
    /// The same as it is in keys.
    pub nested: u32,
}

impl Above {
    /// For the root of a share: `mount` is the one that the root is on.
    pub fn root(place: Place, way: WayId, mount: u32) -> Self {
        Self { place, way, mount, nested: 0 }
    }
}

/// What makes two host objects the same to the guest. Mounts inside of a share count because a bind mount may have other rights
/// than the mount below it, and the guest has each as a file system of its own.
///
/// Packed to save memory, since every entry has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, packed(2))]
pub struct Key {
    /// Inode number.
    pub inode: u64,
    /// Major number in the upper 12 bits, minor number in the lower 20.
    pub device: u32,
    /// Number of the mount; 0 on the mount of the share's root.
    pub mount: u32,
    /// One of the numbers of the [`Place`].
    pub place: u16,
}

impl Key {
    /// The key of an object with these attributes, found in this directory.
    pub fn new(stat: &Stat, above: &Above) -> Self {
        let found_on = sys::mount(stat);
        let mount = if found_on == above.mount { above.nested } else { found_on };
        let place = above.place.number(sys::kind(stat), mount != 0);
        Self { inode: stat.stx_ino, device: device(stat), mount, place }
    }

    /// Whether both are on one mount of one file system.
    pub fn same_mount(&self, other: &Key) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }
}

/// Number of the device that an object is on. Linux has 12 bits of major and 20 bits of minor number.
pub fn device(stat: &Stat) -> u32 {
    stat.stx_dev_major << 20 | stat.stx_dev_minor & 0xf_ffff
}

/// How the host object of an entry is reached.
pub enum Anchor {
    /// Held by this `O_PATH` descriptor.
    Hot(OwnedFd),
    /// To be found again under this name in the parent directory. Nothing has the empty name.
    Cold(CString),
}

/// A host object that the guest knows. There may be a million: 96 bytes, and its name when cold.
pub struct Inode {
    /// How the server reaches the host object.
    pub anchor: Anchor,
    /// Which host object the entry is.
    pub key: Key,
    /// The number of the place for whatever is no directory.
    pub files: u16,
    /// Shares that it is reached through.
    pub way: WayId,
    /// The mount of its descriptor, or of the last one that it had.
    pub mount: u32,
    /// Nodeid of the directory that the object was last found in.
    pub parent: u64,
    /// Birth time in nanoseconds, which tells the object from a later one of the same inode number.
    pub born: i64,
    /// How often the guest was told of the object without having forgotten it since.
    pub lookups: u64,
    /// Number of open handles of the object, and one more while the guest watches it: then it stays hot.
    pub opens: u32,
    /// Version (change time and size) at the last open; 0 before the first.
    pub opened_at: i64,
    /// Version that the guest was told last; 0 when the guest itself has made a later change.
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

    /// What objects below have of it.
    pub fn as_above(&self) -> Above {
        let place = Place { files: self.files, directories: self.key.place };
        Above { place, way: self.way, mount: self.mount, nested: self.key.mount }
    }

    /// Fails with `ENXIO` unless the object may be opened on the host: only regular files and directories may.
    pub fn check_openable(&self) -> Served {
        if self.kind == libc::S_IFREG || self.kind == libc::S_IFDIR { Ok(()) } else { Err(Errno(libc::ENXIO)) }
    }
}
