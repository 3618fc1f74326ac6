//! Bytes straight between a file and guest memory.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::request::{Errno, Served};
use super::sys;
use crate::virtio::queue::Buffers;

/// Reads from `offset` until the buffers are full or the file ends; returns the bytes read and consumed.
pub(super) fn read(file: BorrowedFd, data: &mut Buffers, offset: u64) -> Served<usize> {
    transfer(data, offset, |iovecs, at| {
        // SAFETY: the iovecs describe guest memory that the chain keeps mapped across the call, and the
        // guest expects its content to change; the count is at most IOV_MAX.
        let got = unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32, at) };
        sys::result(got)
    })
}

/// Writes at `offset`, or at the end of the file if `append`, until all is written or the file takes no
/// more; returns the bytes written and consumed.
pub(super) fn write(file: BorrowedFd, data: &mut Buffers, offset: u64, append: bool) -> Served<usize> {
    let flags = if append { libc::RWF_APPEND } else { 0 };
    transfer(data, offset, |iovecs, at| {
        // The offset's high half is 0 where a register holds all of it.
        let (fd, high) = (file.as_raw_fd(), 0);
        // SAFETY: the iovecs describe guest memory that the chain keeps mapped across the call, and
        // which the kernel only reads; the count is at most IOV_MAX.
        let done = unsafe { libc::syscall(libc::SYS_pwritev2, fd, iovecs.as_ptr(), iovecs.len(), at, high, flags) };
        sys::result(done as isize)
    })
}

/// Calls `step` with what is left until it moves less than it could. An error after the first step is
/// kept for the next request, as short reads and writes do.
fn transfer(data: &mut Buffers, offset: u64, step: impl Fn(&[libc::iovec], i64) -> Served<usize>) -> Served<usize> {
    let mut total = 0;
    while !data.is_empty() {
        let at = offset.checked_add(total as u64).and_then(|at| i64::try_from(at).ok()).ok_or(Errno(libc::EINVAL))?;
        let iovecs = data.iovecs();
        let asked: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        let moved = match step(&iovecs, at) {
            Err(Errno(libc::EINTR)) if total == 0 => continue,
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
