//! Ports of a container that are published on the host.
//!
//! ```text
//!  client ── the host's socket ══ stream ── relay ── 127.0.0.1:port or [::1]:port, in the container's network
//! ```
//!
//! The host asks for each connection, and opens the stream for it. For UDP there is one stream, with a socket here for
//! each client, so that the server tells them apart.

use crate::error::{Context, Error, Result};
use crate::host::relay;
use crate::host::streams::{Expected, Streams};
use crate::log;
use crate::process::handle::Process;
use crate::process::in_namespaces::in_network;
use protocol::{Clients, ConnectPortRequest, DatagramHeader};
use rustix::fd::OwnedFd;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpSocket, UdpSocket, UnixStream};
use tokio::sync::{Mutex, oneshot};

/// How long a server may take to accept a connection, and the host to open a stream.
const PATIENCE: Duration = Duration::from_secs(10);

/// Addresses at which servers may listen, in the order in which the agent tries them.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connects to a port of the container that `init` belongs to; gives the id of the stream that the host is to open.
pub async fn connect(init: Arc<Process>, streams: &Arc<Streams>, request: &ConnectPortRequest) -> Result<u64> {
    let port = u16::try_from(request.port).map_err(|_| Error::invalid(format!("invalid port {}", request.port)))?;
    let expected = streams.expect();
    let id = expected.id();
    if request.datagrams {
        tokio::spawn(async move {
            if let Some(stream) = arrival(expected).await {
                relay_datagrams(init, port, stream).await;
            }
        });
    } else {
        let server = dial(&init, port).await?;
        tokio::spawn(relay_connection(server, expected));
    }
    Ok(id)
}

async fn arrival(expected: Expected) -> Option<OwnedFd> {
    tokio::time::timeout(PATIENCE, expected.stream()).await.ok()?.ok()
}

async fn relay_connection(server: OwnedFd, expected: Expected) {
    let Some(stream) = arrival(expected).await else { return };
    if let Err(error) = relay::both_ways(server, stream).await {
        log::error(&error.message);
    }
}

async fn dial(init: &Process, port: u16) -> Result<OwnedFd> {
    let mut refused = Error::internal(format!("connect to port {port}"));
    for address in ADDRESSES {
        let make = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = in_network(init, make)?.context(|| "make a socket in the container's network")?;
        // A server that waits for more than it has is no use to it.
        let _ = socket.set_nodelay(true);
        let connected = tokio::time::timeout(PATIENCE, socket.connect(SocketAddr::new(address, port))).await;
        match connected {
            Ok(Ok(stream)) => return Ok(stream.into_std().context(|| "event loop")?.into()),
            Ok(Err(error)) => refused = Error::internal(format!("connect to port {port}: {error}")),
            Err(_) => return Err(Error::internal(format!("connect to port {port}: nobody accepts"))),
        }
    }
    Err(refused)
}

/// Relays datagrams of all clients of a UDP port until the stream ends.
async fn relay_datagrams(init: Arc<Process>, port: u16, stream: OwnedFd) {
    let stream = std::os::unix::net::UnixStream::from(stream);
    let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { return };
    let (mut input, output) = stream.into_split();
    let mut datagrams = Datagrams { init, port, clients: Clients::default(), output: Arc::new(Mutex::new(output)) };
    loop {
        let mut header = [0; DatagramHeader::SIZE];
        if input.read_exact(&mut header).await.is_err() {
            return;
        }
        let header = DatagramHeader::from_bytes(header);
        let mut datagram = vec![0; header.length.into()];
        if input.read_exact(&mut datagram).await.is_err() {
            return;
        }
        // Lost, as on any network: an earlier one found nobody, or there is no socket to be had.
        let _ = datagrams.deliver(header.tag, &datagram).await;
    }
}

/// A UDP port, with a socket for each of the clients heard of last.
struct Datagrams {
    init: Arc<Process>,
    port: u16,
    clients: Clients<u16, Client>,
    output: Arc<Mutex<OwnedWriteHalf>>,
}

/// One client of a UDP port. Dropping this stops its answers, after the one that is being passed on.
struct Client {
    socket: Arc<UdpSocket>,
    _stop: oneshot::Sender<()>,
}

impl Datagrams {
    async fn deliver(&mut self, tag: u16, datagram: &[u8]) -> io::Result<usize> {
        if let Some(client) = self.clients.hear(&tag) {
            return client.socket.send(datagram).await;
        }
        let made = in_network(&self.init, || self.socket()).map_err(|error| io::Error::other(error.message))?;
        let socket = Arc::new(UdpSocket::from_std(made?)?);
        let client = Client::new(tag, socket.clone(), self.output.clone());
        self.clients.enter(tag, client);
        socket.send(datagram).await
    }

    fn socket(&self) -> io::Result<std::net::UdpSocket> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, self.port))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Client {
    /// Makes a client, and passes the server's answers to it on from now on.
    fn new(tag: u16, socket: Arc<UdpSocket>, output: Arc<Mutex<OwnedWriteHalf>>) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let client = Self { socket: socket.clone(), _stop: stop };
        tokio::spawn(async move {
            let mut datagram = vec![0; usize::from(u16::MAX)];
            loop {
                // Nothing is cut off that has been begun: the stream carries the answers of all clients.
                let received = tokio::select! {
                    received = socket.recv(&mut datagram) => received,
                    _ = &mut stopped => return,
                };
                // An error: nobody listened. Somebody may later.
                let Ok(length) = received else { continue };
                let header = DatagramHeader { length: u16::try_from(length).unwrap_or(u16::MAX), tag };
                let framed = [&header.to_bytes(), datagram.get(..length).unwrap_or_default()].concat();
                if output.lock().await.write_all(&framed).await.is_err() {
                    return;
                }
            }
        });
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_begun_arrives_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (agent, mut host) = UnixStream::pair().unwrap();
            rustix::net::sockopt::set_socket_send_buffer_size(&agent, 4096).unwrap();
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server.local_addr().unwrap()).await.unwrap();
            let address = socket.local_addr().unwrap();
            let client = Client::new(7, Arc::new(socket), Arc::new(Mutex::new(agent.into_split().1)));
            server.send_to(&[1; 40_000], address).await.unwrap();
            // The first bytes are here and there is no room for the others when the client is forgotten.
            let mut header = [0; DatagramHeader::SIZE];
            host.read_exact(&mut header).await.unwrap();
            drop(client);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut rest = Vec::new();
            host.read_to_end(&mut rest).await.unwrap();
            assert_eq!(DatagramHeader::from_bytes(header), DatagramHeader { length: 40_000, tag: 7 });
            assert!(rest == [1; 40_000]);
        });
    }
}
