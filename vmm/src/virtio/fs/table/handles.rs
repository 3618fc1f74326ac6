//! What the guest has open.
//!
//! A handle is saved as its nodeid and the flags that the host says it is open with. A directory needs
//! nothing more, since the guest says in each request where it is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::slab::{Slab, Slots};
use crate::virtio::fs::place::WayId;
use crate::virtio::fs::request::{Errno, Served};

/// An open file of the guest's.
pub enum Handle {
    /// The device's root directory, which is not on the host.
    Root,
    /// A directory.
    Directory(OwnedFd),
    /// A regular file, with the access mode that the guest opened it with.
    File(OwnedFd),
}

/// An entry of the table: a handle and its object.
pub struct Open {
    /// The open file; `None` when a restore did not find the object again.
    pub handle: Option<Handle>,
    /// The object's nodeid.
    pub nodeid: u64,
    /// Shares that the object was reached through, also when the guest has forgotten it.
    pub way: Option<WayId>,
}

/// The table of handles.
pub struct Handles {
    slab: Slab<Open>,
}

impl Handles {
    /// An empty table of at most `limit` handles.
    pub fn new(limit: usize) -> Self {
        Self { slab: Slab::new(limit) }
    }

    /// The table of these slots, as [`Handles::all`] gave them; `None` when there are more than `limit`.
    pub fn of(limit: usize, slots: Slots<Open>) -> Option<Self> {
        Slab::of(limit, slots).map(|slab| Self { slab })
    }

    /// All slots in order, free ones too, with their generations.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (u32, Option<&Open>)> {
        self.slab.all()
    }

    /// Most handles that the table takes.
    pub fn limit(&self) -> usize {
        self.slab.limit()
    }

    /// Adds a handle of an object that is reached this way and returns its number. `ENFILE` when the table is full.
    pub fn insert(&mut self, handle: Handle, nodeid: u64, way: Option<WayId>) -> Served<u64> {
        self.slab.insert(Open { handle: Some(handle), nodeid, way }).map_err(|_| Errno(libc::ENFILE))
    }

    /// The handle of this number. `EBADF` when there is none, `ESTALE` when its object was lost in a restore.
    pub fn get(&self, fh: u64) -> Served<&Handle> {
        let open = self.slab.get(fh).ok_or(Errno(libc::EBADF))?;
        open.handle.as_ref().ok_or(Errno(libc::ESTALE))
    }

    /// The object that a handle is of.
    pub fn nodeid(&self, fh: u64) -> Option<u64> {
        self.slab.get(fh).map(|open| open.nodeid)
    }

    /// The way in which a handle's object was reached.
    pub fn way(&self, fh: u64) -> Option<WayId> {
        self.slab.get(fh).and_then(|open| open.way)
    }

    /// The descriptor of an open regular file. `EBADF` when the handle is none.
    pub fn file(&self, fh: u64) -> Served<BorrowedFd<'_>> {
        match self.get(fh)? {
            Handle::File(fd) => Ok(fd.as_fd()),
            Handle::Directory(_) | Handle::Root => Err(Errno(libc::EBADF)),
        }
    }

    /// The descriptor of an open directory. `ENOTDIR` when the handle is none.
    pub fn directory(&self, fh: u64) -> Served<BorrowedFd<'_>> {
        match self.get(fh)? {
            Handle::Directory(fd) => Ok(fd.as_fd()),
            Handle::File(_) | Handle::Root => Err(Errno(libc::ENOTDIR)),
        }
    }

    /// Closes a handle and returns the nodeid of its object. `EBADF` when there is none.
    pub fn remove(&mut self, fh: u64) -> Served<u64> {
        self.slab.remove(fh).map(|open| open.nodeid).ok_or(Errno(libc::EBADF))
    }

    /// Number of open handles.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether nothing is open.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.slab.len() == 0
    }

    /// Closes all handles and returns the nodeids of their objects.
    pub fn close_all(&mut self) -> Vec<u64> {
        let open: Vec<u64> = self.slab.iter().map(|(fh, _)| fh).collect();
        open.into_iter().filter_map(|fh| self.slab.remove(fh)).map(|open| open.nodeid).collect()
    }

    /// Gives each handle of an object in a share the way that `change` makes of its own, and closes those that have none any
    /// more.
    pub fn change_ways(&mut self, mut change: impl FnMut(&Open, WayId) -> Option<WayId>) {
        let mut closed = Vec::new();
        for slot in 0..self.slab.slots() {
            let Some((open, way)) = self.slab.at_mut(slot).and_then(|open| open.way.map(|way| (open, way))) else {
                continue;
            };
            open.way = change(open, way);
            if open.way.is_none() {
                closed.extend(self.slab.key_at(slot));
            }
        }
        for fh in closed {
            self.slab.remove(fh);
        }
    }
}
