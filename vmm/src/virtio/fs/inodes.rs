//! Which host objects the guest knows, and by which nodeid.
//!
//! Every object has one `O_PATH` descriptor, which pins it: while an entry lives, the host cannot give
//! its inode number to another object. The limit comes from `RLIMIT_NOFILE`; beyond it lookups fail
//! with `ENFILE`, and from seven eighths of it on directory listings come without attributes, until the
//! guest forgets something.
//!
//! [`Inode::fd`] is private so that a cold entry can later hold a file handle (`name_to_handle_at`)
//! in place of the descriptor, which is also what saving the table needs: the key, a handle or path,
//! the lookup count and the kind of each entry, and the slot (index and generation) it is in.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::request::{Errno, Served};
use super::slab::Slab;
use super::sys::{self, Stat};

/// First nodeid of the table: 0 means none, and 1 is the device's root directory.
const FIRST_ID: u64 = 2;

/// What makes two host objects the same to the guest. The mount counts because a bind mount may have
/// other rights than the mount below it, and the share because one directory may be shared twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    inode: u64,
    device: u32,
    mount: u32,
    share: u16,
}

impl Key {
    /// The key of an object with these attributes, found below this share.
    pub fn new(stat: &Stat, share: u16) -> Self {
        // Linux has 12 bits of major and 20 bits of minor number.
        let device = stat.stx_dev_major << 20 | stat.stx_dev_minor & 0xf_ffff;
        Self { inode: stat.stx_ino, device, mount: stat.stx_mnt_id as u32, share }
    }

    /// The share it is below.
    pub fn share(&self) -> u16 {
        self.share
    }

    /// Whether both are on one mount of one file system.
    pub fn same_mount(&self, other: &Key) -> bool {
        (self.device, self.mount) == (other.device, other.mount)
    }
}

/// A host object that the guest knows.
pub(super) struct Inode {
    fd: OwnedFd,
    /// Which object.
    pub key: Key,
    /// How often the guest was told of it and has not forgotten it.
    pub lookups: u64,
    /// Change time at the last open, in nanoseconds; 0 before the first.
    pub opened_at: i64,
    /// `S_IFREG`, `S_IFDIR`, …
    pub kind: u32,
    /// A share's root: stays in the table whatever the guest forgets.
    pinned: bool,
}

impl Inode {
    /// The `O_PATH` descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether it may be opened on the host: only regular files and directories are.
    pub fn check_openable(&self) -> Served {
        if self.kind == libc::S_IFREG || self.kind == libc::S_IFDIR { Ok(()) } else { Err(Errno(libc::ENXIO)) }
    }
}

/// The table of inodes.
pub(super) struct Inodes {
    slab: Slab<Inode>,
    by_key: HashMap<Key, u64>,
}

impl Inodes {
    /// An empty table of at most `limit` objects.
    pub fn new(limit: usize) -> Self {
        Self { slab: Slab::new(limit), by_key: HashMap::new() }
    }

    /// The object of a nodeid. `ESTALE` when the guest doesn't know it (or forgot it).
    pub fn get(&self, nodeid: u64) -> Served<&Inode> {
        self.slab.get(nodeid.wrapping_sub(FIRST_ID)).ok_or(Errno(libc::ESTALE))
    }

    /// [`Inodes::get`], to change it.
    pub fn get_mut(&mut self, nodeid: u64) -> Served<&mut Inode> {
        self.slab.get_mut(nodeid.wrapping_sub(FIRST_ID)).ok_or(Errno(libc::ESTALE))
    }

    /// Whether what is left should be kept for objects that the guest asks for by name.
    pub fn is_crowded(&self) -> bool {
        let limit = self.slab.limit();
        self.slab.len() >= limit - limit / 8
    }

    /// Counts one more lookup of a known object and returns its nodeid.
    pub fn find(&mut self, key: &Key) -> Option<u64> {
        let nodeid = *self.by_key.get(key)?;
        let inode = self.get_mut(nodeid).ok()?;
        inode.lookups = inode.lookups.saturating_add(1);
        Some(nodeid)
    }

    /// Adds an object, or counts one more lookup if it is known. Returns its nodeid, or `ENFILE`.
    pub fn adopt(&mut self, fd: OwnedFd, stat: &Stat, share: u16) -> Served<u64> {
        let key = Key::new(stat, share);
        match self.find(&key) {
            Some(nodeid) => Ok(nodeid),
            None => self.insert(Inode { fd, key, lookups: 1, opened_at: 0, kind: sys::kind(stat), pinned: false }),
        }
    }

    /// Adds the root of a share, which the guest doesn't know yet and can't remove.
    pub fn pin(&mut self, fd: OwnedFd, stat: &Stat, share: u16) -> Served<u64> {
        let key = Key::new(stat, share);
        self.insert(Inode { fd, key, lookups: 0, opened_at: 0, kind: sys::kind(stat), pinned: true })
    }

    fn insert(&mut self, inode: Inode) -> Served<u64> {
        let key = inode.key;
        let nodeid = self.slab.insert(inode).map_err(|_| Errno(libc::ENFILE))? + FIRST_ID;
        self.by_key.insert(key, nodeid);
        Ok(nodeid)
    }

    /// Takes back `count` lookups; an object without any leaves the table and its descriptor is closed.
    /// Unknown nodeids and counts that are too high are the guest's own confusion, without effect here.
    pub fn forget(&mut self, nodeid: u64, count: u64) {
        let Ok(inode) = self.get_mut(nodeid) else { return };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups == 0 && !inode.pinned {
            let key = inode.key;
            self.by_key.remove(&key);
            self.slab.remove(nodeid.wrapping_sub(FIRST_ID));
        }
    }

    /// Forgets all that the guest knew: the roots of the shares are left.
    pub fn forget_all(&mut self) {
        let known: Vec<u64> = self.known().collect();
        for nodeid in known {
            self.forget(nodeid, u64::MAX);
        }
    }

    /// Nodeids of all objects that the guest knows.
    pub fn known(&self) -> impl Iterator<Item = u64> {
        self.slab.iter().filter(|(_, inode)| inode.lookups > 0).map(|(key, _)| key.wrapping_add(FIRST_ID))
    }

    /// Objects in the table, roots of shares included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slab.len()
    }
}
