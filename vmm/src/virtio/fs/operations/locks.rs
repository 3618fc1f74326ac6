//! Locks that hold against others on the host: those of volumes, which several containers may have.
//!
//! The reply to an open says whether a file's locks are the host's; a guest kernel that does not know that flag keeps all
//! locks to itself. `flock` locks belong to the guest's open file, so the server takes them on its handle. POSIX locks
//! belong to a process, open file description locks to a file: each owner that the guest names gets an open file of its own
//! on the host, on which its locks are open file description locks. These locks end with that file: when the owner closes
//! the guest's file (`FLUSH`), or the handle that they were set through is released.
//!
//! Nothing ever waits here. The guest's kernel asks again, as long as its process may.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FlockOperation, OFlags};

use crate::virtio::fs::fuse::{LK_FLOCK, LkIn, LkOut};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::sys;
use crate::virtio::fs::table::locks::{Owner, Range, Ranges};

impl Server {
    /// `GETLK`: what is in the way of a lock.
    pub fn getlk(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: LkIn = request.take()?;
        let nodeid = self.locked_object(args.fh)?;
        let own = self.locks.owners.get(&(nodeid, args.owner)).map(|owner| owner.file.as_fd());
        let opened;
        let file = match own {
            Some(file) => file,
            None => {
                opened = self.own_file(nodeid, args.fh)?;
                opened.as_fd()
            }
        };
        let mut lock = range(&args)?;
        control(file, libc::F_OFD_GETLK, &mut lock)?;
        let (start, typ) = (lock.l_start as u64, lock.l_type as u32);
        let end = if lock.l_len == 0 { i64::MAX as u64 } else { start.saturating_add(lock.l_len as u64 - 1) };
        let free = typ == libc::F_UNLCK as u32;
        let pid = if free { 0 } else { self.locks.other(nodeid, args.owner) };
        output.put(&LkOut { start, end, typ, pid })
    }

    /// `SETLK`. `EAGAIN` when another lock is in the way.
    pub fn setlk(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: LkIn = request.take()?;
        if args.lk_flags & LK_FLOCK != 0 {
            return self.flock(&args);
        }
        let nodeid = self.locked_object(args.fh)?;
        let mut lock = range(&args)?;
        let (key, unlock) = ((nodeid, args.owner), args.typ == libc::F_UNLCK as u32);
        if unlock && !self.locks.owners.contains_key(&key) {
            return Ok(());
        }
        self.add_owner(key, &args)?;
        let owner = self.locks.owners.get(&key).ok_or(Errno(libc::ENOLCK))?;
        let ranges = owner.ranges.with(&Range { bytes: args.start..=args.end, kind: args.typ });
        // Unlocking the middle of a range makes two of it.
        if !self.locks.has_room_for(ranges.len().saturating_sub(owner.ranges.len())) {
            return Err(Errno(libc::ENOLCK));
        }
        let done = control(owner.file.as_fd(), libc::F_OFD_SETLK, &mut lock);
        if let (Ok(()), Some(owner)) = (done, self.locks.owners.get_mut(&key)) {
            owner.ranges = ranges;
        }
        if unlock && args.start == 0 && lock.l_len == 0 {
            self.locks.owners.remove(&key);
        }
        done
    }

    fn flock(&mut self, args: &LkIn) -> Served {
        let operation = match args.typ as i32 {
            libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
            libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
            libc::F_UNLCK => FlockOperation::NonBlockingUnlock,
            _ => return Err(Errno(libc::EINVAL)),
        };
        rustix::fs::flock(self.handles.file(args.fh)?, operation)?;
        match operation {
            FlockOperation::NonBlockingUnlock => self.locks.flocked.remove(&args.fh),
            _ => self.locks.flocked.insert(args.fh),
        };
        Ok(())
    }

    fn locked_object(&self, fh: u64) -> Served<u64> {
        self.handles.file(fh)?;
        self.handles.nodeid(fh).ok_or(Errno(libc::EBADF))
    }

    /// Makes an owner, who has an open file of its own, with its first lock.
    fn add_owner(&mut self, key: (u64, u64), args: &LkIn) -> Served {
        if !self.locks.owners.contains_key(&key) {
            if self.locks.owners.len() >= self.locks.limit {
                return Err(Errno(libc::ENOLCK));
            }
            let file = self.own_file(key.0, args.fh)?;
            self.locks.owners.insert(key, Owner { file, fh: args.fh, pid: args.pid, ranges: Ranges::default() });
        }
        if let (true, Some(owner)) = (args.typ != libc::F_UNLCK as u32, self.locks.owners.get_mut(&key)) {
            (owner.fh, owner.pid) = (args.fh, args.pid);
        }
        Ok(())
    }

    /// Opens a handle's file once more; for reading and writing where possible, since later locks of either kind are set on it.
    fn own_file(&self, nodeid: u64, fh: u64) -> Served<OwnedFd> {
        let handle = self.handles.file(fh)?;
        let mode = rustix::fs::fcntl_getfl(handle)? & OFlags::ACCMODE;
        // What may not be written there may not be opened for it either.
        let both = self.writable(nodeid).and_then(|_| sys::reopen(&self.proc_fd, handle, OFlags::RDWR));
        both.or_else(|_| sys::reopen(&self.proc_fd, handle, mode))
    }
}

/// The range that the guest names, from its first to its last byte.
fn range(args: &LkIn) -> Served<libc::flock> {
    let invalid = Errno(libc::EINVAL);
    let (start, end) = (i64::try_from(args.start), i64::try_from(args.end));
    let (Ok(start), Ok(end)) = (start, end) else { return Err(invalid) };
    let known = [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].iter().any(|&typ| typ as u32 == args.typ);
    if end < start || !known {
        return Err(invalid);
    }
    // A length of 0 is up to the end of the file, however long it gets.
    let length = if end == i64::MAX { 0 } else { end - start + 1 };
    Ok(libc::flock {
        l_type: args.typ as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    })
}

fn control(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> Served {
    // SAFETY: the descriptor is open and the structure lives across the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}
