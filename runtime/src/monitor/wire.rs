//! Requests and replies on a command's connection, without blocking.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use crate::control::{self, Reply, Request};

/// Puts the descriptors that came with an exec in their places.
pub fn arrange(fds: Vec<OwnedFd>, streams: [bool; 3]) -> anyhow::Result<[Option<OwnedFd>; 3]> {
    let mut fds = fds.into_iter();
    let terminal = streams == [true, true, false] && fds.len() == 1;
    if terminal {
        let slave = fds.next().context("no descriptor came with the exec")?;
        return Ok([Some(slave.try_clone()?), Some(slave), None]);
    }
    let mut files = [None, None, None];
    for (file, attached) in files.iter_mut().zip(streams) {
        if attached {
            *file = Some(fds.next().context("fewer descriptors came with the exec than it names")?);
        }
    }
    Ok(files)
}

/// The next request and the descriptors that came with it; none when the command is gone.
pub async fn receive(stream: &UnixStream) -> anyhow::Result<Option<(Request, Vec<OwnedFd>)>> {
    message(stream).await
}

/// The next reply; none when the monitor is gone.
pub async fn reply(stream: &UnixStream) -> anyhow::Result<Option<Reply>> {
    Ok(message(stream).await?.map(|(reply, _)| reply))
}

async fn message<T: DeserializeOwned>(stream: &UnixStream) -> anyhow::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; 4];
    let (got, fds) = loop {
        stream.readable().await?;
        match stream.try_io(tokio::io::Interest::READABLE, || control::receive_fds(stream, &mut header)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            received => break received?,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let mut reader = Reader(stream);
    reader.fill(header.get_mut(got..).unwrap_or_default()).await?;
    let mut body = vec![0; control::body_length(header)?];
    reader.fill(&mut body).await?;
    Ok(Some((serde_json::from_slice(&body).context("understand a message")?, fds)))
}

/// Sends a request or a reply.
pub async fn send<T: Serialize>(stream: &UnixStream, message: &T) -> anyhow::Result<()> {
    let bytes = control::encode(message)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            written => rest = rest.get(written?..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Reads whole buffers from a shared reference to a stream.
struct Reader<'a>(&'a UnixStream);

impl Reader<'_> {
    async fn fill(&mut self, mut buffer: &mut [u8]) -> std::io::Result<()> {
        while !buffer.is_empty() {
            self.0.readable().await?;
            match self.0.try_read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                read => buffer = buffer.get_mut(read?..).unwrap_or_default(),
            }
        }
        Ok(())
    }
}
