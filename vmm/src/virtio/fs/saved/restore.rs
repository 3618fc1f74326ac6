//! Restoring what the guest knew and had open, see the module's page.

use std::os::fd::AsFd;

use rustix::fs::OFlags;

use super::format::{MALFORMED, Saved, SavedHandle, What};
use super::save::refuse;
use super::walk::Walk;
use crate::virtio::Error;
use crate::virtio::fs::Share;
use crate::virtio::fs::at_exit;
use crate::virtio::fs::place::WayId;
use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares::{Root, Rules};
use crate::virtio::fs::sys;
use crate::virtio::fs::table::handles::{Handle, Handles, Open};
use crate::virtio::fs::table::inode::{Anchor, Inode};
use crate::virtio::fs::table::inodes::Inodes;
use crate::virtio::fs::table::listings::Listings;
use crate::virtio::fs::table::slab::{Slab, Slots};

/// What errors of this file begin with.
const WHAT: &str = "cannot restore the file system";
/// Flags that a file is opened again with. What they were is asked of the host, so these are the host's
/// flags and not the guest's: `O_APPEND` is there only where the file can't be opened without.
const KEPT: OFlags = OFlags::RDWR
    .union(OFlags::WRONLY)
    .union(OFlags::APPEND)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME);

impl Server {
    /// Takes back what [`Server::save`] gave, on a server of the same shares that nobody has used. Any thread may call
    /// this. After an error the guest knows nothing and the shares may be gone.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut saved = Saved::parse(state, self.inodes.slab.limit(), self.handles.limit())?;
        self.check_shares(&saved)?;
        self.forget_guest();
        self.listings = Listings::default();
        let given = self.take_shares();
        let rest = self.rebuild(&mut saved, given)?;
        for share in rest {
            self.add_share(share)?;
        }
        self.reopen_all(std::mem::take(&mut saved.handles)).inspect_err(|_| self.forget_guest())?;
        self.session = saved.session;
        Ok(())
    }

    /// Checks that each share that the guest uses is there, and of the same kind.
    fn check_shares(&self, saved: &Saved) -> Result<(), Error> {
        let inodes = || saved.inodes.entries.iter().flatten();
        let mut used = vec![false; 1 << 16];
        for inode in inodes().filter(|inode| inode.lookups > 0) {
            if let Some(used) = used.get_mut(usize::from(inode.way)) {
                *used = true;
            }
        }
        for (number, name) in &saved.shares {
            let Some((_, share)) = self.shares.all().find(|(_, share)| share.name == *name) else {
                match used.get(usize::from(*number)) {
                    Some(true) => return Err(refuse(WHAT, format!("the guest uses share {name:?}, which is missing"))),
                    _ => continue,
                }
            };
            let kind = self.inodes.peek(share.nodeid).map(|inode| inode.kind).unwrap_or_default();
            let mut root = inodes().filter(|inode| inode.pinned && inode.way == *number);
            if root.any(|inode| inode.kind != kind) {
                return Err(refuse(WHAT, format!("share {name:?} is now another kind of file")));
            }
        }
        Ok(())
    }

    /// Takes the shares out again, as they were given.
    fn take_shares(&mut self) -> Vec<Share> {
        let mut given = Vec::new();
        for (Root { name, nodeid, common, .. }, rules) in std::mem::take(&mut self.shares).into_all() {
            // Several shares may have one root.
            let root = self.inodes.peek(nodeid).and_then(|inode| Ok(inode.fd()?.try_clone_to_owned()));
            if let Ok(Ok(root)) = root {
                let Rules { read_only, cache, policy, .. } = rules;
                given.push(Share { name, root, read_only, cache, policy, common });
            }
        }
        self.inodes.all().into_iter().for_each(|nodeid| self.inodes.remove(nodeid));
        given
    }

    /// Makes the table of inodes and the list of shares anew; returns the shares that are no saved ones.
    fn rebuild(&mut self, saved: &mut Saved, mut given: Vec<Share>) -> Result<Vec<Share>, Error> {
        let mut roots = Vec::new();
        for (slot, number, share) in pair(saved, &mut given) {
            let Share { name, root, read_only, cache, policy, common } = share;
            let rules = Rules { read_only, cache, policy, local: at_exit::is_local(root.as_fd()) };
            let added = self.shares.add_at(number, &name, common, rules);
            roots.push((slot, added.ok_or(MALFORMED)?, root));
        }
        saved.inodes.entries.iter_mut().flatten().for_each(|inode| self.place(inode));
        let limit = self.inodes.slab.limit();
        let mut inodes = Inodes::new(limit, self.inodes.hot_limit, self.inodes.proc_fd.clone());
        inodes.slab = Slab::of(limit, std::mem::take(&mut saved.inodes)).ok_or(MALFORMED)?;
        let mut walk = Walk::new(&mut inodes);
        for (slot, number, root) in roots {
            let nodeid = walk.root(slot, root).map_err(|error| refuse(WHAT, sentence(error)))?;
            self.shares.settle(number, nodeid);
        }
        walk.finish(&saved.superseded);
        self.inodes = inodes;
        Ok(given)
    }

    /// Says of a saved object where it counts as the same, and how it is reached.
    fn place(&mut self, inode: &mut Inode) {
        let number = inode.way;
        let place = self.shares.place(number);
        (inode.files, inode.key.place) = (place.files, place.number(inode.kind, inode.key.mount != 0));
        inode.way = self.shares.through(number).unwrap_or(WayId::MAX);
    }

    fn reopen_all(&mut self, saved: Slots<SavedHandle>) -> Result<(), Error> {
        self.inodes.begin();
        let slots = saved.map(|saved| self.reopen_one(&saved))?;
        self.handles = Handles::of(self.handles.limit(), slots).ok_or(MALFORMED)?;
        Ok(())
    }

    /// Opens a handle's object again. The handle of an object that isn't there any more is stale.
    fn reopen_one(&mut self, saved: &SavedHandle) -> Result<Open, Error> {
        let (nodeid, way) = (saved.nodeid, self.inodes.peek(saved.nodeid).ok().map(|inode| inode.way));
        let handle = match self.reopen_handle(saved) {
            Ok(handle) => Some(handle),
            Err(Errno(libc::ESTALE)) => None,
            Err(error) => {
                let name = self.inodes.peek(nodeid).and_then(|inode| match &inode.anchor {
                    Anchor::Hot(fd) => sys::name_of(&self.proc_fd, fd.as_fd()),
                    Anchor::Cold(name) => Ok(name.clone()),
                });
                let name = name.unwrap_or_default();
                let why = format!("{:?} cannot be opened again: {}", name.to_string_lossy(), sentence(error));
                return Err(refuse(WHAT, why));
            }
        };
        self.inodes.opened(nodeid);
        Ok(Open { handle, nodeid, way })
    }

    fn reopen_handle(&mut self, saved: &SavedHandle) -> Served<Handle> {
        let kind = match saved.what {
            What::Root => return Ok(Handle::Root),
            What::Stale => return Err(Errno(libc::ESTALE)),
            What::Directory => libc::S_IFDIR,
            What::File => libc::S_IFREG,
        };
        self.inodes.warm(saved.nodeid)?;
        let inode = self.inodes.get(saved.nodeid)?;
        if inode.kind != kind {
            return Err(Errno(libc::ESTALE));
        }
        let mut flags = saved.flags & KEPT;
        if self.is_read_only(inode) {
            if flags & OFlags::ACCMODE != OFlags::RDONLY {
                return Err(Errno(libc::EROFS));
            }
            flags |= OFlags::NOATIME;
        }
        if saved.what == What::File {
            return Ok(Handle::File(self.reopen(inode, flags)?));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | (flags & OFlags::NOATIME);
        Ok(Handle::Directory(self.reopen(inode, flags)?))
    }
}

/// Takes out of the given shares those that were saved; returns each with the slot of its root, and its
/// number. The root of one that isn't there leaves the table: the guest doesn't know it, which
/// `check_shares` has seen to, or it is a second root of a share.
fn pair(saved: &mut Saved, given: &mut Vec<Share>) -> Vec<(usize, u16, Share)> {
    let (mut roots, mut gone) = (Vec::new(), Vec::new());
    for (slot, inode) in saved.inodes.entries.iter_mut().enumerate() {
        let Some(root) = inode.as_ref().filter(|inode| inode.pinned) else { continue };
        match take_named(given, &saved.shares, root.way) {
            Some(share) => roots.push((slot, root.way, share)),
            None => gone.push(slot),
        }
    }
    gone.into_iter().for_each(|slot| saved.inodes.clear(slot));
    roots
}

/// Takes the share of this saved number out of those given.
fn take_named(given: &mut Vec<Share>, saved: &[(u16, String)], number: u16) -> Option<Share> {
    let (_, name) = saved.iter().find(|(known, _)| *known == number)?;
    let at = given.iter().position(|share| share.name == *name)?;
    Some(given.swap_remove(at))
}

fn sentence(error: Errno) -> String {
    std::io::Error::from_raw_os_error(error.0).to_string()
}
