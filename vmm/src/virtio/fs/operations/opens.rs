//! Requests that open and make regular files.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use crate::virtio::fs::fuse::{
    ATTR_RECENT, CREATE_OR_LOOKUP, CreateIn, EntryOut, FOPEN_CONTENT, FOPEN_KEEP_CACHE, FOPEN_LOOKED_UP, FOPEN_NOFLUSH,
    FOPEN_SERVER_LOCKS, InHeader, OPEN_KILL_SUIDGID, OpenIn, OpenOut, init,
};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::sys;
use crate::virtio::fs::table::handles::Handle;
use crate::virtio::fs::table::inode::Inode;
use crate::virtio::io;

/// Largest content that comes with the reply which opens a file.
const CONTENT_MAX: u64 = 16 << 10;
/// Flags of the guest's `open` that the host's gets. Not `O_APPEND`: a mapped page is written where it
/// belongs through any handle of the file, so appending is asked for in each write. Not `O_DIRECT`: the
/// module's page says why. Not `O_CREAT`, `O_EXCL` and `O_NOFOLLOW`: names are long resolved.
const PASSED: OFlags = OFlags::RDWR
    .union(OFlags::WRONLY)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME);
/// File systems where `close` reports nothing that `write` didn't: `FLUSH` would be a wasted request.
/// ext4, xfs, btrfs, tmpfs, overlayfs, f2fs (`linux/magic.h`).
const SILENT_CLOSE: [i64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010];

impl Server {
    /// `OPEN`. Where the guest left room for it, the content of a small file comes with the reply.
    pub fn open(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: OpenIn = request.take()?;
        if args.flags & libc::O_TRUNC as u32 != 0 {
            self.takes_long()?;
        }
        let nodeid = request.header.nodeid;
        let (keeps, size) = self.check_known(&request.header)?;
        let file = self.open_inode(nodeid, args.flags, args.open_flags)?;
        // What the guest is to drop is not brought.
        let content = if keeps && reads(args.flags) { self.bring_content(&file, size, 0, output) } else { 0 };
        let mut opened = self.opened(nodeid, file, args.flags, keeps)?;
        opened.open_flags |= content;
        output.put(&opened).inspect_err(|_| self.take_back(opened.fh))
    }

    /// Checks that the guest knows what it opens, before the open changes anything; `ESTALE` has it look again. Returns
    /// whether the guest's pages of the object are still right, and its size.
    fn check_known(&mut self, header: &InHeader) -> Served<(bool, u64)> {
        let inode = self.inode(header.nodeid)?;
        let (stat, exclusive) = (sys::stat(inode.fd()?)?, self.cache_of(inode.way).exclusive);
        let began = self.inodes.began;
        let outdated = inode.is_outdated(&stat) && !exclusive;
        if self.sent.again((header.nodeid, header.pid), outdated) {
            return Err(Errno(libc::ESTALE));
        }
        let inode = self.inodes.get_mut(header.nodeid)?;
        Ok((inode.keeps_pages(began.is_soon_after(&stat), &stat) || exclusive, stat.stx_size))
    }

    /// `LOOKUP_OPEN`: finds a name, and opens what is there for reading if that is a regular file. What cannot be opened is
    /// looked up: the guest's own request to open it tells the reason.
    pub fn lookup_open(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<OpenIn>()?, request.last_name()?);
        let parent = request.header.nodeid;
        let entry = match self.find(parent, name) {
            Err(Errno(libc::ENOENT)) if !self.absence_valid(parent).is_zero() => {
                EntryOut::nothing(self.absence_valid(parent))
            }
            found => found?,
        };
        // To open it in another way may change it, and the guest has not said yet that its process may.
        let file = if reads(args.flags) { self.open_inode(entry.nodeid, args.flags, 0).ok() } else { None };
        match file {
            Some(file) => self.reply_entry_opened(entry, file, args.flags, output),
            None => self.reply_looked_up(entry, output),
        }
    }

    /// Brings all of a file, open for reading, behind the next `skip` bytes of the reply and what says that it is open. Returns
    /// a flag for that. Content that would have to be waited for is left to `READ`.
    fn bring_content(&self, file: impl AsFd, size: u64, skip: usize, output: &mut Output) -> u32 {
        let skip = skip + size_of::<OpenOut>();
        let room = output.data.len().saturating_sub(skip) as u64;
        // Room alone says nothing: other drivers leave more than they want to be filled.
        let wanted = self.session.has(init::OPEN_AT_ONCE) && size > 0;
        if !wanted || size > CONTENT_MAX.min(room) {
            return 0;
        }
        let read = if self.may_wait { io::read } else { io::read_cached };
        let whole = output.fill_behind(skip, size as usize, |data| read(file.as_fd(), data, 0).unwrap_or(0));
        if whole { FOPEN_CONTENT } else { 0 }
    }

    fn open_inode(&self, nodeid: u64, flags: u32, open_flags: u32) -> Served<OwnedFd> {
        let inode = self.inode(nodeid)?;
        let append = OFlags::from_bits_retain(flags) & OFlags::APPEND;
        let flags = self.host_flags(inode, flags)?;
        let changes = flags.intersects(OFlags::ACCMODE | OFlags::TRUNC);
        if changes && !append.is_empty() && sys::is_append_only(inode.fd()?)? {
            // Linux opens such a file in no other way, and nothing is ever written at an offset there.
            return self.reopen(inode, flags | append);
        }
        let drops = open_flags & OPEN_KILL_SUIDGID != 0 || self.policy_of(inode.way).drops_set_id();
        if !flags.contains(OFlags::TRUNC) {
            return self.reopen(inode, flags);
        }
        if !drops {
            let before = sys::present_set_id(inode.fd()?, inode.set_id)?;
            let file = self.reopen(inode, flags)?;
            sys::restore_set_id(file.as_fd(), before)?;
            return Ok(file);
        }
        let file = self.reopen(inode, flags - OFlags::TRUNC)?;
        sys::drop_suid(file.as_fd())?;
        rustix::fs::ftruncate(&file, 0)?;
        Ok(file)
    }

    /// The flags to open an object with. `EROFS` if they change something in a read-only share.
    fn host_flags(&self, inode: &Inode, flags: u32) -> Served<OFlags> {
        if inode.kind != libc::S_IFREG {
            return Err(Errno(if inode.kind == libc::S_IFDIR { libc::EISDIR } else { libc::ENXIO }));
        }
        let flags = OFlags::from_bits_retain(flags) & PASSED;
        let reads = flags & OFlags::ACCMODE == OFlags::RDONLY;
        if flags & OFlags::ACCMODE == OFlags::ACCMODE {
            return Err(Errno(libc::EINVAL));
        }
        if !self.is_read_only(inode) {
            return Ok(flags);
        }
        // Not even a time stamp changes there.
        if reads && !flags.contains(OFlags::TRUNC) { Ok(flags | OFlags::NOATIME) } else { Err(Errno(libc::EROFS)) }
    }

    /// Adds an open file to the handles and says what the guest may do with its cache.
    fn opened(&mut self, nodeid: u64, file: OwnedFd, flags: u32, keeps: bool) -> Served<OpenOut> {
        let mut open_flags = if keeps { FOPEN_KEEP_CACHE } else { 0 };
        if flags & libc::O_TRUNC as u32 != 0 {
            self.changed(nodeid);
        }
        let inode = self.inodes.peek(nodeid)?;
        let rules = self.shares.rules(inode.way);
        let local = inode.key.mount == 0 && rules.local;
        if reads(flags) || local || has_silent_close(file.as_fd()) {
            open_flags |= FOPEN_NOFLUSH;
        }
        if rules.cache.host_locks {
            open_flags |= FOPEN_SERVER_LOCKS;
        }
        let fh = self.add_handle(Handle::File(file), nodeid)?;
        Ok(OpenOut { fh, open_flags, ..OpenOut::default() })
    }

    /// `CREATE`: makes and opens a file, or opens the one that came into being meanwhile. A guest that does not know whether
    /// there is one has that looked up: who may open it, and how, is the guest's to say.
    pub fn create(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<CreateIn>()?, request.last_name()?);
        match self.make(request, name, &args, OFlags::CREATE | OFlags::EXCL) {
            Ok(file) => self.reply_created(request, &args, file, output),
            Err(error) if args.open_flags & CREATE_OR_LOOKUP != 0 => match self.find(request.header.nodeid, name) {
                Ok(entry) => self.reply_looked_up(entry, output),
                // What is there on another mount is left to the device's thread.
                Err(found) if error == Errno(libc::EEXIST) || found == Errno::WOULD_WAIT => Err(found),
                Err(_) => Err(error),
            },
            Err(Errno(libc::EEXIST)) if args.flags & libc::O_EXCL as u32 == 0 => {
                self.open_existing(request, name, &args, output)
            }
            Err(error) => Err(error),
        }
    }

    /// `TMPFILE`: makes and opens a file without a name. The guest sends a name that means nothing.
    pub fn tmpfile(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: CreateIn = request.take()?;
        let file = self.make(request, c".", &args, OFlags::TMPFILE)?;
        self.reply_created(request, &args, file, output)
    }

    fn make(&self, request: &Request, name: &CStr, args: &CreateIn, how: OFlags) -> Served<OwnedFd> {
        let directory = self.writable(request.header.nodeid)?;
        let flags = OFlags::from_bits_retain(args.flags) & PASSED.difference(OFlags::TRUNC);
        // Without a name only O_EXCL says that there will never be one.
        let flags = flags | how | (OFlags::from_bits_retain(args.flags) & OFlags::EXCL);
        let mode = self.policy_of(directory.way).new_mode(args.mode);
        let _caller = self.act_as_caller(&request.header, args.umask)?;
        sys::create(directory.fd()?, name, flags, mode)
    }

    fn reply_created(&mut self, request: &Request, args: &CreateIn, file: OwnedFd, output: &mut Output) -> Served {
        let above = self.inode(request.header.nodeid)?.as_above();
        // Not by name, which may be another's by now.
        let path = sys::reopen(&self.proc_fd, file.as_fd(), OFlags::PATH)?;
        let stat = sys::stat(path.as_fd())?;
        let nodeid = self.inodes.adopt(path, &stat, request.header.nodeid, &above)?;
        let (name, (attr, attributes)) = (self.cache_of(above.way).valid, self.report(nodeid, &stat)?);
        let entry = EntryOut::new(nodeid, attr, name, attributes);
        self.reply_entry_opened(entry, file, args.flags, output)
    }

    fn open_existing(&mut self, request: &Request, name: &CStr, args: &CreateIn, output: &mut Output) -> Served {
        let entry = self.find(request.header.nodeid, name)?;
        match self.open_inode(entry.nodeid, args.flags, args.open_flags) {
            Ok(file) => self.reply_entry_opened(entry, file, args.flags, output),
            Err(error) => {
                self.inodes.forget(entry.nodeid, 1);
                Err(error)
            }
        }
    }

    /// Replies with an entry and an open file, or takes back both.
    fn reply_entry_opened(&mut self, entry: EntryOut, file: OwnedFd, flags: u32, output: &mut Output) -> Served {
        let nodeid = entry.nodeid;
        let skip = size_of::<EntryOut>();
        let content = if reads(flags) { self.bring_content(&file, entry.attr.size, skip, output) } else { 0 };
        // The guest has just heard of it: there is nothing to look up again.
        let keeps = self.inodes.get_mut(nodeid).map(|inode| inode.keeps_reported(entry.attr.flags & ATTR_RECENT != 0));
        let result = keeps.and_then(|keeps| self.opened(nodeid, file, flags, keeps)).and_then(|mut opened| {
            opened.open_flags |= content;
            let put = output.put(&entry).and_then(|()| output.put(&opened));
            put.inspect_err(|_| self.take_back(opened.fh))
        });
        result.inspect_err(|_| self.inodes.forget(nodeid, 1))
    }

    /// Replies with an entry alone.
    fn reply_looked_up(&mut self, entry: EntryOut, output: &mut Output) -> Served {
        let nothing = OpenOut { open_flags: FOPEN_LOOKED_UP, ..OpenOut::default() };
        let put = output.put(&entry).and_then(|()| output.put(&nothing));
        put.inspect_err(|_| self.inodes.forget(entry.nodeid, 1))
    }
}

/// Whether a guest that opens a file with these flags will only read it.
fn reads(flags: u32) -> bool {
    flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32 == libc::O_RDONLY as u32
}

fn has_silent_close(file: BorrowedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|host| SILENT_CLOSE.contains(&host.f_type))
}
