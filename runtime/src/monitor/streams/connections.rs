//! Connections of the host that the vsock device has joined with streams to the guest.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use protocol::{STREAM_PORT, StreamHeader};
use rustix::net::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vmm::virtio::vsock::Handle;

/// Those of one container, of one kind. When this is dropped they end.
pub struct Connections {
    free: Arc<Semaphore>,
    /// Some that live, and some that did.
    all: RefCell<Vec<Weak<Connection>>>,
}

/// A connection, as long as the device has it.
struct Connection {
    stream: OwnedFd,
    _permit: OwnedSemaphorePermit,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connections {
    /// None yet, and so many at most.
    pub fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), all: RefCell::default() }
    }

    /// Waits for room for one more.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_owned().await.ok()
    }

    /// Joins a connection with the stream of this id; bytes go without anybody's help from then on.
    ///
    /// # Errors
    /// The device is gone.
    pub fn join(
        &self,
        vsock: &Handle,
        (stream, permit): (OwnedFd, OwnedSemaphorePermit),
        id: u64,
    ) -> std::io::Result<()> {
        let connection = Arc::new(Connection { stream, _permit: permit });
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
