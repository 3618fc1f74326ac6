//! The FUSE server's state, and what the operations have in common.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};

use super::coherence::Sent;
use super::fuse::InHeader;
use super::identity::{self, ActingAs};
use super::nodes::MakeNode;
use super::place::WayId;
use super::policy::Policy;
use super::request::{Errno, Served};
use super::session::Session;
use super::shares::{self, Shares};
use super::sys::SetId;
use super::table::handles::{Handle, Handles};
use super::table::inode::Inode;
use super::table::inodes::Inodes;
use super::table::listings::Listings;
use super::table::locks::{self, Locks};
use super::told::Told;
use super::{Cache, Counters, Share, sys};
use crate::virtio::Error;

/// Most objects that the guest may know, hot and cold: 138 MB of table.
const MAX_INODES: usize = 1 << 20;
/// Descriptors left to the rest of the process.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Most descriptors used, whatever the limit says: what Linux allows unless told otherwise (`nr_open`).
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// A request that is done in pieces, so that it does not keep the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// Number of the request.
    pub unique: u64,
    /// Bytes that are done.
    pub done: u64,
}

/// All state of the device that is not virtio's.
pub(super) struct Server {
    /// What the device's own directories hold.
    pub shares: Shares,
    /// What the guest knows.
    pub inodes: Inodes,
    /// What the guest has open.
    pub handles: Handles,
    /// What was agreed on with the guest.
    pub session: Session,
    /// Locks that hold on the host.
    pub locks: Locks,
    /// Opens that were refused so that the guest looks again.
    pub sent: Sent,
    /// Directory entries read ahead.
    pub listings: Listings,
    /// `/proc/self/fd`, `O_PATH`.
    pub proc_fd: Arc<OwnedFd>,
    /// Buffer for replies of variable size that the server looks at before the guest gets them.
    pub scratch: Vec<u8>,
    /// Whether a request may wait for something: not on a vCPU's thread.
    pub may_wait: bool,
    /// Whether the guest may make one request of several, and tell of what it has closed later than it closes it.
    pub at_once: bool,
    /// Makes device nodes, where this process may not.
    pub node_maker: Option<Box<dyn MakeNode>>,
    /// The body of the present request, copied out of guest memory.
    pub body: Vec<u8>,
    /// A request that goes on when its chain is served again, and how far it has come.
    pub unfinished: Option<Unfinished>,
    /// What the guest watches, and is to be told of that.
    pub told: Told,
    /// Number of requests by opcode.
    pub counters: Arc<Counters>,
}

impl Server {
    /// A server of these shares. Of so many sixteenths of the descriptors that `RLIMIT_NOFILE` allows, without a reserve and a part
    /// for locks, inodes get three quarters and handles the rest.
    pub fn new(shares: Vec<Share>, sixteenths: usize) -> Result<Self, Error> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
        let descriptors = limit.saturating_sub(RESERVED_DESCRIPTORS).max(RESERVED_DESCRIPTORS) as usize;
        let descriptors = (descriptors / 16).saturating_mul(sixteenths.clamp(1, 16));
        let locks = locks::MOST.min(descriptors / 16);
        let descriptors = descriptors - locks;
        let mut server = Self::with_limits(shares, descriptors - descriptors / 4, descriptors / 4)?;
        server.locks = Locks::new(locks);
        Ok(server)
    }

    /// A server with at most so many descriptors of known objects and of open files.
    pub fn with_limits(shares: Vec<Share>, inodes: usize, handles: usize) -> Result<Self, Error> {
        let proc_fd = sys::own_descriptors().map_err(|error| Error::Host("open /proc/self/fd", error.into()))?;
        let proc_fd = Arc::new(proc_fd);
        let mut server = Self {
            shares: Shares::default(),
            inodes: Inodes::new(MAX_INODES, inodes, Arc::clone(&proc_fd)),
            handles: Handles::new(handles),
            session: Session::default(),
            locks: Locks::new(locks::MOST),
            sent: Sent::default(),
            listings: Listings::default(),
            proc_fd,
            scratch: Vec::new(),
            may_wait: true,
            at_once: true,
            node_maker: None,
            body: Vec::new(),
            unfinished: None,
            told: Told::default(),
            counters: Arc::default(),
        };
        for share in shares {
            server.add_share(share)?;
        }
        Ok(server)
    }

    /// Forgets all that the guest knows and has open, and what was agreed on.
    pub fn forget_guest(&mut self) {
        // Roots of shares stay in the table.
        for nodeid in self.handles.close_all() {
            self.inodes.closed(nodeid);
        }
        self.locks.clear();
        self.unfinished = None;
        self.unwatch_all();
        self.inodes.forget_all();
        self.sent = Sent::default();
        self.listings = Listings::default();
        self.session = Session::default();
    }

    /// Takes back lookups of an object; the guest knows it no more when it has taken back all.
    pub fn forget_lookups(&mut self, nodeid: u64, count: u64) {
        if self.told.marks.has(nodeid) && self.inodes.peek(nodeid).is_ok_and(|inode| inode.lookups <= count) {
            self.unwatch(nodeid);
        }
        self.inodes.forget(nodeid, count);
    }

    /// The object of a nodeid, which is not one of the device's own directories (`EROFS` there).
    pub fn inode(&self, nodeid: u64) -> Served<&Inode> {
        if shares::is_own(nodeid) { Err(Errno(libc::EROFS)) } else { self.inodes.get(nodeid) }
    }

    /// The object of a nodeid, to be changed: `EROFS` in the device's own directories and where shares are read-only.
    pub fn writable(&self, nodeid: u64) -> Served<&Inode> {
        let inode = self.inode(nodeid)?;
        if self.is_read_only(inode) { Err(Errno(libc::EROFS)) } else { Ok(inode) }
    }

    /// Whether an object is only in shares that are read-only.
    pub fn is_read_only(&self, inode: &Inode) -> bool {
        self.shares.rules(inode.way).read_only
    }

    /// What the guest may keep of objects that are reached this way.
    pub fn cache_of(&self, way: WayId) -> &Cache {
        &self.shares.rules(way).cache
    }

    /// What the guest may do to objects that are reached this way.
    pub fn policy_of(&self, way: WayId) -> &Policy {
        &self.shares.rules(way).policy
    }

    /// What the guest may do to what a handle is of.
    pub fn policy_of_open(&self, fh: u64) -> &Policy {
        self.policy_of(self.handles.way(fh).unwrap_or(WayId::MAX))
    }

    /// Setuid and setgid bits of an object, as the guest knows them.
    pub fn set_id(&self, nodeid: u64) -> SetId {
        self.inodes.peek(nodeid).map_or_else(|_| SetId::default(), |inode| inode.set_id)
    }

    /// Notes that the guest has changed an object: the guest's kernel knows that the attributes are others now.
    pub fn changed(&mut self, nodeid: u64) {
        let stat = self.inodes.peek(nodeid).and_then(|inode| sys::stat(inode.fd()?));
        if let Ok(inode) = self.inodes.get_mut(nodeid) {
            match stat {
                Ok(stat) if stat.stx_nlink > 0 => inode.reported(&stat),
                _ => inode.changed(),
            }
        }
    }

    /// Notes that the guest has changed the object of a handle.
    pub fn changed_open(&mut self, fh: u64) {
        self.handles.nodeid(fh).into_iter().for_each(|nodeid| self.changed(nodeid));
    }

    /// Adds a handle of an object.
    pub fn add_handle(&mut self, handle: Handle, nodeid: u64) -> Served<u64> {
        let way = self.inodes.peek(nodeid).ok().map(|inode| inode.way);
        let fh = self.handles.insert(handle, nodeid, way)?;
        self.inodes.opened(nodeid);
        Ok(fh)
    }

    /// Closes a handle. `EBADF` when there is none.
    pub fn close_handle(&mut self, fh: u64) -> Served {
        let nodeid = self.handles.remove(fh)?;
        self.inodes.closed(nodeid);
        Ok(())
    }

    /// Closes a handle that the guest never hears of.
    pub fn take_back(&mut self, fh: u64) {
        let _ = self.close_handle(fh);
    }

    /// Acts as the caller of a request that makes something in a directory, until the guard is dropped. `EPERM` when the
    /// guest may not make anything as this caller.
    pub fn act_as_caller(&self, header: &InHeader, umask: u32) -> Served<ActingAs> {
        self.policy_of(self.inode(header.nodeid)?.way).check_maker(header.uid, header.gid)?;
        identity::act_as(header.uid, header.gid, umask)
    }

    /// Opens an object of the table for I/O. `ENXIO` where the host must not open it.
    pub fn reopen(&self, inode: &Inode, flags: OFlags) -> Served<OwnedFd> {
        inode.check_openable()?;
        match sys::reopen(&self.proc_fd, inode.fd()?, flags) {
            // The guest's kernel knows who may ask for it; on the host this process may not be the one.
            Err(Errno(libc::EPERM)) if flags.contains(OFlags::NOATIME) => {
                sys::reopen(&self.proc_fd, inode.fd()?, flags - OFlags::NOATIME)
            }
            result => result,
        }
    }
}
