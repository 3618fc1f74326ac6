//! Requests about what is open.

use std::io::ErrorKind;

use rustix::fs::FallocateFlags;

use crate::virtio::fs::fuse::{
    CopyFileRangeIn, FSYNC_FDATASYNC, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut, ReadIn, ReleaseIn, WRITE_CACHE,
    WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::{Server, Unfinished};
use crate::virtio::fs::sys::{self, SetId};
use crate::virtio::fs::table::handles::Handle;
use crate::virtio::io;

/// Most bytes that one `COPY_FILE_RANGE` copies: others wait meanwhile.
const COPY_MAX: u64 = 64 << 20;
/// Most bytes that one step of `FALLOCATE` allocates or frees.
const SPACE_MAX: u64 = 64 << 20;
/// What `FALLOCATE` may ask for.
const SPACE: FallocateFlags =
    FallocateFlags::KEEP_SIZE.union(FallocateFlags::PUNCH_HOLE).union(FallocateFlags::ZERO_RANGE);
impl Server {
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
