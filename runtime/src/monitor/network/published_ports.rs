//! Published ports: ports of the host that lead to a container, by streams to the guest and with no network device.
//!
//! ```text
//!  client ── socket that the command opened ── vsock ══ stream ══ agent ── 127.0.0.1:port, in the container's network
//! ```
//!
//! The monitor accepts every client, and resets the connection at once when nobody serves the port in the container. The
//! vsock device moves the bytes of a TCP connection by itself; for UDP see `datagrams`.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::datagrams::Datagrams;
use crate::host::publish::Port;
use crate::log::{self, Level};
use crate::monitor::streams::connections::{Connections, Guest, Room};

/// Most connections to all ports of a container together; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// How long to wait when there are no descriptors for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// The published ports of one container.
pub struct Ports {
    streams: Vec<(TcpListener, u16)>,
    datagrams: Vec<(UdpSocket, u16)>,
}

impl Ports {
    /// Takes the sockets over. Needs a running tokio runtime.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(ports: Vec<Port>) -> anyhow::Result<Self> {
        let mut all = Self { streams: Vec::new(), datagrams: Vec::new() };
        for port in ports {
            let socket = port.socket.into_owned()?;
            match port.datagrams {
                true => all.datagrams.push((UdpSocket::from_std(socket.into())?, port.container)),
                false => all.streams.push((TcpListener::from_std(socket.into())?, port.container)),
            }
        }
        Ok(all)
    }

    /// Serves the ports until the future is dropped.
    pub async fn serve(self, guest: Guest) {
        let connections = Rc::new(Connections::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for (socket, port) in self.datagrams {
            tasks.spawn_local(Datagrams::new(socket, port).serve(guest.clone()));
        }
        for (listener, port) in self.streams {
            let port = StreamPort { port, guest: guest.clone(), connections: Rc::clone(&connections) };
            tasks.spawn_local(port.serve(listener));
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// A published TCP port.
#[derive(Clone)]
struct StreamPort {
    /// Port of the container.
    port: u16,
    guest: Guest,
    connections: Rc<Connections>,
}

impl StreamPort {
    async fn serve(self, listener: TcpListener) {
        let mut pending = JoinSet::new();
        loop {
            while pending.try_join_next().is_some() {}
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    log::repeated(
                        Level::Debug,
                        &format!("accept a connection for port {} of the container: {error}", self.port),
                    );
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(room) = self.connections.room().await else { return };
            pending.spawn_local(self.clone().connect(client, room));
        }
    }

    async fn connect(self, client: TcpStream, room: Room) {
        if let Err(error) = self.try_connect(client, room).await {
            log::repeated(Level::Debug, &format!("connect to port {} of the container: {error:#}", self.port));
        }
    }

    async fn try_connect(&self, client: TcpStream, room: Room) -> anyhow::Result<()> {
        let id = match self.guest.connect(self.port, false).await {
            Ok(id) => id,
            Err(error) => {
                // To the client it is as if nobody had listened here.
                let _ = client.set_zero_linger();
                return Err(error);
            }
        };
        // Neither side waits for more of what the other sends; not having that is no reason to send nothing.
        let _ = client.set_nodelay(true);
        let client = OwnedFd::from(client.into_std().context("take a connection from the event loop")?);
        Ok(self.connections.join(&self.guest.vm.vsock, client, room, id)?)
    }
}
