//! Messages between processes of this runtime, over a Unix stream socket.
//!
//! ```text
//!  head length, tail length, descriptors: u32 each, little-endian │ head: JSON │ tail: bytes as they are
//! ```
//!
//! The head is the message's Rust type. Its protobuf messages ([`protobuf`]) travel encoded in the tail and its open files
//! ([`Descriptor`]) as `SCM_RIGHTS`, at most [`CHUNK`] with one byte of the message; in the head are only their places. A
//! [`Frame`] is a message that can be passed on without being understood.
//!
//! The other side is a process of the same user, which may be killed at any byte: lengths are bounded, and whatever is
//! missing, too much or named twice is an error that says so.

mod attached;

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;

use attached::{ATTACHED, Attached};
pub use attached::{Descriptor, bytes, protobuf};

/// Most bytes of a message: a process with the largest environment that Linux takes (6 MiB), and its mounts.
const MAX_BYTES: usize = 16 << 20;

/// Most descriptors that Linux passes with one `sendmsg` (`SCM_MAX_FD`).
const CHUNK: usize = 253;

/// Bytes of the three lengths.
const PRELUDE: usize = 12;

/// A message as it travels.
pub struct Frame {
    /// The prelude, the head and the tail.
    bytes: Vec<u8>,
    /// Length of the head.
    head: usize,
    descriptors: Vec<Descriptor>,
}

impl Frame {
    /// Encodes a message.
    ///
    /// # Errors
    /// It is too long.
    pub fn new(message: &impl Serialize) -> anyhow::Result<Self> {
        ATTACHED.take();
        let head = serde_json::to_vec(message);
        let attached = ATTACHED.take();
        let head = head?;
        let (length, most) = (head.len() + attached.tail.len(), MAX_BYTES);
        if length > most {
            bail!("a message of {length} bytes is too long: {most} is the most");
        }
        let descriptors: Vec<Descriptor> = attached.descriptors.into_iter().flatten().collect();
        let lengths = [head.len(), attached.tail.len(), descriptors.len()];
        let mut bytes: Vec<u8> = lengths.iter().flat_map(|&length| (length as u32).to_le_bytes()).collect();
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&attached.tail);
        Ok(Self { bytes, head: head.len(), descriptors })
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// It is another one, or names other descriptors than came with it.
    pub fn open<T: DeserializeOwned>(self) -> anyhow::Result<T> {
        let Self { mut bytes, head, descriptors } = self;
        let tail = bytes.split_off(bytes.len().min(PRELUDE + head));
        ATTACHED.set(Attached { tail, descriptors: descriptors.into_iter().map(Some).collect() });
        let message = serde_json::from_slice(bytes.get(PRELUDE..).unwrap_or_default());
        let attached = ATTACHED.take();
        let message = message.context("understand a message")?;
        match attached.descriptors.iter().flatten().count() {
            0 => Ok(message),
            more => bail!("a message came with {more} descriptors that it does not name"),
        }
    }

    /// Sends the frame.
    ///
    /// # Errors
    /// The other side is gone, or takes nothing for longer than the socket waits.
    pub fn send(&self, stream: &UnixStream) -> io::Result<()> {
        let mut rest = Outgoing { bytes: &self.bytes, descriptors: &self.descriptors };
        while !rest.is_sent() {
            again(|| rest.advance(stream))?;
        }
        Ok(())
    }

    /// Receives a frame; none when the other side has ended.
    ///
    /// # Errors
    /// It ended in the middle, was silent for longer than the socket waits, or sent no frame.
    pub fn receive(stream: &UnixStream) -> io::Result<Option<Self>> {
        Self::receive_at_most(stream, MAX_BYTES)
    }

    /// [`Frame::receive`] of a frame with fewer bytes than others may have, from a process that may be hostile.
    ///
    /// # Errors
    /// Those of [`Frame::receive`].
    pub fn receive_at_most(stream: &UnixStream, most: usize) -> io::Result<Option<Self>> {
        let mut incoming = Incoming { most, ..Incoming::new() };
        while again(|| incoming.advance(stream))? {}
        incoming.finish()
    }
}

/// Sends a message.
///
/// # Errors
/// It is too long, or the other side is gone.
pub fn send(stream: &UnixStream, message: &impl Serialize) -> anyhow::Result<()> {
    Frame::new(message)?.send(stream).context("send a message")
}

/// Receives a message; none when the other side has ended.
///
/// # Errors
/// It ended in the middle, was silent for longer than the socket waits, or sent something else.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> anyhow::Result<Option<T>> {
    Frame::receive(stream)?.map(Frame::open).transpose()
}

/// [`send`] for the monitor's one thread, which waits for nobody.
///
/// # Errors
/// Those of [`send`].
pub async fn send_async(stream: &tokio::net::UnixStream, message: &impl Serialize) -> anyhow::Result<()> {
    let frame = Frame::new(message)?;
    let mut rest = Outgoing { bytes: &frame.bytes, descriptors: &frame.descriptors };
    while !rest.is_sent() {
        stream.async_io(Interest::WRITABLE, || rest.advance(stream)).await.context("send a message")?;
    }
    Ok(())
}

/// [`receive`] for the monitor's one thread.
///
/// # Errors
/// Those of [`receive`].
pub async fn receive_async<T: DeserializeOwned>(stream: &tokio::net::UnixStream) -> anyhow::Result<Option<T>> {
    let mut incoming = Incoming::new();
    while stream.async_io(Interest::READABLE, || incoming.advance(stream)).await? {}
    incoming.finish()?.map(Frame::open).transpose()
}

/// Two connected sockets, neither of which a child inherits.
///
/// # Errors
/// Out of descriptors.
pub fn pair() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    pair.context("make a pair of sockets")
}

/// Takes over the socket that the parent left open for this process under this number.
///
/// # Safety
/// The number was handed to this process for this purpose, and is taken only once.
pub unsafe fn inherited(fd: RawFd) -> anyhow::Result<UnixStream> {
    let what = || format!("descriptor {fd} was not inherited");
    // SAFETY: the descriptor is only looked at; a number that is not open gives EBADF.
    let borrowed = (fd > 2).then(|| unsafe { BorrowedFd::borrow_raw(fd) }).with_context(what)?;
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).with_context(what)?;
    // SAFETY: it is open, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Sends as many of the bytes as fit, with all the descriptors.
///
/// # Errors
/// The kernel's.
pub fn send_fds(stream: impl AsFd, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("{} descriptors at a time are too many", fds.len())));
    }
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Part of a frame that is not sent yet.
struct Outgoing<'a> {
    bytes: &'a [u8],
    descriptors: &'a [Descriptor],
}

impl Outgoing<'_> {
    fn is_sent(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One `sendmsg`.
    fn advance(&mut self, stream: impl AsFd) -> io::Result<()> {
        let (chunk, later) = self.descriptors.split_at(self.descriptors.len().min(CHUNK));
        // A frame has more bytes than descriptors, as the head names each.
        let now = if later.is_empty() { self.bytes } else { self.bytes.get(..1).unwrap_or_default() };
        let fds: Vec<BorrowedFd> = chunk.iter().map(AsFd::as_fd).collect();
        let sent = send_fds(stream, now, &fds)?;
        self.bytes = self.bytes.get(sent..).unwrap_or_default();
        self.descriptors = later;
        Ok(())
    }
}

/// Part of a frame that has come.
struct Incoming {
    bytes: Vec<u8>,
    filled: usize,
    /// Most bytes of the head and the tail.
    most: usize,
    /// Lengths of the head and the tail, and the number of descriptors, once they are known.
    lengths: Option<[usize; 3]>,
    descriptors: Vec<Descriptor>,
}

impl Incoming {
    fn new() -> Self {
        Self { bytes: vec![0; PRELUDE], filled: 0, most: MAX_BYTES, lengths: None, descriptors: Vec::new() }
    }

    /// One `recvmsg`; false when no more is to come.
    fn advance(&mut self, stream: impl AsFd) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CHUNK))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = self.bytes.get_mut(self.filled..).unwrap_or_default();
        let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(room)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let got = match got {
            // It was killed before it read what it was sent.
            Err(rustix::io::Errno::CONNRESET) => return Ok(false),
            got => got?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                self.descriptors.extend(rights.map(Descriptor::from));
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            let text = "not all of a message's descriptors could be taken: RLIMIT_NOFILE allows no more open files";
            return Err(io::Error::other(text));
        }
        self.filled += got.bytes;
        self.measure()?;
        let there = self.descriptors.len();
        match self.lengths {
            // More are not waited for.
            Some([_, _, named]) if there > named => Err(miscounted(named, there)),
            _ => Ok(got.bytes > 0 && self.filled < self.bytes.len()),
        }
    }

    /// Makes room for the rest, once the lengths are there.
    fn measure(&mut self) -> io::Result<()> {
        if self.lengths.is_some() || self.filled < PRELUDE {
            return Ok(());
        }
        let words = self.bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
        let lengths: Vec<usize> = words.collect();
        let Ok([head, tail, descriptors]) = <[usize; 3]>::try_from(lengths) else { return Ok(()) };
        let length = head.saturating_add(tail);
        let most = self.most;
        if length > most || descriptors > length {
            let text = format!(
                "a message of {length} bytes and {descriptors} descriptors is refused: {most} bytes are the most"
            );
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        self.lengths = Some([head, tail, descriptors]);
        self.bytes.resize(PRELUDE + length, 0);
        Ok(())
    }

    /// The frame; none when nothing has come.
    fn finish(self) -> io::Result<Option<Frame>> {
        let wrong = |text: String| Err(io::Error::new(ErrorKind::InvalidData, text));
        let (came, wanted) = (self.filled, self.bytes.len());
        match self.lengths {
            None if came == 0 => Ok(None),
            Some([head, _, named]) if came == wanted => match self.descriptors.len() {
                there if there == named => Ok(Some(Frame { bytes: self.bytes, head, descriptors: self.descriptors })),
                there => Err(miscounted(named, there)),
            },
            _ => wrong(format!("a message ended after {came} of {wanted} bytes: who sent it was killed")),
        }
    }
}

fn miscounted(named: usize, there: usize) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("a message of {named} descriptors came with {there}"))
}

#[cfg(test)]
mod tests;
