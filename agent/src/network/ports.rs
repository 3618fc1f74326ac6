//! Ports of a container that are published on the host.
//!
//! ```text
//!  client ── the host's socket ══ stream ── relay ── 127.0.0.1:port or [::1]:port, in the container's network
//! ```
//!
//! The host asks for each connection, and opens the stream for it. For UDP there is one stream, with a socket here for
//! each client, so that the server tells them apart.

use crate::container::table::{Containers, Process};
use crate::error::{Context, Error, Result};
use crate::host::relay;
use crate::host::streams::{Expected, Streams};
use crate::log;
use crate::process::in_namespaces;
use protocol::{Clients, ConnectPortRequest, DatagramHeader};
use rustix::fd::OwnedFd;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpSocket, UdpSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How long a server may take to accept a connection, and the host to open a stream.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where servers may listen, in the order in which it is tried.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connects to a port; gives the id of the stream that is to be opened for it.
pub async fn connect(containers: &Containers, streams: &Arc<Streams>, request: &ConnectPortRequest) -> Result<u64> {
    let init = containers.living(&request.container_id)?;
    let port = u16::try_from(request.port).map_err(|_| Error::invalid(format!("port {}", request.port)))?;
    let expected = streams.expect();
    let id = expected.id();
    if request.datagrams {
        let datagrams = Datagrams { init, port };
        tokio::spawn(async move {
            if let Some(stream) = come(expected).await {
                datagrams.serve(stream).await;
            }
        });
    } else {
        let server = dial(&init, port).await?;
        tokio::spawn(converse(server, expected));
    }
    Ok(id)
}

async fn come(expected: Expected) -> Option<OwnedFd> {
    tokio::time::timeout(PATIENCE, expected.stream()).await.ok()?.ok()
}

async fn converse(server: OwnedFd, expected: Expected) {
    let Some(stream) = come(expected).await else { return };
    if let Err(error) = relay::both_ways(server, stream).await {
        log::error(&error.message);
    }
}

/// Does something in the network of a process.
fn there<T>(init: &Process, act: impl FnOnce() -> io::Result<T>) -> Result<T> {
    let stay = [(&init.pidfd, libc::CLONE_NEWNET as u64)];
    let done = in_namespaces::during(&stay, act)?.context(|| "enter the container's network")?;
    done.map_err(|error| Error::internal(format!("make a socket in the container's network: {error}")))
}

async fn dial(init: &Process, port: u16) -> Result<OwnedFd> {
    let mut refused = Error::internal(format!("connect to port {port}"));
    for address in ADDRESSES {
        let make = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = there(init, make)?;
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

struct Datagrams {
    init: Arc<Process>,
    port: u16,
}

/// What answers for one client, until it is dropped.
struct Client {
    socket: Arc<UdpSocket>,
    answers: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

impl Datagrams {
    /// Until the stream ends.
    async fn serve(self, stream: OwnedFd) {
        let stream = std::os::unix::net::UnixStream::from(stream);
        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { return };
        let (mut input, output) = stream.into_split();
        let (output, mut clients) = (Arc::new(Mutex::new(output)), Clients::default());
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
            let _ = self.deliver((header.tag, &datagram), &mut clients, &output).await;
        }
    }

    async fn deliver(
        &self,
        (tag, datagram): (u16, &[u8]),
        clients: &mut Clients<u16, Client>,
        output: &Arc<Mutex<OwnedWriteHalf>>,
    ) -> io::Result<usize> {
        if let Some(client) = clients.hear(&tag) {
            return client.socket.send(datagram).await;
        }
        let socket = there(&self.init, || self.socket()).map_err(|error| io::Error::other(error.message))?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let answers = tokio::spawn(answer(tag, socket.clone(), output.clone()));
        let sent = socket.send(datagram).await;
        clients.enter(tag, Client { socket, answers });
        sent
    }

    fn socket(&self) -> io::Result<std::net::UdpSocket> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.connect((Ipv4Addr::LOCALHOST, self.port))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Passes on what the server has to say to one client.
async fn answer(tag: u16, socket: Arc<UdpSocket>, output: Arc<Mutex<OwnedWriteHalf>>) {
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        // An error: nobody listened. Somebody may later.
        let Ok(length) = socket.recv(&mut datagram).await else { continue };
        let header = DatagramHeader { length: u16::try_from(length).unwrap_or(u16::MAX), tag };
        let framed = [&header.to_bytes(), datagram.get(..length).unwrap_or_default()].concat();
        if output.lock().await.write_all(&framed).await.is_err() {
            return;
        }
    }
}
