//! The host's side of a connection: what a connection needs of a stream, and the socket that gives it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::virtio::queue::Buffers;

/// A stream that never blocks: where it would, it answers [`io::ErrorKind::WouldBlock`].
pub trait Stream {
    /// Reads at most `limit` bytes into the front of `into` and consumes that front; 0 is the end of
    /// the stream. On an error `into` is left as it was.
    fn read(&mut self, into: &mut Buffers, limit: usize) -> io::Result<usize>;
    /// Writes from the front of `from` and consumes what was written.
    fn write(&mut self, from: &mut Buffers) -> io::Result<usize>;
    /// Writes from `pieces`, one after the other; returns how many bytes.
    fn write_pieces(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize>;
    /// Ends one direction or both; errors don't matter, the other side may be gone.
    fn shutdown(&mut self, how: Shutdown);
}

/// A stream socket of the host's that others may hold as well, lest it be in use longer than they want; whatever
/// else is to go when the last one lets go goes with it.
pub type Shared = Arc<dyn AsFd + Send + Sync>;

/// The device's end of a socket pair, or a socket that the host's side left to the device. The socket is in blocking mode
/// and each call says that it must not block, which saves a system call per connection.
///
/// Dropping it shows the other end the end of the stream. Closing alone, with bytes unread, would look like a reset there.
pub struct Socket {
    stream: Shared,
    /// Bytes that the guest reads before anything of the stream.
    greeting: Vec<u8>,
}

impl Socket {
    /// A socket pair: the device's end and the one for the host's side.
    pub fn pair() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::joined(Arc::new(ours), &[]), theirs))
    }

    /// A socket that is there already; `greeting` is read first.
    pub fn joined(stream: Shared, greeting: &[u8]) -> Self {
        Self { stream, greeting: greeting.to_owned() }
    }

    fn receive(&self, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
        let mut message = message(iovecs);
        // SAFETY: every iovec describes memory that the caller keeps valid and writable for this call.
        let got = unsafe { libc::recvmsg(self.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn send(&self, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
        let message = message(iovecs);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: every iovec describes memory that the caller keeps valid for this call.
        let sent = unsafe { libc::sendmsg(self.as_raw_fd(), &message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Stream for Socket {
    fn read(&mut self, into: &mut Buffers, limit: usize) -> io::Result<usize> {
        if !self.greeting.is_empty() {
            let count = self.greeting.len().min(limit).min(into.len());
            let rest = self.greeting.split_off(count);
            into.write(&std::mem::replace(&mut self.greeting, rest));
            return Ok(count);
        }
        let mut iovecs = into.iovecs();
        truncate(&mut iovecs, limit);
        let count = self.receive(&mut iovecs)?;
        Ok(into.skip(count))
    }

    fn write(&mut self, from: &mut Buffers) -> io::Result<usize> {
        let count = self.send(&mut from.iovecs())?;
        Ok(from.skip(count))
    }

    fn write_pieces(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize> {
        let iovec = |piece: &[u8]| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        self.send(&mut pieces.map(iovec))
    }

    fn shutdown(&mut self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        let _ = rustix::net::shutdown(self.stream.as_fd(), how);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing can be added after this, so the loop ends.
        self.shutdown(Shutdown::Read);
        let mut bytes = [0u8; 16 << 10];
        let iovec = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        while matches!(self.receive(&mut [iovec]), Ok(1..)) {}
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_fd().as_raw_fd()
    }
}

/// A message header over `iovecs`, without address and ancillary data.
fn message(iovecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes mean "nothing".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message
}

/// Shortens `iovecs` to `limit` bytes in all.
fn truncate(iovecs: &mut Vec<libc::iovec>, limit: usize) {
    let mut left = limit;
    let fits = |iovec: &mut libc::iovec| {
        iovec.iov_len = iovec.iov_len.min(left);
        left -= iovec.iov_len;
        iovec.iov_len > 0
    };
    let count = iovecs.iter_mut().map(fits).take_while(|&fits| fits).count();
    iovecs.truncate(count);
}
