//! A published UDP port: datagrams of all its clients pass one stream, each with a tag that says whose it is.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;

use protocol::{Clients, DatagramHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UdpSocket, UnixStream};

use crate::log::{self, Level};
use crate::monitor::streams::connections::{Guest, open};

/// A datagram on a stream between host and guest, behind its header.
pub struct Tagged {
    /// Whose datagram it is.
    pub tag: u16,
    /// The datagram.
    pub datagram: Vec<u8>,
}

impl Tagged {
    /// Reads the next one.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn read(stream: &mut OwnedReadHalf) -> io::Result<Self> {
        let mut header = [0; DatagramHeader::SIZE];
        stream.read_exact(&mut header).await?;
        let header = DatagramHeader::from_bytes(header);
        let mut datagram = vec![0; header.length.into()];
        stream.read_exact(&mut datagram).await?;
        Ok(Self { tag: header.tag, datagram })
    }

    /// Header and datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.datagram.len()).unwrap_or(u16::MAX);
        [&DatagramHeader { length, tag: self.tag }.to_bytes(), self.datagram.as_slice()].concat()
    }
}

/// A published UDP port.
pub struct Datagrams {
    socket: UdpSocket,
    port: u16,
    clients: RefCell<Tags>,
}

/// The clients of a port and their tags.
#[derive(Default)]
struct Tags {
    known: Clients<SocketAddr, u16>,
    next: u16,
}

impl Tags {
    /// The tag of a client, the same one until the client is forgotten.
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
    /// Serves a bound socket, for a port of the container.
    pub fn new(socket: UdpSocket, port: u16) -> Self {
        Self { socket, port, clients: RefCell::default() }
    }

    /// Serves the port for ever. The first datagram opens the stream, as does the next one after it broke.
    pub async fn serve(self, guest: Guest) {
        let mut datagram = vec![0; usize::from(u16::MAX)];
        loop {
            // The error is that of an earlier answer, whose client is gone.
            let Ok((length, client)) = self.socket.recv_from(&mut datagram).await else { continue };
            let first = self.tagged(datagram.get(..length).unwrap_or_default(), client);
            match self.stream(&guest).await {
                Ok(stream) => self.converse(stream, first).await,
                Err(error) => log::repeated(
                    Level::Debug,
                    &format!("pass on a datagram for port {} of the container: {error:#}", self.port),
                ),
            }
        }
    }

    async fn stream(&self, guest: &Guest) -> anyhow::Result<UnixStream> {
        let id = guest.connect(self.port, true).await?;
        Ok(open(&guest.vm.vsock, id)?)
    }

    /// Relays both ways until the stream ends.
    async fn converse(&self, stream: UnixStream, first: Tagged) {
        let (input, output) = stream.into_split();
        let ended = tokio::select! {
            ended = self.inward(output, first) => ended,
            ended = self.outward(input) => ended,
        };
        if let Err(error) = ended {
            log::repeated(Level::Debug, &format!("relay datagrams of port {} of the container: {error}", self.port));
        }
    }

    async fn inward(&self, mut stream: OwnedWriteHalf, first: Tagged) -> io::Result<()> {
        stream.write_all(&first.to_bytes()).await?;
        let mut datagram = vec![0; usize::from(u16::MAX)];
        loop {
            let Ok((length, client)) = self.socket.recv_from(&mut datagram).await else { continue };
            let tagged = self.tagged(datagram.get(..length).unwrap_or_default(), client);
            stream.write_all(&tagged.to_bytes()).await?;
        }
    }

    async fn outward(&self, mut stream: OwnedReadHalf) -> io::Result<()> {
        loop {
            let Tagged { tag, datagram } = Tagged::read(&mut stream).await?;
            let client = self.clients.borrow().known.find(|known| *known == tag).copied();
            if let Some(client) = client {
                // As on any network: lost, if it cannot be sent.
                let _ = self.socket.send_to(&datagram, client).await;
            }
        }
    }

    fn tagged(&self, datagram: &[u8], client: SocketAddr) -> Tagged {
        Tagged { tag: self.clients.borrow_mut().of(client), datagram: datagram.to_vec() }
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
