//! Shares that come and go, and objects that are reached through several of them.
//!
//! Each object has one descriptor, which is on the mount that one of the shares was copied from. Of several it is one where the
//! guest may change something, if there is any. On the host two descriptors of different mounts have nothing in common:
//! where that comes in the way of `rename` and `link`, both are opened again from the topmost directory that is known.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use super::place::WayId;
use super::request::{Errno, NAME_MAX, Served};
use super::server::Server;
use super::shares::Rules;
use super::table::inode::{Above, Anchor, Inode};
use super::{Policy, Share, at_exit, sys};
use crate::virtio::Error;

/// Most directories between an object and the root of its share that are looked at.
const MAX_DEPTH: usize = 512;

impl Server {
    /// Adds a share.
    pub fn add_share(&mut self, share: Share) -> Result<(), Error> {
        let Share { name, root, read_only, cache, policy, common } = share;
        let taken = |name: &str| {
            self.shares.all().any(|(_, known)| known.name == name || known.common.directory() == Some(name))
        };
        let directory = common.directory();
        let bad_directory = directory.is_some_and(|name| !is_name(name) || self.shares.named(name).is_some());
        if !is_name(&name) || taken(&name) || bad_directory || directory == Some(name.as_str()) {
            return Err(Error::Protocol("the name of a share is not a file name, or given twice"));
        }
        let rules = Rules { read_only, cache, policy, local: at_exit::is_local(root.as_fd()) };
        let number = self.shares.add(&name, common, rules);
        let number = number.ok_or(Error::Protocol("too many shares"))?;
        self.pin(number, root).inspect_err(|_| self.shares.remove(number))
    }

    /// Makes an object the root of a share.
    fn pin(&mut self, number: u16, root: OwnedFd) -> Result<(), Error> {
        let stat = sys::stat(root.as_fd())
            .map_err(|error| Error::Host("look at a share", std::io::Error::from_raw_os_error(error.0)))?;
        let way = self.shares.through(number).ok_or(Error::Protocol("too many shares"))?;
        let above = Above::root(self.shares.place(number), way, sys::mount(&stat));
        let (shares, changeable) = (&self.shares, !self.shares.rules(way).read_only);
        let replaced = |inode: &Inode| changeable && shares.rules(inode.way).read_only;
        let nodeid = self.inodes.pin(root, &stat, &above, replaced);
        let nodeid = nodeid.map_err(|_| Error::Protocol("RLIMIT_NOFILE is too low for this many shares"))?;
        if let Ok(inode) = self.inodes.get_mut(nodeid) {
            inode.way = self.shares.both(inode.way, way);
        }
        self.shares.settle(number, nodeid);
        Ok(())
    }

    /// Takes an entry out of its directory, with all that the guest knows or has open below it and through no other share.
    pub fn remove_share(&mut self, name: &str) {
        let Some(number) = self.shares.named(name) else { return };
        let root = self.shares.get(number).map_or(0, |root| root.nodeid);
        let others = self.shares.all().any(|(other, share)| other != number && share.nodeid == root);
        if let Ok(inode) = self.inodes.get_mut(root) {
            inode.pinned = others;
        }
        // What is known by this share alone and may be changed through another one is opened there, while names still lead to it.
        self.inodes.all().into_iter().for_each(|nodeid| self.widen(nodeid));
        let left: Vec<(u64, Option<WayId>)> =
            self.inodes.all().into_iter().map(|nodeid| (nodeid, self.way_without(nodeid, number))).collect();
        for (nodeid, way) in left {
            match (way, self.inodes.get_mut(nodeid)) {
                (Some(way), Ok(inode)) => inode.way = way,
                _ => {
                    self.unwatch(nodeid);
                    self.inodes.remove(nodeid);
                }
            }
        }
        // A root that the guest does not know, or no longer can.
        self.forget_lookups(root, 0);
        let Self { handles, inodes, shares, .. } = self;
        handles.change_ways(|open, way| match inodes.peek(open.nodeid) {
            Ok(inode) => Some(inode.way),
            Err(_) => shares.without(way, number),
        });
        self.locks.keep(|fh| self.handles.get(fh).is_ok());
        self.listings = Default::default();
        self.shares.remove(number);
    }

    /// The way that an object is still reached when a share has gone: by itself, or in a directory that is.
    fn way_without(&mut self, nodeid: u64, number: u16) -> Option<WayId> {
        let mut at = nodeid;
        let own = self.inodes.peek(nodeid).ok()?.way;
        for _ in 0..MAX_DEPTH {
            let (way, parent) = self.inodes.peek(at).map(|inode| (inode.way, inode.parent)).ok()?;
            if let Some(left) = self.shares.without(way, number) {
                // Its descriptor does not let it be changed, so the guest has to look it up again.
                let gains = self.shares.rules(own).read_only && !self.shares.rules(left).read_only;
                return Some(left).filter(|_| !gains);
            }
            at = parent;
        }
        None
    }

    /// Has another policy hold for a share from now on. Fails when there is no share of this name.
    pub fn set_policy(&mut self, name: &str, policy: Policy) -> Result<(), Error> {
        let number = self.shares.named(name).ok_or(Error::Protocol("a policy for a share that is not there"))?;
        self.shares.set_policy(number, policy);
        Ok(())
    }

    /// Notes that a known object was found under this name in a directory that is reached through other shares.
    pub fn meet(&mut self, nodeid: u64, parent: u64, name: &CStr, above: &Above) -> Served {
        let inode = self.inodes.get(nodeid)?;
        if inode.way == above.way {
            return Ok(());
        }
        let both = self.shares.both(inode.way, above.way);
        let changeable = |way| !self.shares.rules(way).read_only;
        let (known, here) = (changeable(inode.way), changeable(above.way));
        // The root of another share gets to the mount of this one: nothing else tells its name.
        if here && (!known || inode.pinned) && inode.fd().is_ok() {
            let (fd, stat) = inode.open_as(self.inodes.get(parent)?.fd()?, name, above)?;
            self.inodes.hold(nodeid, fd, &stat)?;
        }
        let inode = self.inodes.get_mut(nodeid)?;
        inode.way = both;
        if here || !known {
            inode.parent = parent;
            if let Anchor::Cold(known) = &mut inode.anchor {
                *known = name.to_owned();
            }
        }
        Ok(())
    }

    /// Lets the guest change an object that it has found through a read-only share where it could have found it through another one:
    /// its kernel asks for a name once, whatever mount it goes through.
    pub fn widen(&mut self, nodeid: u64) {
        let Ok(inode) = self.inodes.peek(nodeid) else { return };
        if self.is_read_only(inode) && self.shares.is_mixed(inode.files) {
            // What is read-only everywhere stays as it is.
            let _ = self.open_from_above(nodeid);
        }
    }

    /// Opens an object and the directories above it again, from the topmost one in which the guest may change something.
    pub fn open_from_above(&mut self, nodeid: u64) -> Served {
        let mut chain = vec![nodeid];
        // The object itself, unless it may not be changed.
        let mut top = self.writable(nodeid).ok().map(|_| 0);
        while let Some(parent) = chain.last().and_then(|&at| self.inodes.peek(at).ok()).map(|inode| inode.parent) {
            let Ok(inode) = self.inodes.peek(parent) else { break };
            if chain.len() == MAX_DEPTH {
                break;
            }
            if !self.is_read_only(inode) {
                top = Some(chain.len());
            }
            chain.push(parent);
        }
        let top = top.ok_or(Errno(libc::EROFS))?;
        for at in (0..top).rev() {
            let (Some(&parent), Some(&nodeid)) = (chain.get(at + 1), chain.get(at)) else { break };
            self.open_again(nodeid, parent)?;
        }
        Ok(())
    }

    /// Does something with two objects; once more, opened from above, where the host says that they are on different mounts.
    pub fn on_one_mount(&mut self, objects: [u64; 2], act: impl Fn(&Self) -> Served) -> Served {
        match act(self) {
            Err(Errno(libc::EXDEV)) if self.are_on_two_mounts(objects) => {}
            result => return result,
        }
        for nodeid in objects {
            if self.open_from_above(nodeid).is_err() {
                return Err(Errno(libc::EXDEV));
            }
        }
        act(self)
    }

    /// Whether two objects of one file system are reached through descriptors on different mounts.
    fn are_on_two_mounts(&self, objects: [u64; 2]) -> bool {
        let [one, other] =
            objects.map(|nodeid| self.inodes.peek(nodeid).ok().map(|inode| (inode.key.device, inode.mount)));
        one.zip(other).is_some_and(|((device, mount), (same, elsewhere))| device == same && mount != elsewhere)
    }

    fn open_again(&mut self, nodeid: u64, parent: u64) -> Served {
        self.inodes.warm(parent)?;
        self.inodes.warm(nodeid)?;
        let (inode, directory) = (self.inodes.get(nodeid)?, self.inodes.get(parent)?);
        let name = sys::name_of(&self.proc_fd, inode.fd()?)?;
        let (way, above) = (inode.way, directory.as_above());
        let (fd, stat) = inode.open_as(directory.fd()?, &name, &above)?;
        self.inodes.hold(nodeid, fd, &stat)?;
        let both = self.shares.both(way, above.way);
        self.inodes.get_mut(nodeid)?.way = both;
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && bytes.len() <= NAME_MAX && !bytes.iter().any(|byte| b"/\0".contains(byte))
}
