//! The host objects that the guest knows, by nodeid.
//!
//! An object in use has an `O_PATH` descriptor, which pins it: as long as it is *hot*, the host cannot
//! give its inode number to another object. Descriptors are few (`RLIMIT_NOFILE`) and a guest may know
//! a million files, so objects not used lately become *cold*: see the module `cold`. Beyond the limit of
//! the table itself lookups fail with `ENFILE` until the guest forgets something.
//!
//! How the table outlives the process is told in `saved`.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::index::Index;
use super::inode::{Above, Anchor, FIRST_ID, Inode, Key};
use super::slab::Slab;
use crate::virtio::fs::coherence::Began;
use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys::{self, SetId, Stat};

/// The table of inodes.
pub struct Inodes {
    /// The entries.
    pub slab: Slab<Inode>,
    /// The entries by key.
    pub index: Index,
    /// `/proc/self/fd`, `O_PATH`.
    pub proc_fd: Arc<OwnedFd>,
    /// Number of entries with a descriptor.
    pub hot: usize,
    /// Most entries that may have a descriptor.
    pub hot_limit: usize,
    /// Slot at which the search for entries to cool goes on.
    pub hand: usize,
    /// Number of the present request.
    pub now: u32,
    /// When the present request began.
    pub began: Began,
}

impl Inodes {
    /// An empty table of at most `limit` objects, with at most `descriptors` descriptors.
    pub fn new(limit: usize, descriptors: usize, proc_fd: Arc<OwnedFd>) -> Self {
        let (slab, index) = (Slab::new(limit), Index::default());
        Self { slab, index, proc_fd, hot: 0, hot_limit: descriptors, hand: 0, now: 0, began: Began::now() }
    }

    /// Begins a new request: what the request uses stays hot until the next one.
    pub fn begin(&mut self) {
        self.now = self.now.wrapping_add(1);
        self.began = Began::now();
    }

    /// The object of a nodeid. `ESTALE` when the guest doesn't know it (or forgot it).
    pub fn get(&self, nodeid: u64) -> Served<&Inode> {
        let inode = self.peek(nodeid)?;
        inode.used.set(self.now);
        Ok(inode)
    }

    /// [`Inodes::get`] that doesn't count as use.
    pub fn peek(&self, nodeid: u64) -> Served<&Inode> {
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

    /// Counts one more lookup of a known object, now found under this name; returns its nodeid.
    pub fn find(&mut self, stat: &Stat, parent: u64, name: &CStr, above: &Above) -> Option<u64> {
        let nodeid = self.known_as(stat, above)?;
        let inode = self.get_mut(nodeid).ok()?;
        inode.lookups = inode.lookups.saturating_add(1);
        if inode.way != above.way {
            // Which of its names is to lead to it depends on what may be done that way.
            return Some(nodeid);
        }
        inode.parent = parent;
        match &mut inode.anchor {
            Anchor::Cold(known) if known.as_c_str() != name => *known = name.to_owned(),
            _ => (),
        }
        Some(nodeid)
    }

    /// The nodeid of an object with these attributes. A cold entry that is an earlier object of the same
    /// inode number is not meant: it keeps its nodeid and will be found stale.
    pub fn known_as(&self, stat: &Stat, above: &Above) -> Option<u64> {
        let nodeid = self.index.get(&Key::new(stat, above), &self.slab)?.wrapping_add(FIRST_ID);
        let inode = self.get(nodeid).ok()?;
        match &inode.anchor {
            Anchor::Cold(_) if inode.born != sys::birth_time(stat) => None,
            _ => Some(nodeid),
        }
    }

    /// Adds an object that a descriptor stands for, or counts one more lookup if it is known. Returns
    /// its nodeid. `ENFILE` when there is no room.
    pub fn adopt(&mut self, fd: OwnedFd, stat: &Stat, parent: u64, above: &Above) -> Served<u64> {
        if let Some(nodeid) = self.known_as(stat, above) {
            let inode = self.get_mut(nodeid)?;
            inode.lookups = inode.lookups.saturating_add(1);
            return Ok(nodeid);
        }
        self.make_room()?;
        let nodeid = self.insert(Anchor::Hot(fd), stat, above)?;
        self.introduce(nodeid, parent)
    }

    /// Adds an object without a descriptor. `ENFILE` when the table is full.
    pub fn add_cold(&mut self, name: &CStr, stat: &Stat, parent: u64, above: &Above) -> Served<u64> {
        let nodeid = self.insert(Anchor::Cold(name.to_owned()), stat, above)?;
        self.introduce(nodeid, parent)
    }

    /// Has the guest know a new object, found in this directory.
    fn introduce(&mut self, nodeid: u64, parent: u64) -> Served<u64> {
        let inode = self.get_mut(nodeid)?;
        (inode.parent, inode.lookups) = (parent, 1);
        Ok(nodeid)
    }

    /// Adds the root of a share, which the guest cannot remove. It may know it by another share: then it gets this descriptor
    /// if that one is to be `replaced`.
    pub fn pin(&mut self, fd: OwnedFd, stat: &Stat, above: &Above, replaced: impl Fn(&Inode) -> bool) -> Served<u64> {
        let known = self.known_as(stat, above);
        let cold = known.is_none_or(|nodeid| self.peek(nodeid).is_ok_and(|inode| inode.fd().is_err()));
        if cold && self.hot >= self.hot_limit {
            return Err(Errno(libc::ENFILE));
        }
        let nodeid = match known {
            None => self.insert(Anchor::Hot(fd), stat, above)?,
            Some(nodeid) => {
                if cold || self.peek(nodeid).is_ok_and(replaced) {
                    self.hold(nodeid, fd, stat)?;
                }
                nodeid
            }
        };
        self.get_mut(nodeid)?.pinned = true;
        Ok(nodeid)
    }

    /// Gives an object this descriptor, which stands for it.
    pub fn hold(&mut self, nodeid: u64, fd: OwnedFd, stat: &Stat) -> Served {
        let inode = self.get_mut(nodeid)?;
        let before = std::mem::replace(&mut inode.anchor, Anchor::Hot(fd));
        inode.mount = sys::mount(stat);
        self.hot += usize::from(matches!(before, Anchor::Cold(_)));
        Ok(())
    }

    fn insert(&mut self, anchor: Anchor, stat: &Stat, above: &Above) -> Served<u64> {
        let (key, hot) = (Key::new(stat, above), matches!(anchor, Anchor::Hot(_)));
        let inode = Inode {
            anchor,
            key,
            files: above.place.files,
            way: above.way,
            mount: sys::mount(stat),
            parent: 0,
            born: sys::birth_time(stat),
            lookups: 0,
            opens: 0,
            opened_at: 0,
            known: 0,
            kind: sys::kind(stat),
            set_id: SetId::of(stat),
            used: Cell::new(self.now),
            pinned: false,
        };
        let entry = self.slab.insert(inode).map_err(|_| Errno(libc::ENFILE))?;
        self.hot += usize::from(hot);
        self.index.set(entry, &self.slab);
        Ok(entry.wrapping_add(FIRST_ID))
    }

    /// Counts a handle of an object, which is not cooled as long as it has one.
    pub fn opened(&mut self, nodeid: u64) {
        if let Ok(inode) = self.get_mut(nodeid) {
            inode.opens = inode.opens.saturating_add(1);
        }
    }

    /// Counts a handle of an object less.
    pub fn closed(&mut self, nodeid: u64) {
        if let Ok(inode) = self.get_mut(nodeid) {
            inode.opens = inode.opens.saturating_sub(1);
        }
    }

    /// Takes back `count` lookups; an object without any leaves the table and its descriptor is closed.
    /// Unknown nodeids and counts that are too high are the guest's own confusion, without effect here.
    pub fn forget(&mut self, nodeid: u64, count: u64) {
        let Ok(inode) = self.get_mut(nodeid) else { return };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups > 0 || inode.pinned {
            return;
        }
        self.remove(nodeid);
    }

    /// Takes an object out of the table, whatever the guest thinks of it.
    pub fn remove(&mut self, nodeid: u64) {
        let Ok(inode) = self.peek(nodeid) else { return };
        self.hot -= usize::from(matches!(inode.anchor, Anchor::Hot(_)));
        let entry = nodeid.wrapping_sub(FIRST_ID);
        self.index.remove(entry, &self.slab);
        self.slab.remove(entry);
    }

    /// Forgets all that the guest knew: the roots of the shares are left.
    pub fn forget_all(&mut self) {
        let known: Vec<u64> = self.known().collect();
        for nodeid in known {
            self.forget(nodeid, u64::MAX);
        }
    }

    /// Nodeids of all objects in the table.
    pub fn all(&self) -> Vec<u64> {
        self.slab.iter().map(|(key, _)| key.wrapping_add(FIRST_ID)).collect()
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
