//! A request taken apart and a reply put together, every size checked here.

use std::ffi::CStr;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::fuse::InHeader;
use crate::virtio::queue::Buffers;

/// Longest name of one component, in bytes (`FUSE_NAME_MAX` is larger; Linux file systems have this).
pub(super) const NAME_MAX: usize = 255;

/// A Linux error number, positive, as the guest gets it (negated) in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub i32);

impl Errno {
    /// A request that would wait where it must not: the device's own thread serves it again, and the guest hears nothing of this.
    pub const WOULD_WAIT: Self = Self(i32::MAX);
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        // Running out of descriptors is the server's matter, but it is the guest that has to wait.
        match error.raw_os_error() {
            libc::EMFILE => Self(libc::ENFILE),
            errno => Self(errno),
        }
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// What serving one request gives: nothing (the reply is in the [`Output`]) or an error number.
pub(super) type Served<T = ()> = Result<T, Errno>;

/// A request: the header, and what follows, consumed from the front.
pub(super) struct Request<'a, 'm> {
    /// The header, read once and checked.
    pub header: InHeader,
    /// How many bytes of it are done already, see [`super::server::Unfinished`].
    pub done: u64,
    /// What follows the header, copied out of guest memory; of a `WRITE` only its fixed part.
    pub body: &'a [u8],
    /// The data of a `WRITE`, still in guest memory.
    pub data: Buffers<'m>,
}

impl<'a> Request<'a, '_> {
    /// The request's next structure. `EINVAL` when the request is too short for it.
    pub fn take<T: FromBytes>(&mut self) -> Served<T> {
        let (value, rest) = T::read_from_prefix(self.body).map_err(|_| Errno(libc::EINVAL))?;
        self.body = rest;
        Ok(value)
    }

    /// The next string with its NUL. `EINVAL` when there is none.
    pub fn string(&mut self) -> Served<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.body).map_err(|_| Errno(libc::EINVAL))?;
        self.body = self.body.get(string.count_bytes() + 1..).unwrap_or_default();
        Ok(string)
    }

    /// The next string as the name of a directory entry: one component, not `.` or `..`.
    ///
    /// `EINVAL` for what is no name, `ENAMETOOLONG` above [`NAME_MAX`] bytes.
    pub fn name(&mut self) -> Served<&'a CStr> {
        let name = self.string()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno(libc::EINVAL)),
            bytes if bytes.contains(&b'/') => Err(Errno(libc::EINVAL)),
            bytes if bytes.len() > NAME_MAX => Err(Errno(libc::ENAMETOOLONG)),
            _ => Ok(name),
        }
    }

    /// [`Request::name`], and nothing may follow it: not what stands behind a NUL inside a name.
    pub fn last_name(&mut self) -> Served<&'a CStr> {
        let name = self.name()?;
        self.end()?;
        Ok(name)
    }

    /// Checks that all of the request was understood.
    pub fn end(&self) -> Served {
        if self.body.is_empty() { Ok(()) } else { Err(Errno(libc::EINVAL)) }
    }
}

/// Where a reply goes, after its header.
pub(super) struct Output<'m> {
    /// The guest's buffers that are not yet written.
    pub data: Buffers<'m>,
    written: usize,
}

impl<'m> Output<'m> {
    /// A reply into these buffers.
    pub fn new(data: Buffers<'m>) -> Self {
        Self { data, written: 0 }
    }

    /// Bytes of the reply so far.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Appends a structure.
    pub fn put<T: IntoBytes + Immutable>(&mut self, value: &T) -> Served {
        self.bytes(value.as_bytes())
    }

    /// Appends bytes. `EINVAL` when the guest left no room for them: then nothing is written.
    pub fn bytes(&mut self, bytes: &[u8]) -> Served {
        if bytes.len() > self.data.len() {
            return Err(Errno(libc::EINVAL));
        }
        self.advance(|data| data.write(bytes));
        Ok(())
    }

    /// Appends what `fill` puts into the buffers; it returns how many bytes of them it consumed.
    pub fn advance(&mut self, fill: impl FnOnce(&mut Buffers<'m>) -> usize) {
        self.written += fill(&mut self.data);
    }

    /// Fills `size` bytes behind the next `skip` ones, which are put afterwards, and ends the reply there. Returns whether `fill`
    /// had so many; else nothing stands there.
    pub fn fill_behind(&mut self, skip: usize, size: usize, fill: impl FnOnce(&mut Buffers<'m>) -> usize) -> bool {
        let mut behind = self.data.split_off(skip);
        let _ = behind.split_off(size);
        let whole = fill(&mut behind) == size;
        self.written += if whole { size } else { 0 };
        whole
    }

    /// Leaves room for at most `size` more bytes.
    pub fn limit(&mut self, size: usize) {
        if size < self.data.len() {
            let _ = self.data.split_off(size);
        }
    }
}
