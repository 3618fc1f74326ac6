//! A published UDP port: datagrams of all its clients go by one stream, each with a tag that tells whose it is.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;

use protocol::{Clients, DatagramHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UdpSocket, UnixStream};

use super::published_ports::Guest;
use crate::log;
use crate::monitor::streams::connections::open;

/// A port.
pub struct Datagrams {
    socket: UdpSocket,
    port: u16,
    clients: RefCell<Tags>,
}

/// Who has which tag.
#[derive(Default)]
struct Tags {
    known: Clients<SocketAddr, u16>,
    next: u16,
}

impl Tags {
    /// A client has the same one until it is forgotten.
    fn of(&mut self, client: SocketAddr) -> u16 {
        if let Some(tag) = self.known.hear(&client) {
            return *tag;
        }
        while self.known.find(|tag| *tag == self.next).is_some() {
            self.next = self.next.wrapping_add(1);
        }
        let tag = self.next;
        self.next = tag.wrapping_add(1);
        self.known.enter(client, tag);
        tag
    }
}

impl Datagrams {
    /// A bound socket, and the port of the container's.
    pub fn new(socket: UdpSocket, port: u16) -> Self {
        Self { socket, port, clients: RefCell::default() }
    }

    /// Serves it for ever. The stream is made for the first datagram, and made again when it broke.
    pub async fn serve(self, guest: Guest) {
        let mut datagram = vec![0; usize::from(u16::MAX)];
        loop {
            // An error is one of an earlier answer: that client is gone.
            let Ok((length, client)) = self.socket.recv_from(&mut datagram).await else { continue };
            let first = self.framed(datagram.get(..length).unwrap_or_default(), client);
            match self.stream(&guest).await {
                Ok(stream) => self.converse(stream, first).await,
                Err(error) => log::debug(&format!("a datagram for port {} of the container: {error:#}", self.port)),
            }
        }
    }

    async fn stream(&self, guest: &Guest) -> anyhow::Result<UnixStream> {
        let id = guest.connect(self.port, true).await?;
        Ok(open(guest.vsock(), id)?)
    }

    /// Until the stream ends.
    async fn converse(&self, stream: UnixStream, first: Vec<u8>) {
        let (input, output) = stream.into_split();
        let ended = tokio::select! {
            ended = self.inward(output, first) => ended,
            ended = self.outward(input) => ended,
        };
        if let Err(error) = ended {
            log::debug(&format!("datagrams of port {} of the container: {error}", self.port));
        }
    }

    async fn inward(&self, mut stream: OwnedWriteHalf, first: Vec<u8>) -> io::Result<()> {
        stream.write_all(&first).await?;
        let mut datagram = vec![0; usize::from(u16::MAX)];
        loop {
            let Ok((length, client)) = self.socket.recv_from(&mut datagram).await else { continue };
            let framed = self.framed(datagram.get(..length).unwrap_or_default(), client);
            stream.write_all(&framed).await?;
        }
    }

    async fn outward(&self, mut stream: OwnedReadHalf) -> io::Result<()> {
        loop {
            let mut header = [0; DatagramHeader::SIZE];
            stream.read_exact(&mut header).await?;
            let header = DatagramHeader::from_bytes(header);
            let mut datagram = vec![0; header.length.into()];
            stream.read_exact(&mut datagram).await?;
            let client = self.clients.borrow().known.find(|tag| *tag == header.tag).copied();
            if let Some(client) = client {
                // As on any network: lost, if it cannot be sent.
                let _ = self.socket.send_to(&datagram, client).await;
            }
        }
    }

    fn framed(&self, datagram: &[u8], client: SocketAddr) -> Vec<u8> {
        let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
        let tag = self.clients.borrow_mut().of(client);
        [&DatagramHeader { length, tag }.to_bytes(), datagram].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_tag_and_no_two_have_one() {
        let client = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut tags = Tags::default();
        let first = tags.of(client(1));
        for port in 2..=u16::MAX {
            assert_ne!(tags.of(client(port)), first);
            assert_eq!(tags.of(client(1)), first);
        }
        // All numbers have been used once.
        assert_ne!(tags.of(SocketAddr::from(([127, 0, 0, 2], 1))), first);
    }
}
