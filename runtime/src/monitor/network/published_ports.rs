//! Ports of the host that lead to a container, by streams to the guest and with no network device.
//!
//! ```text
//!  client ── socket that the command opened ── vsock ══ stream ══ agent ── 127.0.0.1:port, in the container's network
//! ```
//!
//! Who connects is accepted, and let go at once when nobody serves the port in the container. Bytes of a TCP connection
//! are the vsock device's business alone; for UDP see `datagrams`.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use vmm::virtio::vsock::Handle;

use super::datagrams::Datagrams;
use crate::log;
use crate::monitor::pod::Machine;
use crate::monitor::streams::connections::Connections;
use crate::monitor::vm::agent_client::Agent;

/// Connections to all ports of a container together; more wait to be accepted.
const MAX_CONNECTIONS: usize = 1024;

/// How long is waited when there are no descriptors for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// A published port.
pub struct Port {
    /// Bound on the host; listens, unless it is for datagrams.
    pub socket: OwnedFd,
    /// The container's.
    pub container: u16,
    /// UDP, and not TCP.
    pub datagrams: bool,
}

/// Those of one container.
pub struct Ports {
    streams: Vec<(TcpListener, u16)>,
    datagrams: Vec<(UdpSocket, u16)>,
}

/// Where connections lead to.
#[derive(Clone)]
pub struct Guest {
    /// The machine.
    pub machine: Rc<Machine>,
    /// The container.
    pub agent: Agent,
}

impl Guest {
    /// Has a port connected with a stream, whose id this gives.
    pub async fn connect(&self, port: u16, datagrams: bool) -> anyhow::Result<u64> {
        self.machine.ask(self.agent.connect_port(port, datagrams)).await
    }

    /// Where streams are opened.
    pub fn vsock(&self) -> &Handle {
        self.machine.vm.vsock()
    }
}

impl Ports {
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(ports: Vec<Port>) -> anyhow::Result<Self> {
        let mut all = Self { streams: Vec::new(), datagrams: Vec::new() };
        for port in ports {
            match port.datagrams {
                true => all.datagrams.push((UdpSocket::from_std(port.socket.into())?, port.container)),
                false => all.streams.push((TcpListener::from_std(port.socket.into())?, port.container)),
            }
        }
        Ok(all)
    }

    /// Serves them until this is dropped.
    pub async fn serve(self, guest: Guest) {
        let connections = Rc::new(Connections::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for (socket, port) in self.datagrams {
            tasks.spawn_local(Datagrams::new(socket, port).serve(guest.clone()));
        }
        for (listener, port) in self.streams {
            tasks.spawn_local(accept((listener, port), guest.clone(), Rc::clone(&connections)));
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn accept((listener, port): (TcpListener, u16), guest: Guest, connections: Rc<Connections>) {
    let mut pending = JoinSet::new();
    loop {
        while pending.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                log::debug(&format!("accept a connection for port {port} of the container: {error}"));
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(permit) = connections.room().await else { return };
        let (guest, connections) = (guest.clone(), Rc::clone(&connections));
        pending.spawn_local(async move {
            if let Err(error) = connect((client, permit), port, &guest, &connections).await {
                log::debug(&format!("connect to port {port} of the container: {error:#}"));
            }
        });
    }
}

async fn connect(
    (client, permit): (TcpStream, OwnedSemaphorePermit),
    port: u16,
    guest: &Guest,
    connections: &Connections,
) -> anyhow::Result<()> {
    let id = match guest.connect(port, false).await {
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
    Ok(connections.join(guest.vsock(), (client, permit), id)?)
}
