//! Connections of the host that the vsock device has joined with streams to the guest.
//!
//! The guest learns a stream's id by a call of the agent's, and waits for the stream that begins with this id.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};

use protocol::{STREAM_PORT, StreamHeader};
use rustix::net::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmm::virtio::vsock::Handle;

use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;

/// The connections of one container, of one kind. They end when this is dropped.
pub struct Connections {
    free: Arc<Semaphore>,
    /// Connections that live, and some that did.
    all: RefCell<Vec<Weak<Connection>>>,
}

/// Room for one more connection.
pub type Room = OwnedSemaphorePermit;

/// A connection, as long as the device has it.
struct Connection {
    stream: OwnedFd,
    _room: Room,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connections {
    /// No connection yet, and so many at most.
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), all: RefCell::default() }
    }

    /// Waits for room for one more.
    pub async fn room(&self) -> Option<Room> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Joins a connection with the stream of this id; bytes go without anybody's help from then on.
    ///
    /// # Errors
    /// The device is gone.
    pub fn join(&self, vsock: &Handle, stream: OwnedFd, room: Room, id: u64) -> std::io::Result<()> {
        let connection = Arc::new(Connection { stream, _room: room });
        let mut all = self.all.borrow_mut();
        all.retain(|connection| connection.strong_count() > 0);
        all.push(Arc::downgrade(&connection));
        vsock.join(STREAM_PORT, connection, &StreamHeader { id }.to_bytes())
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        for connection in self.all.borrow().iter().filter_map(Weak::upgrade) {
            // The device sees that, tells the guest and lets go.
            let _ = rustix::net::shutdown(&connection.stream, Shutdown::Both);
        }
    }
}

/// The container that connections to its ports lead to.
#[derive(Clone)]
pub struct Guest {
    /// The VM.
    pub vm: Rc<Vm>,
    /// The container.
    pub agent: Agent,
}

impl Guest {
    /// Has a port connected with a stream, whose id this gives.
    pub async fn connect(&self, port: u16, datagrams: bool) -> anyhow::Result<u64> {
        self.vm.ask(self.agent.connect_port(port, datagrams)).await
    }
}

/// Opens a stream of this process's own, of this id.
///
/// # Errors
/// The device is gone.
pub fn open(vsock: &Handle, id: u64) -> std::io::Result<tokio::net::UnixStream> {
    let mut stream = vsock.connect(STREAM_PORT)?;
    std::io::Write::write_all(&mut stream, &StreamHeader { id }.to_bytes())?;
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}
