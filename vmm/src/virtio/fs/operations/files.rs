//! Requests about regular files and what is open.

use std::ffi::CStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, OFlags};

use crate::virtio::fs::fuse::{
    CopyFileRangeIn, CreateIn, EntryOut, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_SERVER_LOCKS, FSYNC_FDATASYNC,
    FallocateIn, FlushIn, FsyncIn, InHeader, LseekIn, LseekOut, OPEN_KILL_SUIDGID, OpenIn, OpenOut, ReadIn, ReleaseIn,
    WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::{Server, Unfinished};
use crate::virtio::fs::sys::{self, SetId};
use crate::virtio::fs::table::handles::Handle;
use crate::virtio::fs::table::inode::Inode;
use crate::virtio::io;

/// Flags of the guest's `open` that the host's gets. Not `O_APPEND`: a mapped page is written where it
/// belongs through any handle of the file, so appending is asked for in each write. Not `O_DIRECT`: the
/// module's page says why. Not `O_CREAT`, `O_EXCL` and `O_NOFOLLOW`: names are long resolved.
const PASSED: OFlags = OFlags::RDWR
    .union(OFlags::WRONLY)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME);
/// Most bytes that one `COPY_FILE_RANGE` copies: others wait meanwhile.
const COPY_MAX: u64 = 64 << 20;
/// Most bytes that one step of `FALLOCATE` allocates or frees.
const SPACE_MAX: u64 = 64 << 20;
/// What `FALLOCATE` may ask for.
const SPACE: FallocateFlags =
    FallocateFlags::KEEP_SIZE.union(FallocateFlags::PUNCH_HOLE).union(FallocateFlags::ZERO_RANGE);
/// File systems where `close` reports nothing that `write` didn't: `FLUSH` would be a wasted request.
/// ext4, xfs, btrfs, tmpfs, overlayfs, f2fs (`linux/magic.h`).
const SILENT_CLOSE: [i64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010];

impl Server {
    /// `OPEN`.
    pub fn open(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: OpenIn = request.take()?;
        if args.flags & libc::O_TRUNC as u32 != 0 {
            self.takes_long()?;
        }
        let keeps = self.check_known(&request.header)?;
        let file = self.open_inode(request.header.nodeid, args.flags, args.open_flags)?;
        let opened = self.opened(request.header.nodeid, file, args.flags, keeps)?;
        self.reply_opened(opened, output)
    }

    /// Checks that the guest knows what it opens, before the open changes anything; `ESTALE` has it look again. Returns
    /// whether the guest's pages of the object are still right.
    fn check_known(&mut self, header: &InHeader) -> Served<bool> {
        let inode = self.inode(header.nodeid)?;
        let (stat, exclusive) = (sys::stat(inode.fd()?)?, self.cache_of(inode.way).exclusive);
        let began = self.inodes.began;
        let outdated = inode.is_outdated(&stat) && !exclusive;
        if self.sent.again((header.nodeid, header.pid), outdated) {
            return Err(Errno(libc::ESTALE));
        }
        Ok(self.inodes.get_mut(header.nodeid)?.keeps_pages(&stat, began) || exclusive)
    }

    fn reply_opened(&mut self, opened: OpenOut, output: &mut Output) -> Served {
        output.put(&opened).inspect_err(|_| self.take_back(opened.fh))
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
        let reads = flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32;
        if reads || has_silent_close(file.as_fd()) {
            open_flags |= FOPEN_NOFLUSH;
        }
        if self.cache_of(self.inodes.peek(nodeid)?.way).host_locks {
            open_flags |= FOPEN_SERVER_LOCKS;
        }
        let fh = self.add_handle(Handle::File(file), nodeid)?;
        Ok(OpenOut { fh, open_flags, ..OpenOut::default() })
    }

    /// `CREATE`: makes and opens a file, or opens the one that came into being meanwhile.
    pub fn create(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<CreateIn>()?, request.last_name()?);
        match self.make(request, name, &args, OFlags::CREATE | OFlags::EXCL) {
            Ok(file) => self.reply_created(request, &args, file, output),
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
        self.reply_entry_opened(entry, file, args, output)
    }

    fn open_existing(&mut self, request: &Request, name: &CStr, args: &CreateIn, output: &mut Output) -> Served {
        let entry = self.find(request.header.nodeid, name)?;
        match self.open_inode(entry.nodeid, args.flags, args.open_flags) {
            Ok(file) => self.reply_entry_opened(entry, file, args, output),
            Err(error) => {
                self.inodes.forget(entry.nodeid, 1);
                Err(error)
            }
        }
    }

    /// Replies with an entry and an open file, or takes back both.
    fn reply_entry_opened(&mut self, entry: EntryOut, file: OwnedFd, args: &CreateIn, output: &mut Output) -> Served {
        let nodeid = entry.nodeid;
        // The guest has just heard of it: there is nothing to look up again.
        let (stat, began) = (sys::stat(file.as_fd()), self.inodes.began);
        let keeps = stat.and_then(|stat| Ok(self.inodes.get_mut(nodeid)?.keeps_pages(&stat, began)));
        let result = keeps.and_then(|keeps| self.opened(nodeid, file, args.flags, keeps)).and_then(|opened| {
            let put = output.put(&entry).and_then(|()| output.put(&opened));
            put.inspect_err(|_| self.take_back(opened.fh))
        });
        result.inspect_err(|_| self.inodes.forget(nodeid, 1))
    }

    /// `READ`.
    pub fn read(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: ReadIn = request.take()?;
        let file = self.handles.file(args.fh)?;
        output.limit(args.size as usize);
        let (mut result, read) = (Ok(()), if self.may_wait { io::read } else { io::read_cached });
        output.advance(|data| match read(file, data, args.offset) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !self.may_wait => {
                result = Err(Errno::WOULD_WAIT);
                0
            }
            Err(error) => {
                result = Err(error.into());
                0
            }
        });
        result
    }

    /// `WRITE`. With `O_APPEND` the host finds the end of the file, which may be another's since the
    /// guest looked; pages that the guest's cache writes back go where they belong.
    pub fn write(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: WriteIn = request.take()?;
        if args.size as usize != request.data.len() {
            return Err(Errno(libc::EINVAL));
        }
        if args.write_flags & WRITE_CACHE != 0 {
            self.takes_long()?;
        }
        let file = self.handles.file(args.fh)?;
        let kept = self.kept_set_id(args.fh, args.write_flags & WRITE_KILL_SUIDGID == 0)?;
        let append = args.flags & libc::O_APPEND as u32 != 0 && args.write_flags & WRITE_CACHE == 0;
        let flags = if append { libc::RWF_APPEND } else { 0 };
        let write = || Ok(io::write(file, &mut request.data, args.offset, flags)? as u32);
        let size = sys::keeping_set_id(file, kept, write)?;
        self.changed_open(args.fh);
        output.put(&WriteOut { size, padding: 0 })
    }

    /// `FLUSH`: one of the guest's descriptors was closed. On the host it is closing one that reports
    /// what network file systems could not write.
    pub fn flush(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: FlushIn = request.take()?;
        if let Some(nodeid) = self.handles.nodeid(args.fh) {
            self.locks.drop_owner(nodeid, args.lock_owner);
        }
        let file = self.handles.file(args.fh)?;
        sys::close(rustix::io::fcntl_dupfd_cloexec(file, 0)?)
    }

    /// `RELEASE` and `RELEASEDIR`: nothing in the guest uses the handle any more.
    pub fn release(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: ReleaseIn = request.take()?;
        self.listings.forget(args.fh);
        self.locks.drop_handle(args.fh);
        self.close_handle(args.fh)
    }

    /// `FSYNC` and `FSYNCDIR`.
    pub fn fsync(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: FsyncIn = request.take()?;
        let file = match self.handles.get(args.fh)? {
            Handle::Root => return Ok(()),
            Handle::Directory(fd) | Handle::File(fd) => fd,
        };
        let data_only = args.flags & FSYNC_FDATASYNC != 0;
        Ok(if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }?)
    }

    /// `LSEEK`: only for what the guest can't know, `SEEK_DATA` and `SEEK_HOLE`.
    pub fn lseek(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: LseekIn = request.take()?;
        let whence = args.whence as i32;
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return Err(Errno(libc::EINVAL));
        }
        let offset = sys::seek(self.handles.file(args.fh)?, args.offset, whence)?;
        output.put(&LseekOut { offset })
    }

    /// `FALLOCATE`, [`SPACE_MAX`] bytes at a time. What moves the rest of a file cannot be done in pieces, and Linux asks for none
    /// of it.
    pub fn fallocate(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: FallocateIn = request.take()?;
        let mode = FallocateFlags::from_bits_retain(args.mode);
        if !SPACE.contains(mode) {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let file = self.handles.file(args.fh)?;
        let kept = self.kept_set_id(args.fh, request.header.uid == 0)?;
        // Checked before anything is done, as the host would.
        let end = args.offset.checked_add(args.length).filter(|&end| i64::try_from(end).is_ok());
        let end = end.ok_or(Errno(libc::EFBIG))?;
        if args.length > SPACE_MAX && sys::seek(file, end, libc::SEEK_SET).is_err() {
            // Larger than the file system's files can be: the host, asked for all of it, would have allocated nothing.
            return Err(Errno(libc::EFBIG));
        }
        let offset = args.offset.saturating_add(request.done).min(end);
        let length = (end - offset).min(SPACE_MAX.max(self.hole_at(args.fh, mode, offset)));
        sys::keeping_set_id(file, kept, || Ok(rustix::fs::fallocate(file, mode, offset, length)?))?;
        self.changed_open(args.fh);
        if offset + length < end {
            self.unfinished = Some(Unfinished { unique: request.header.unique, done: request.done + length });
        }
        Ok(())
    }

    /// Where something is to be freed, how many bytes there are nothing: freeing them takes no time, and they may be many.
    fn hole_at(&self, fh: u64, mode: FallocateFlags, offset: u64) -> u64 {
        if !mode.contains(FallocateFlags::PUNCH_HOLE) {
            return 0;
        }
        match self.handles.file(fh).and_then(|file| sys::seek(file, offset, libc::SEEK_DATA)) {
            Ok(data) => data.saturating_sub(offset),
            Err(Errno(libc::ENXIO)) => u64::MAX,
            Err(_) => 0,
        }
    }

    /// `COPY_FILE_RANGE`: at most [`COPY_MAX`] bytes a time.
    pub fn copy_file_range(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: CopyFileRangeIn = request.take()?;
        if args.flags != 0 {
            return Err(Errno(libc::EINVAL));
        }
        let (from, to) = (self.handles.file(args.fh_in)?, self.handles.file(args.fh_out)?);
        let kept = self.kept_set_id(args.fh_out, request.header.uid == 0)?;
        let (mut at_from, mut at_to) = (args.off_in, args.off_out);
        let length = args.len.min(COPY_MAX) as usize;
        let copy = || Ok(rustix::fs::copy_file_range(from, Some(&mut at_from), to, Some(&mut at_to), length)? as u32);
        let size = sys::keeping_set_id(to, kept, copy)?;
        self.changed_open(args.fh_out);
        output.put(&WriteOut { size, padding: 0 })
    }

    /// Drops setuid and setgid before a change of content, unless the caller may keep them and the policy lets it; returns those
    /// that are kept. Root may: for other changes than writes the guest's kernel leaves that to us (`HANDLE_KILLPRIV_V2`) without
    /// saying more.
    fn kept_set_id(&self, fh: u64, caller_keeps: bool) -> Served<SetId> {
        if caller_keeps && !self.policy_of_open(fh).drops_set_id() {
            return Ok(self.handles.nodeid(fh).map_or_else(SetId::default, |nodeid| self.set_id(nodeid)));
        }
        sys::drop_suid(self.handles.file(fh)?)?;
        Ok(SetId::default())
    }
}

fn has_silent_close(file: BorrowedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|host| SILENT_CLOSE.contains(&host.f_type))
}
