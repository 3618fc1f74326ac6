//! Reads and writes a file or disk of the host's straight into and from guest memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::queue::Buffers;

/// Reads from `offset` until the buffers are full or the file ends; returns the bytes read and consumed.
pub(super) fn read(file: BorrowedFd, data: &mut Buffers, offset: u64) -> io::Result<usize> {
    transfer(data, offset, |iovecs, at| {
        // SAFETY: the iovecs describe guest memory that the chain keeps mapped across the call, and the
        // guest expects its content to change; the count is at most IOV_MAX.
        let got = unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32, at) };
        result(got)
    })
}

/// [`read`] of what is in the host's page cache: `WouldBlock` where something is not, `data` as it was then. Where the host's file
/// system cannot tell, it is a [`read`].
pub(super) fn read_cached(file: BorrowedFd, data: &mut Buffers, offset: u64) -> io::Result<usize> {
    let (iovecs, asked) = (data.iovecs(), data.len());
    let mut total = 0;
    // What is short is the end of the file, or of what is cached: the next one tells.
    while total < asked {
        let rest = skipped(&iovecs, total);
        let at = offset.checked_add(total as u64).and_then(|at| i64::try_from(at).ok());
        let at = at.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let (fd, high) = (file.as_raw_fd(), 0);
        // SAFETY: as in `read`.
        let got =
            unsafe { libc::syscall(libc::SYS_preadv2, fd, rest.as_ptr(), rest.len(), at, high, libc::RWF_NOWAIT) };
        match result(got as isize) {
            Ok(0) => break,
            Ok(got) => total += got,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return read(file, data, offset),
            Err(error) => return Err(error),
        }
    }
    Ok(data.skip(total))
}

/// What is left of buffers behind this many bytes.
fn skipped(iovecs: &[libc::iovec], bytes: usize) -> Vec<libc::iovec> {
    let mut bytes = bytes;
    let rest = iovecs.iter().map(|iovec| {
        let skip = bytes.min(iovec.iov_len);
        bytes -= skip;
        // SAFETY: the result is inside of the buffer, or its end.
        libc::iovec { iov_base: unsafe { iovec.iov_base.byte_add(skip) }, iov_len: iovec.iov_len - skip }
    });
    rest.filter(|iovec| iovec.iov_len > 0).collect()
}

/// Writes at `offset`, with these `RWF_*` flags (`RWF_APPEND`: at the end of the file), until all is written or the
/// file takes no more; returns the bytes written and consumed.
pub(super) fn write(file: BorrowedFd, data: &mut Buffers, offset: u64, flags: i32) -> io::Result<usize> {
    transfer(data, offset, |iovecs, at| {
        // The offset's high half is 0 where a register holds all of it.
        let (fd, high) = (file.as_raw_fd(), 0);
        // SAFETY: the iovecs describe guest memory that the chain keeps mapped across the call, and
        // which the kernel only reads; the count is at most IOV_MAX.
        let done = unsafe { libc::syscall(libc::SYS_pwritev2, fd, iovecs.as_ptr(), iovecs.len(), at, high, flags) };
        result(done as isize)
    })
}

/// Calls `step` with what is left until it moves less than it could. An error after the first step is
/// kept for the next request, as short reads and writes do.
fn transfer(
    data: &mut Buffers,
    offset: u64,
    step: impl Fn(&[libc::iovec], i64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut total = 0;
    while !data.is_empty() {
        let at = offset.checked_add(total as u64).and_then(|at| i64::try_from(at).ok());
        let at = at.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let iovecs = data.iovecs();
        let asked: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        let moved = match step(&iovecs, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && total == 0 => continue,
            Err(error) if total == 0 => return Err(error),
            Err(_) => break,
            Ok(moved) => moved,
        };
        total += data.skip(moved);
        if moved < asked {
            break;
        }
    }
    Ok(total)
}

/// Turns what a system call returned into its result.
fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
