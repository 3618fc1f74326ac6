//! The FUSE server: takes one request out of a chain, has it served, puts the reply in.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use zerocopy::IntoBytes;

use super::coherence::Sent;
use super::directories::Listings;
use super::fuse::{InHeader, OutHeader, ROOT_ID, WriteIn, opcode};
use super::handles::{Handle, Handles};
use super::identity::{ActingAs, Identity};
use super::inodes::{Inode, Inodes};
use super::locks::{self, Locks};
use super::request::{Errno, NAME_MAX, Output, Request, Served};
use super::session::Session;
use super::{Cache, Counters, Share, sys};
use crate::virtio::Error;
use crate::virtio::queue::Chain;

/// Largest request besides the data of a write: an extended attribute with its name (`XATTR_SIZE_MAX`).
const MAX_BODY: usize = (64 << 10) + 1024;
/// Most objects that the guest may know, hot and cold: 130 MB of table.
const MAX_INODES: usize = 1 << 20;
/// Descriptors left to the rest of the process.
const RESERVED_DESCRIPTORS: u64 = 128;
/// Most descriptors used, whatever the limit says: what Linux allows unless told otherwise (`nr_open`).
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// A share in use. Its place in [`Server::shares`] is the share's number in an inode's key.
pub(super) struct Root {
    /// Its name in the device's root directory.
    pub name: String,
    /// Its own nodeid.
    pub nodeid: u64,
    /// Whether changes fail.
    pub read_only: bool,
    /// What the guest may keep.
    pub cache: Cache,
}

/// All state of the device that is not virtio's.
pub(super) struct Server {
    /// What the root directory holds; a number that none has now is `None`.
    pub shares: Vec<Option<Root>>,
    /// What the guest knows.
    pub inodes: Inodes,
    /// What the guest has open.
    pub handles: Handles,
    /// What was agreed on with the guest.
    pub session: Session,
    /// Locks that hold on the host.
    pub locks: Locks,
    /// Whose opens were refused, for the guest to look again.
    pub sent: Sent,
    /// Directory entries read ahead.
    pub listings: Listings,
    /// `/proc/self/fd`, `O_PATH`.
    pub proc_fd: Arc<OwnedFd>,
    /// For replies of variable size that must be looked at before the guest gets them.
    pub scratch: Vec<u8>,
    identity: Option<Identity>,
    body: Vec<u8>,
    counters: Arc<Counters>,
}

/// How one opcode is served. What it writes to the output is the reply's body if it succeeds.
type Operation = fn(&mut Server, &mut Request, &mut Output) -> Served;

impl Server {
    /// A server of these shares. It takes three quarters of the descriptors that `RLIMIT_NOFILE` allows
    /// for inodes and the rest, but a reserve and a share for locks, for handles.
    pub fn new(shares: Vec<Share>) -> Result<Self, Error> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX_DESCRIPTORS).min(MAX_DESCRIPTORS);
        let descriptors = limit.saturating_sub(RESERVED_DESCRIPTORS).max(RESERVED_DESCRIPTORS) as usize;
        let locks = locks::MOST.min(descriptors / 16);
        let descriptors = descriptors - locks;
        let mut server = Self::with_limits(shares, descriptors - descriptors / 4, descriptors / 4)?;
        server.locks = Locks::new(locks);
        Ok(server)
    }

    /// A server with at most so many descriptors of known objects and of open files.
    pub fn with_limits(shares: Vec<Share>, inodes: usize, handles: usize) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc_fd = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty());
        let proc_fd = Arc::new(proc_fd.map_err(|error| Error::Host("open /proc/self/fd", error.into()))?);
        let mut server = Self {
            shares: Vec::new(),
            inodes: Inodes::new(MAX_INODES, inodes, Arc::clone(&proc_fd)),
            handles: Handles::new(handles),
            session: Session::default(),
            locks: Locks::new(locks::MOST),
            sent: Sent::default(),
            listings: Listings::default(),
            proc_fd,
            scratch: Vec::new(),
            identity: None,
            body: Vec::new(),
            counters: Arc::default(),
        };
        for share in shares {
            server.add_share(share)?;
        }
        Ok(server)
    }

    /// Adds an entry to the root directory.
    pub fn add_share(&mut self, share: Share) -> Result<(), Error> {
        let name = share.name.as_bytes();
        let bad =
            matches!(name, b"" | b"." | b"..") || name.len() > NAME_MAX || name.iter().any(|b| b"/\0".contains(b));
        if bad || self.all_shares().any(|known| known.name == share.name) {
            return Err(Error::Protocol("the name of a share is not a file name, or given twice"));
        }
        let free = self.shares.iter().position(Option::is_none).unwrap_or(self.shares.len());
        let number = u16::try_from(free).map_err(|_| Error::Protocol("more than 65536 shares"))?;
        let stat = sys::stat(share.root.as_fd())
            .map_err(|error| Error::Host("look at a share", std::io::Error::from_raw_os_error(error.0)))?;
        let nodeid = self.inodes.pin(share.root, &stat, number);
        let nodeid = nodeid.map_err(|_| Error::Protocol("RLIMIT_NOFILE is too low for this many shares"))?;
        if free == self.shares.len() {
            self.shares.push(None);
        }
        if let Some(slot) = self.shares.get_mut(free) {
            *slot = Some(Root { name: share.name, nodeid, read_only: share.read_only, cache: share.cache });
        }
        Ok(())
    }

    /// Takes an entry out of the root directory, with all that the guest knows or has open below it.
    pub fn remove_share(&mut self, name: &str) {
        let named = |share: &Option<Root>| share.as_ref().is_some_and(|share| share.name == name);
        let Some(number) = self.shares.iter().position(named) else { return };
        self.handles.close_share(number);
        self.inodes.remove_share(number);
        self.locks.keep(|fh| self.handles.get(fh).is_ok());
        self.listings = Listings::default();
        if let Some(slot) = self.shares.get_mut(number) {
            *slot = None;
        }
    }

    /// What the root directory holds now.
    pub fn all_shares(&self) -> impl Iterator<Item = &Root> {
        self.shares.iter().flatten()
    }

    /// Makes the calling thread the one that serves, see [`Identity::adopt_thread`].
    pub fn enter_thread(&mut self) -> Result<(), Error> {
        self.identity = Some(Identity::adopt_thread(&self.proc_fd)?);
        Ok(())
    }

    /// How often each request came.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Forgets all that the guest knows and has open, and what was agreed on.
    pub fn forget_guest(&mut self) {
        self.handles.close_all();
        self.locks.clear();
        self.inodes.forget_all();
        self.sent = Sent::default();
        self.listings = Listings::default();
        self.session = Session::default();
    }

    /// Serves the request of a chain; returns how many bytes the reply has (0: none is due).
    ///
    /// Fails when there is no whole header, or no room for the header of a reply that is due.
    pub fn serve(&mut self, chain: &mut Chain) -> Result<u32, Error> {
        let total = chain.readable.len();
        let mut header = InHeader::default();
        if chain.readable.read(header.as_mut_bytes()) < size_of::<InHeader>() {
            return Err(Error::Protocol("a request shorter than its header"));
        }
        self.counters.count(header.opcode);
        let mut output = Output::new(chain.writable.split_off(size_of::<OutHeader>()));
        let result = if header.len as usize == total && header.total_extlen == 0 {
            self.perform(header, chain, &mut output)
        } else {
            Err(Errno(libc::EINVAL))
        };
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT) {
            return Ok(0);
        }
        let (error, written) = match result {
            Ok(()) => (0, output.written()),
            Err(Errno(errno)) => (-errno, 0),
        };
        let len = (size_of::<OutHeader>() + written) as u32;
        let reply = OutHeader { len, error, unique: header.unique };
        if chain.writable.write(reply.as_bytes()) < size_of::<OutHeader>() {
            return Err(Error::Protocol("no room for the header of a reply"));
        }
        Ok(len)
    }

    /// Copies the request's body out of guest memory and calls the operation.
    fn perform(&mut self, header: InHeader, chain: &mut Chain, output: &mut Output) -> Served {
        let operation = operation(header.opcode).ok_or(Errno(libc::ENOSYS))?;
        if !self.session.is_open() && header.opcode != opcode::INIT {
            return Err(Errno(libc::ENOTCONN));
        }
        let data = match header.opcode {
            opcode::WRITE => chain.readable.split_off(size_of::<WriteIn>()),
            _ => Default::default(),
        };
        if chain.readable.len() > MAX_BODY {
            return Err(Errno(libc::E2BIG));
        }
        let mut body = std::mem::take(&mut self.body);
        self.inodes.begin();
        body.resize(chain.readable.len(), 0);
        chain.readable.read(&mut body);
        let mut request = Request { header, body: &body, data };
        let result = self.warm(&header).and_then(|()| operation(self, &mut request, output));
        self.body = body;
        result
    }

    /// Makes the object that a request is about hot, unless the request is about an open file or none.
    fn warm(&mut self, header: &InHeader) -> Served {
        use opcode::*;
        match header.opcode {
            FORGET | BATCH_FORGET | INTERRUPT | INIT | DESTROY | READ | WRITE | READDIR | FLUSH | RELEASE
            | RELEASEDIR | FSYNC | FSYNCDIR | LSEEK | GETLK | SETLK | FALLOCATE | COPY_FILE_RANGE => Ok(()),
            _ if header.nodeid == ROOT_ID => Ok(()),
            _ => self.inodes.warm(header.nodeid),
        }
    }

    /// The object of a nodeid, which is not the device's root directory (`EROFS` there).
    pub fn inode(&self, nodeid: u64) -> Served<&Inode> {
        if nodeid == ROOT_ID { Err(Errno(libc::EROFS)) } else { self.inodes.get(nodeid) }
    }

    /// The object of a nodeid, to be changed: `EROFS` in the root directory and in read-only shares.
    pub fn writable(&self, nodeid: u64) -> Served<&Inode> {
        let inode = self.inode(nodeid)?;
        if self.is_read_only(inode) { Err(Errno(libc::EROFS)) } else { Ok(inode) }
    }

    /// Whether an object is in a read-only share.
    pub fn is_read_only(&self, inode: &Inode) -> bool {
        self.shares.get(inode.share()).and_then(Option::as_ref).is_none_or(|share| share.read_only)
    }

    /// What the guest may keep of the share of this number.
    pub fn cache_of(&self, share: usize) -> &Cache {
        const NOTHING: Cache = Cache { valid: Duration::ZERO, exclusive: false, host_locks: false };
        self.shares.get(share).and_then(Option::as_ref).map_or(&NOTHING, |share| &share.cache)
    }

    /// The guest has changed an object, and its kernel knows that its attributes are others now.
    pub fn changed(&mut self, nodeid: u64) {
        let stat = self.inodes.peek(nodeid).and_then(|inode| sys::stat(inode.fd()?));
        if let Ok(inode) = self.inodes.get_mut(nodeid) {
            match stat {
                Ok(stat) if stat.stx_nlink > 0 => inode.told(&stat),
                _ => inode.changed(),
            }
        }
    }

    /// The guest has changed what it has open.
    pub fn changed_open(&mut self, fh: u64) {
        self.handles.nodeid(fh).into_iter().for_each(|nodeid| self.changed(nodeid));
    }

    /// Adds a handle of an object.
    pub fn add_handle(&mut self, handle: Handle, nodeid: u64) -> Served<u64> {
        let share = self.inodes.peek(nodeid).ok().map(Inode::share);
        let fh = self.handles.insert(handle, nodeid, share)?;
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

    /// Acts as the caller of a request until the guard is dropped.
    pub fn act_as_caller(&self, header: &InHeader, umask: u32) -> Served<ActingAs<'_>> {
        self.identity.as_ref().ok_or(Errno(libc::EIO))?.act_as(header.uid, header.gid, umask)
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

    /// The share of this name.
    pub fn share(&self, name: &CStr) -> Served<&Root> {
        let found = self.all_shares().find(|share| share.name.as_bytes() == name.to_bytes());
        found.ok_or(Errno(libc::ENOENT))
    }
}

/// Who serves an opcode; `None` for those that are not offered.
fn operation(code: u32) -> Option<Operation> {
    use opcode::*;
    Some(match code {
        INIT => Server::init,
        DESTROY => Server::destroy,
        SYNCFS => Server::syncfs,
        INTERRUPT => |_, _, _| Ok(()),
        LOOKUP => Server::lookup,
        FORGET => Server::forget,
        BATCH_FORGET => Server::batch_forget,
        GETATTR => Server::getattr,
        STATX => Server::statx,
        SETATTR => Server::setattr,
        STATFS => Server::statfs,
        READLINK => Server::readlink,
        SYMLINK => Server::symlink,
        MKNOD => Server::mknod,
        MKDIR => Server::mkdir,
        UNLINK => Server::unlink,
        RMDIR => Server::rmdir,
        RENAME => Server::rename,
        RENAME2 => Server::rename2,
        LINK => Server::link,
        OPEN => Server::open,
        CREATE => Server::create,
        TMPFILE => Server::tmpfile,
        READ => Server::read,
        WRITE => Server::write,
        FLUSH => Server::flush,
        RELEASE | RELEASEDIR => Server::release,
        FSYNC | FSYNCDIR => Server::fsync,
        LSEEK => Server::lseek,
        GETLK => Server::getlk,
        SETLK => Server::setlk,
        FALLOCATE => Server::fallocate,
        COPY_FILE_RANGE => Server::copy_file_range,
        OPENDIR => Server::opendir,
        READDIR => Server::readdir,
        READDIRPLUS => Server::readdirplus,
        GETXATTR => Server::getxattr,
        SETXATTR => Server::setxattr,
        LISTXATTR => Server::listxattr,
        REMOVEXATTR => Server::removexattr,
        _ => return None,
    })
}
