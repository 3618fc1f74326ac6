//! Cooling objects whose descriptors are needed elsewhere, and warming those that are used again.
//!
//! A cold object has no descriptor. The server opens it again under its name in its parent directory, which may
//! be cold itself, and takes it for the same only if key and birth time are: otherwise the guest gets
//! `ESTALE` and looks the name up again. This happens when the host moves or removes an object that the
//! guest has not used for long; before the *guest* moves or removes one, it is warmed.
//!
//! The name is asked of the host when an object is cooled, not kept before. What is open, and what has no
//! name any more, like a directory that is removed but somebody's working directory, stays hot. File handles (`open_by_handle_at`) would not need
//! names, but overlayfs has none that can be opened, and root file systems of containers are overlays.
//!
//! What makes an object the same never changes, so nobody who serves a file system is asked for it: of the objects that are cooled for
//! a request some may be on mounts that do not answer.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inode::{Above, Anchor, Inode, Key};
use super::inodes::Inodes;
use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys::{self, Stat};

/// Deepest chain of cold directories that is warmed.
const MAX_DEPTH: usize = 512;
/// Most attempts to cool something in one request.
const MAX_ATTEMPTS: usize = 1024;
/// Fraction of the descriptors that is freed at a time: one in so many.
const BATCH: usize = 32;

impl Inodes {
    /// Makes an object hot, and its parents if need be. `ESTALE` when it isn't where it was, `ENFILE`
    /// when no descriptor can be freed.
    pub fn warm(&mut self, nodeid: u64) -> Served {
        self.warm_below(nodeid, MAX_DEPTH)
    }

    fn warm_below(&mut self, nodeid: u64, depth: usize) -> Served {
        let inode = self.get(nodeid)?;
        if let Anchor::Hot(_) = &inode.anchor {
            return Ok(());
        }
        let (parent, depth) = (inode.parent, depth.checked_sub(1).ok_or(Errno(libc::ESTALE))?);
        self.warm_below(parent, depth)?;
        self.make_room()?;
        let (fd, stat) = self.get(nodeid)?.open_below(self.get(parent)?)?;
        self.hold(nodeid, fd, &stat)
    }

    /// Warms the object of a name that is about to change, and returns its nodeid if it is known. Where
    /// no descriptor is to spare the change goes on all the same: the guest may find the object stale.
    pub fn warm_name(&mut self, parent: u64, name: &CStr) -> Option<u64> {
        let (stat, above) = self.look_up(parent, name).ok()?;
        let nodeid = self.known_as(&stat, &above)?;
        let _ = self.warm(nodeid);
        Some(nodeid)
    }

    /// Notes that the guest has moved an object to another directory.
    pub fn moved(&mut self, nodeid: Option<u64>, parent: u64) {
        if let Some(inode) = nodeid.and_then(|nodeid| self.get_mut(nodeid).ok()) {
            inode.parent = parent;
        }
    }

    /// Whether there are cold objects at all.
    pub fn any_cold(&self) -> bool {
        self.hot < self.slab.len()
    }

    /// Whether listings should add their entries cold: they are many and few of them get used.
    pub fn is_warm(&self) -> bool {
        self.hot >= self.hot_limit / 2
    }

    /// Frees descriptors if need be, so that one more object can be hot. `ENFILE` when all are in use.
    pub fn make_room(&mut self) -> Served {
        if self.hot < self.hot_limit {
            return Ok(());
        }
        let wanted = self.hot_limit - (self.hot_limit / BATCH).max(1);
        let mut attempts = MAX_ATTEMPTS;
        // First files unused for long, then any, then directories, which others are found by.
        let old = (self.hot_limit / 2) as u32;
        for (directories, age) in [(false, old), (false, 1), (true, 1)] {
            for _ in 0..self.slab.slots() {
                if self.hot <= wanted || attempts == 0 {
                    break;
                }
                attempts -= usize::from(self.cool_next(directories, age));
            }
        }
        if self.hot < self.hot_limit { Ok(()) } else { Err(Errno(libc::ENFILE)) }
    }

    /// Moves on by one slot and cools what is in it if that is wanted; returns whether it was tried.
    fn cool_next(&mut self, directories: bool, age: u32) -> bool {
        self.hand = (self.hand + 1) % self.slab.slots().max(1);
        let Some(inode) = self.slab.at(self.hand) else { return false };
        let unused = self.now.wrapping_sub(inode.used.get()) >= age;
        let right_kind = directories == (inode.kind == libc::S_IFDIR);
        if inode.pinned || inode.opens > 0 || !unused || !right_kind || matches!(inode.anchor, Anchor::Cold(_)) {
            return false;
        }
        let cold = self.name_of(inode);
        if let (Ok((name, born)), Some(inode)) = (cold, self.slab.at_mut(self.hand)) {
            (inode.anchor, inode.born) = (Anchor::Cold(name), born);
            self.hot -= 1;
        }
        true
    }

    /// The name under which a hot object can be found again, and its birth time, which is another one since
    /// overlayfs copied it up. A file may have been removed under the name that led to it and have others:
    /// then it is stale until the guest looks up one of those.
    fn name_of(&self, inode: &Inode) -> Served<(CString, i64)> {
        let fd = inode.fd()?;
        let name = sys::name_of(&self.proc_fd, fd)?;
        let found = self.look_up(inode.parent, &name).ok();
        if let Some((stat, _)) = found.filter(|(stat, above)| Key::new(stat, above) == inode.key) {
            return Ok((name, sys::birth_time(&stat)));
        }
        let stat = sys::look(fd)?;
        let elsewhere = inode.kind != libc::S_IFDIR && stat.stx_nlink > 0;
        if elsewhere { Ok((name, sys::birth_time(&stat))) } else { Err(Errno(libc::ESTALE)) }
    }

    /// Attributes of what a name in a hot directory stands for, and what that has of the directory.
    fn look_up(&self, parent: u64, name: &CStr) -> Served<(Stat, Above)> {
        let directory = self.peek(parent)?;
        Ok((sys::look_at(directory.fd()?, name)?, directory.as_above()))
    }
}

impl Inode {
    /// Opens a cold object in its parent directory, which is hot. `ESTALE` when something else is there, or nothing.
    pub fn open_below(&self, parent: &Inode) -> Served<(OwnedFd, Stat)> {
        self.open_in(parent.fd()?, &parent.as_above())
    }

    /// [`Inode::open_below`] with a descriptor of the directory.
    pub fn open_in(&self, parent: BorrowedFd, above: &Above) -> Served<(OwnedFd, Stat)> {
        let Anchor::Cold(name) = &self.anchor else { return Err(Errno(libc::ESTALE)) };
        self.open_as(parent, name, above)
    }

    /// Opens the object under this name in this directory. `ESTALE` when something else is there, or nothing.
    pub fn open_as(&self, parent: BorrowedFd, name: &CStr, above: &Above) -> Served<(OwnedFd, Stat)> {
        const GONE: [i32; 2] = [libc::ENOENT, libc::ENOTDIR];
        let opened = sys::open_path(parent, name);
        let fd = opened.map_err(|Errno(errno)| Errno(if GONE.contains(&errno) { libc::ESTALE } else { errno }))?;
        let stat = sys::look(fd.as_fd())?;
        let same = Key::new(&stat, above) == self.key && sys::kind(&stat) == self.kind;
        // While it is held, no other object has its number.
        let born = self.fd().is_ok() || sys::birth_time(&stat) == self.born;
        if same && born { Ok((fd, stat)) } else { Err(Errno(libc::ESTALE)) }
    }
}
