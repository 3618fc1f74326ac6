//! Finding out what the mounts of a saved table are now.
//!
//! An object's key has numbers of the mount and device that it was on, which say nothing about another
//! process's mounts. So the walk looks the directories that the guest knows up again, from the roots of the
//! shares down; the first one of each old mount and device tells what these are now. Of other objects the walk looks
//! only at those on another mount or device than their directory (files mounted by themselves, files of an overlay of
//! several file systems), and at one for each.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::virtio::fs::coherence::UNKNOWN;
use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys::{self, Stat};
use crate::virtio::fs::table::inode::{self, Above, Anchor, FIRST_ID, Inode, Key};
use crate::virtio::fs::table::inodes::Inodes;

/// Deepest directory that is looked up.
const MAX_DEPTH: usize = 512;

/// Place of the key, device and mount.
type Place = (u16, u32, u32);

fn place(key: &Key) -> Place {
    (key.place, key.device, key.mount)
}

/// A walk through the directories of a saved table.
pub struct Walk<'a> {
    inodes: &'a mut Inodes,
    /// Present places by saved ones.
    places: HashMap<Place, Place>,
    /// Directories found again.
    found: HashSet<u64>,
    /// Objects to be looked up, as (parent, nodeid), sorted.
    below: Vec<(u64, u64)>,
}

/// A directory whose entries are being looked up.
struct Level {
    fd: OwnedFd,
    nodeid: u64,
    /// Index of the next object in [`Walk::below`].
    at: usize,
}

impl<'a> Walk<'a> {
    /// A walk for a table whose keys are all saved ones.
    pub fn new(inodes: &'a mut Inodes) -> Self {
        let wanted = |inode: &Inode| {
            let elsewhere = |parent: &Inode| place(&parent.key) != place(&inode.key);
            inode.kind == libc::S_IFDIR || inodes.peek(inode.parent).is_ok_and(elsewhere)
        };
        let all = inodes.slab.iter().filter(|(_, inode)| !inode.pinned && wanted(inode));
        let mut below: Vec<(u64, u64)> =
            all.map(|(entry, inode)| (inode.parent, entry.wrapping_add(FIRST_ID))).collect();
        below.sort_unstable();
        Self { inodes, places: HashMap::new(), found: HashSet::new(), below }
    }

    /// Gives the share's root in a slot its descriptor, looks up what is below the root and returns the root's nodeid. The
    /// root is what the share says, whatever it was before: if it is another file now, the guest's cache of it is worth
    /// nothing.
    pub fn root(&mut self, slot: usize, fd: OwnedFd) -> Served<u64> {
        let nodeid = self.inodes.slab.key_at(slot).ok_or(Errno(libc::ESTALE))?.wrapping_add(FIRST_ID);
        let (stat, copy) = (sys::stat(fd.as_fd())?, fd.try_clone()?);
        let inode = self.inodes.get_mut(nodeid)?;
        if !is_same(inode, &stat) {
            // No change time is this.
            inode.opened_at = UNKNOWN;
        }
        let above = Above::root(inode.as_above().place, inode.way, sys::mount(&stat));
        self.inodes.hold(nodeid, fd, &stat)?;
        self.settle(nodeid, &stat, &above)?;
        self.descend(Level { fd: copy, nodeid, at: self.first(nodeid) });
        Ok(nodeid)
    }

    fn first(&self, parent: u64) -> usize {
        self.below.partition_point(|&(known, _)| known < parent)
    }

    fn descend(&mut self, root: Level) {
        let mut levels = vec![root];
        while let Some(level) = levels.last_mut() {
            let next = self.below.get(level.at).filter(|(parent, _)| *parent == level.nodeid);
            let Some(&(_, nodeid)) = next else {
                levels.pop();
                continue;
            };
            level.at += 1;
            let fd = self.look_up(level.fd.as_fd(), level.nodeid, nodeid);
            if let Some(fd) = fd.filter(|_| levels.len() < MAX_DEPTH) {
                levels.push(Level { fd, nodeid, at: self.first(nodeid) });
            }
        }
    }

    /// Looks for an object where it was; returns its descriptor if it is a directory.
    fn look_up(&mut self, directory: BorrowedFd, parent: u64, nodeid: u64) -> Option<OwnedFd> {
        let above = self.inodes.peek(parent).ok()?.as_above();
        let inode = self.inodes.peek(nodeid).ok()?;
        let Anchor::Cold(name) = &inode.anchor else { return None };
        if inode.kind != libc::S_IFDIR {
            if let Entry::Vacant(unknown) = self.places.entry(place(&inode.key)) {
                let stat = sys::stat_at(directory, name).ok()?;
                unknown.insert(is_same(inode, &stat).then(|| place(&Key::new(&stat, &above)))?);
            }
            return None;
        }
        let fd = sys::open_path(directory, name).ok()?;
        let stat = sys::stat(fd.as_fd()).ok()?;
        if !is_same_directory(inode, &stat) {
            return None;
        }
        self.settle(nodeid, &stat, &above).ok()?;
        Some(fd)
    }

    /// Gives an object that was found its present key.
    fn settle(&mut self, nodeid: u64, stat: &Stat, above: &Above) -> Served {
        let inode = self.inodes.get_mut(nodeid)?;
        let key = Key::new(stat, above);
        self.places.entry(place(&inode.key)).or_insert(place(&key));
        self.found.insert(nodeid);
        (inode.key, inode.born, inode.mount) = (key, sys::birth_time(stat), sys::mount(stat));
        Ok(())
    }

    /// Gives all other objects the keys that they must have now, and has lookups find them by these, except in
    /// `superseded` slots. Whether an object is there shows when the guest uses it.
    pub fn finish(self, superseded: &[u32]) {
        let Self { inodes, places, found, .. } = self;
        for slot in 0..inodes.slab.slots() {
            let Some(entry) = inodes.slab.key_at(slot) else { continue };
            if let Some(inode) = inodes.slab.at_mut(slot).filter(|_| !found.contains(&entry.wrapping_add(FIRST_ID)))
                && let Some((_, device, mount)) = places.get(&place(&inode.key))
            {
                (inode.key.device, inode.key.mount) = (*device, *mount);
            }
            if superseded.binary_search(&(slot as u32)).is_err() {
                inodes.index.set(entry, &inodes.slab);
            }
        }
    }
}

/// Whether attributes are those of a saved object: no other one has its inode number and birth time.
fn is_same(inode: &Inode, stat: &Stat) -> bool {
    (inode.kind, inode.key.inode, inode.born) == (sys::kind(stat), stat.stx_ino, sys::birth_time(stat))
}

/// Whether a directory may stand for a saved one of the same path. On a disk it has to be the same one. Where
/// device numbers are made up at each mount it need not: overlays may number directories anew each time,
/// and those in an upper layer are made for each container. Nothing depends on it, as all that is below is
/// looked at by itself.
fn is_same_directory(inode: &Inode, stat: &Stat) -> bool {
    let device = inode::device(stat);
    let disk = device >> 20 != 0 && device == inode.key.device;
    sys::kind(stat) == libc::S_IFDIR && (!disk || is_same(inode, stat))
}
