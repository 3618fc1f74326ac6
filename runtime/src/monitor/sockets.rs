//! Connections of a container's processes to sockets of the host.
//!
//! The guest names a socket by its number among those that the bundle mounts, and a stream; what is dialed here becomes
//! that stream, and from then on is the vsock device's alone. So nothing of a connection passes through this thread.

use std::cell::RefCell;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use anyhow::{Context, anyhow};
use protocol::{AcceptSocketResponse, MAX_SOCKET_CONNECTIONS, STREAM_PORT, StreamHeader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use vmm::virtio::vsock::Handle;

use super::agent_client::Agent;
use crate::{log, sockets};

/// The sockets of one container. When this is dropped its connections end.
pub struct Sockets {
    dialer: Arc<Dialer>,
    free: Arc<Semaphore>,
    connections: Connections,
}

/// What the threads that connect have in common.
struct Dialer {
    /// The monitor sees no /proc once it is confined.
    proc: OwnedFd,
    sockets: Vec<OwnedFd>,
}

/// A connection, as long as the device has it.
struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Connections that live, and some that did.
type Connections = Rc<RefCell<Vec<Weak<Connection>>>>;

impl Sockets {
    /// None if there are none.
    pub fn new(proc: &OwnedFd, sockets: Vec<OwnedFd>) -> anyhow::Result<Option<Self>> {
        if sockets.is_empty() {
            return Ok(None);
        }
        let proc = proc.try_clone().context("copy the descriptor of /proc")?;
        let free = Arc::new(Semaphore::new(MAX_SOCKET_CONNECTIONS));
        Ok(Some(Self { dialer: Arc::new(Dialer { proc, sockets }), free, connections: Rc::default() }))
    }

    /// Connects whoever wants to be connected; until the container's end, or until this is dropped.
    pub async fn serve(self, vsock: Handle, agent: Agent) {
        let mut answers = JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else { return };
            let wish = match agent.accept_socket().await {
                Ok(wish) => wish,
                Err(error) => return log::debug(&format!("connections to sockets of the host: {error:#}")),
            };
            while answers.try_join_next().is_some() {}
            let (dialer, connections) = (Arc::clone(&self.dialer), Rc::clone(&self.connections));
            answers.spawn_local(answer(vsock.clone(), dialer, connections, (wish, permit)));
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for connection in self.connections.borrow().iter().filter_map(Weak::upgrade) {
            // The device sees that, tells the guest and lets go.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }
}

async fn answer(
    vsock: Handle,
    dialer: Arc<Dialer>,
    connections: Connections,
    (wish, permit): (AcceptSocketResponse, OwnedSemaphorePermit),
) {
    let header = StreamHeader { id: wish.stream }.to_bytes();
    let joined = match dial(dialer, wish.socket).await {
        Ok(stream) => {
            let connection = Arc::new(Connection { stream, _permit: permit });
            let mut all = connections.borrow_mut();
            all.retain(|connection| connection.strong_count() > 0);
            all.push(Arc::downgrade(&connection));
            vsock.join(STREAM_PORT, connection, &header)
        }
        Err(error) => {
            log::debug(&format!("connect to socket {} of the host: {error:#}", wish.socket));
            // A stream that is at its end.
            vsock.connect(STREAM_PORT).and_then(|mut stream| stream.write_all(&header))
        }
    };
    if let Err(error) = joined {
        log::debug(&format!("open a stream to the guest: {error}"));
    }
}

async fn dial(dialer: Arc<Dialer>, number: u32) -> anyhow::Result<UnixStream> {
    let dial = move || {
        let socket = usize::try_from(number).ok().and_then(|number| dialer.sockets.get(number));
        sockets::dial(&dialer.proc, socket.ok_or_else(|| anyhow!("the bundle mounts no such socket"))?)
    };
    // It may take a while, and wants a working directory of its own.
    tokio::task::spawn_blocking(dial).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn no_socket_but_the_plans_is_dialed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let opened = sockets::open(&[crate::plan::SocketPlan { source: path }]).unwrap();
        let dialer = Arc::new(Dialer { proc: sockets::open_proc().unwrap(), sockets: opened });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dialed = |number| runtime.block_on(dial(Arc::clone(&dialer), number));
        assert!(dialed(0).is_ok());
        for number in [1, 2, u32::MAX] {
            assert_eq!(dialed(number).unwrap_err().to_string(), "the bundle mounts no such socket");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok() && listener.accept().is_err());
    }
}
