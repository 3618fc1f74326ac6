//! Sockets of the host that processes of a container may connect to.
//!
//! ```text
//!  process ── listener, bound over the destination ── relay ══ stream of the host's ══ the host's socket
//!                        │                               ▲
//!                        └── AcceptSocket: number, id ───┘ the host opens the stream of this id
//! ```
//!
//! No process but the agent can ask the host for a connection: the question is the answer to the host's own call.

use crate::error::{Context, Error, Result};
use crate::event::{Fd, watch};
use crate::host::relay;
use crate::host::streams::{Expected, Streams, accept};
use crate::log;
use protocol::{AcceptSocketResponse, CreateContainerRequest, MAX_SOCKET_CONNECTIONS, Socket};
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, Uid};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// How long the host may take to open a stream. Longer than it waits for room at its socket.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names of listeners are distinct by this.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Connections for which the host is to open streams.
#[derive(Clone)]
pub struct ConnectionQueue(Arc<Mutex<mpsc::Receiver<AcceptSocketResponse>>>);

impl ConnectionQueue {
    /// Waits for the next connection.
    pub async fn next(&self) -> Result<AcceptSocketResponse> {
        let next = self.0.lock().await.recv().await;
        next.ok_or_else(|| Error::precondition("the container has no sockets of the host, or not any more"))
    }
}

/// Listeners of one container that stand for sockets of the host, and their connections. Dropping this ends all of them.
pub struct HostSockets {
    queue: ConnectionQueue,
    client: HostSocketClient,
    paths: Vec<PathBuf>,
    tasks: Vec<JoinHandle<()>>,
}

impl HostSockets {
    /// Makes a listener in `directory` for each socket that is to be mounted, and names it as the mount's source.
    pub fn open(request: &mut CreateContainerRequest, directory: &Path, streams: &Arc<Streams>) -> Result<Self> {
        let (wanted, queue) = mpsc::channel(MAX_SOCKET_CONNECTIONS);
        let queue = ConnectionQueue(Arc::new(Mutex::new(queue)));
        let free = Arc::new(Semaphore::new(MAX_SOCKET_CONNECTIONS));
        let client = HostSocketClient { number: 0, wanted, free, streams: streams.clone() };
        let mut sockets = Self { queue, client, paths: Vec::new(), tasks: Vec::new() };
        let mounts = request.mounts.iter_mut().filter_map(|mount| Some((mount.socket.as_ref()?, &mut mount.source)));
        for (number, (socket, source)) in (0..).zip(mounts) {
            let path = directory.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
            let listener = sockets.listen(&path, socket).context(|| "make a socket for one of the host")?;
            let listener = watch(listener, Interest::READABLE)?;
            sockets.tasks.push(tokio::spawn(sockets.client.of(number).serve(listener)));
            *source = path.to_string_lossy().into_owned();
        }
        Ok(sockets)
    }

    /// Connections that the host is yet to hear of.
    pub fn queue(&self) -> ConnectionQueue {
        self.queue.clone()
    }

    /// Client for connections that come by something else than the bundle's mounts.
    pub fn client(&self) -> &HostSocketClient {
        &self.client
    }

    /// Makes a listener with owner and mode of the host's socket, so that the same processes may connect.
    fn listen(&mut self, path: &Path, socket: &Socket) -> std::io::Result<OwnedFd> {
        let listener = UnixListener::bind(path)?;
        self.paths.push(path.to_owned());
        listener.set_nonblocking(true)?;
        rustix::fs::chown(path, Some(Uid::from_raw(socket.uid)), Some(Gid::from_raw(socket.gid)))?;
        rustix::fs::chmod(path, Mode::from_raw_mode(socket.mode & 0o7777))?;
        Ok(listener.into())
    }
}

impl Drop for HostSockets {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        for path in &self.paths {
            // What is left there is an empty name.
            let _ = rustix::fs::unlink(path);
        }
    }
}

/// Asks the host for connections to one of its sockets, and serves those of a listener by them.
#[derive(Clone)]
pub struct HostSocketClient {
    number: u32,
    wanted: mpsc::Sender<AcceptSocketResponse>,
    /// Room for connections, of all sockets of the container.
    free: Arc<Semaphore>,
    streams: Arc<Streams>,
}

impl HostSocketClient {
    /// A client for the socket of this number.
    pub fn of(&self, number: u32) -> Self {
        Self { number, ..self.clone() }
    }

    /// Opens a stream that ends at the host's socket; `None` when the host does not open one.
    pub async fn stream(&self) -> Option<OwnedFd> {
        self.ask(self.streams.expect()).await
    }

    async fn ask(&self, expected: Expected) -> Option<OwnedFd> {
        let request = AcceptSocketResponse { socket: self.number, stream: expected.id(), ..Default::default() };
        self.wanted.send(request).await.ok()?;
        tokio::time::timeout(PATIENCE, expected.stream()).await.ok()?.ok()
    }

    /// Serves connections to a listener, for ever.
    pub async fn serve(self, listener: Fd) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                admitted = self.admit(&listener) => match admitted {
                    Ok((client, permit)) => drop(connections.spawn(self.converse(client, permit))),
                    Err(error) => {
                        // Most likely out of descriptors: some may be free again a little later.
                        log::error(&error.message);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// Accepts a connection once there is room for it; without room it waits in the kernel's queue, as before a busy
    /// server.
    async fn admit(&self, listener: &Fd) -> Result<(OwnedFd, OwnedSemaphorePermit)> {
        // First somebody who wants it: no room is kept for a listener that nobody connects to.
        drop(listener.readable().await.context(|| "wait for connections to a socket of the host")?);
        let permit = self.free.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Error::internal("no room for connections"))?;
        let client = accept(listener).await.context(|| "accept a connection to a socket of the host")?;
        Ok((client, permit))
    }

    /// Relays a connection from its beginning to its end.
    fn converse(&self, client: OwnedFd, permit: OwnedSemaphorePermit) -> impl Future<Output = ()> + use<> {
        let (expected, host) = (self.streams.expect(), self.clone());
        async move {
            let _permit = permit;
            let Some(stream) = host.ask(expected).await else { return };
            if let Err(error) = relay::both_ways(client, stream).await {
                log::error(&error.message);
            }
        }
    }
}
