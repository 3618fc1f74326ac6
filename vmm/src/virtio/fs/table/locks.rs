//! Table of the guest's locks that hold on the host.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

/// Most owners of locks at a time, however many descriptors there are; each owner takes one.
pub const MOST: usize = 4096;

/// Owners of locks, and handles that have one.
pub struct Locks {
    /// Most owners that the table takes.
    pub limit: usize,
    /// Owners by nodeid of the file and the guest's number of the owner.
    pub owners: HashMap<(u64, u64), Owner>,
    /// Handles with a `flock` lock.
    pub flocked: HashSet<u64>,
}

/// An owner of locks, as the guest names it.
pub struct Owner {
    /// Open file of this owner only, which carries the owner's locks.
    pub file: OwnedFd,
    /// The handle that the last lock was set through.
    pub fh: u64,
    /// The owner's process in the guest.
    pub pid: u32,
}

impl Locks {
    /// An empty table of at most `limit` owners.
    pub fn new(limit: usize) -> Self {
        Self { limit, owners: HashMap::new(), flocked: HashSet::new() }
    }

    /// Drops all locks.
    pub fn clear(&mut self) {
        self.keep(|_| false);
    }

    /// Whether there are no locks.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.flocked.is_empty()
    }

    /// Drops the locks of an owner that closes a file.
    pub fn drop_owner(&mut self, nodeid: u64, owner: u64) {
        self.owners.remove(&(nodeid, owner));
    }

    /// Drops the locks that were set through a handle.
    pub fn drop_handle(&mut self, fh: u64) {
        self.flocked.remove(&fh);
        self.owners.retain(|_, owner| owner.fh != fh);
    }

    /// Drops the locks of handles that are not there any more.
    pub fn keep(&mut self, is_open: impl Fn(u64) -> bool) {
        self.flocked.retain(|&fh| is_open(fh));
        self.owners.retain(|_, owner| is_open(owner.fh));
    }

    /// A process of the guest that may have the lock that is in an owner's way; 0 for one elsewhere.
    pub fn other(&self, nodeid: u64, owner: u64) -> u32 {
        let others = self.owners.iter().filter(|((node, of), _)| *node == nodeid && *of != owner);
        others.map(|(_, owner)| owner.pid).next().unwrap_or_default()
    }
}
