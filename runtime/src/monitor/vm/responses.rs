//! What the agent may send: one response to each call, and nothing else.
//!
//! The client of ttrpc keeps whatever comes for a call until who called takes it. A response ends its call, so there is one at
//! most; of data, which belongs to streams and which no call of ours has, a guest could send without end.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader};

/// A stream whose other end sends responses; anything else is an error of the stream.
pub struct Responses<S> {
    stream: S,
    frames: Frames,
}

/// How far the frames of a stream have been read.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes of the frame's body that are still to come.
    body: usize,
}

impl<S> Responses<S> {
    /// Nothing has been read yet.
    pub fn new(stream: S) -> Self {
        Self { stream, frames: Frames::default() }
    }
}

impl Frames {
    /// Goes on by some bytes of the stream.
    fn check(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = (MESSAGE_HEADER_LENGTH - self.header.len()).min(bytes.len());
            let (more, rest) = bytes.split_at_checked(wanted).unwrap_or_default();
            self.header.extend_from_slice(more);
            bytes = rest;
            if self.header.len() == MESSAGE_HEADER_LENGTH {
                let header = MessageHeader::from(&self.header);
                if header.type_ != MESSAGE_TYPE_RESPONSE {
                    return Err(io::Error::new(ErrorKind::InvalidData, "it sent what is no response"));
                }
                self.body = usize::try_from(header.length).unwrap_or(usize::MAX);
                self.header.clear();
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Responses<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read {
            this.frames.check(buffer.filled().get(before..).unwrap_or_default())?;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Responses<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, length: u8) -> Vec<u8> {
        let header = [0, 0, 0, length, 0, 0, 0, 1, kind, 0];
        [&header[..], &vec![3; length.into()]].concat()
    }

    proptest! {
        #[test]
        fn responses_pass_however_they_are_cut(lengths in prop::collection::vec(any::<u8>(), 0..20), cut in 1..400usize) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| frame(MESSAGE_TYPE_RESPONSE, *length)).collect();
            let mut frames = Frames::default();
            for part in bytes.chunks(cut) {
                prop_assert!(frames.check(part).is_ok());
            }
            prop_assert!(frames.check(&frame(3, 0)).is_err());
        }
    }

    #[test]
    fn data_ends_the_connection_and_every_call() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let agent = super::super::agent_client::Agent::new(ours, "a").unwrap();
            let liar = std::thread::spawn(move || {
                let flood = frame(3, 200);
                while io::Write::write_all(&mut (&theirs), &flood).is_ok() {}
            });
            let error = agent.wait("").await.unwrap_err().to_string();
            assert!(error.contains("no response"), "{error}");
            drop(agent);
            liar.join().unwrap();
        });
    }
}
