//! Stream connections that the host has opened and no process has taken yet.

use crate::error::{Error, Result};
use crate::event::{Fd, watch};
use crate::log;
use protocol::{SOCKET_STREAM, StreamHeader};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a request waits for a stream it names, and a connection for its header.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many connections may be waiting to be taken, those without a header yet included.
const MAX_WAITING: usize = 1024;

/// The waiting streams, by id.
#[derive(Default)]
pub struct Streams {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    by_id: HashMap<u64, OwnedFd>,
    without_header: usize,
    /// Streams that the agent has asked for, and that have not come yet.
    expected: HashMap<u64, oneshot::Sender<OwnedFd>>,
    /// Number of streams that the agent has asked for so far.
    asked: u64,
}

/// A stream that the host is asked to open. One that comes when this has been dropped is closed.
pub struct Expected {
    streams: Arc<Streams>,
    id: u64,
    arrival: oneshot::Receiver<OwnedFd>,
}

impl Expected {
    /// Id that the host is to give the stream.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the stream.
    pub async fn stream(mut self) -> Result<OwnedFd> {
        (&mut self.arrival).await.map_err(|_| Error::internal(format!("the host does not open stream {}", self.id)))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.streams.lock().expected.remove(&self.id);
    }
}

impl Streams {
    /// Accepts connections for ever.
    pub async fn serve(self: Arc<Self>, listener: OwnedFd) -> Result<()> {
        let listener = watch(listener, Interest::READABLE)?;
        loop {
            match accept(&listener).await {
                Ok(connection) if self.reserve() => drop(tokio::spawn(self.clone().receive(connection))),
                Ok(_) => log::error("too many streams waiting"),
                Err(errno) => {
                    // Most likely out of descriptors: some may be free again a little later.
                    log::error(&format!("accept stream: {errno}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The stream with this id; waits for it a while. `None` for id 0.
    pub async fn take(&self, id: u64) -> Result<Option<OwnedFd>> {
        if id == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if let Some(stream) = self.lock().by_id.remove(&id) {
                return Ok(Some(stream));
            }
            if timeout_at(deadline, arrived).await.is_err() {
                return Err(Error::invalid(format!("stream {id} was not connected within {} s", PATIENCE.as_secs())));
            }
        }
    }

    /// Makes up an id for a stream that the host is to open.
    pub fn expect(self: &Arc<Self>) -> Expected {
        let (sender, arrival) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.asked = waiting.asked.wrapping_add(1);
        let id = waiting.asked | SOCKET_STREAM;
        waiting.expected.insert(id, sender);
        drop(waiting);
        Expected { streams: self.clone(), id, arrival }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserve(&self) -> bool {
        let mut waiting = self.lock();
        let free = waiting.without_header + waiting.by_id.len() < MAX_WAITING;
        waiting.without_header += usize::from(free);
        free
    }

    async fn receive(self: Arc<Self>, connection: OwnedFd) {
        let header = timeout(PATIENCE, read_header(connection)).await;
        let mut waiting = self.lock();
        waiting.without_header = waiting.without_header.saturating_sub(1);
        match header {
            Ok(Ok((header, connection))) => waiting.enter(header.id, connection),
            Ok(Err(errno)) => log::debug(|| format!("stream header: {errno}")),
            Err(_) => log::debug(|| "a stream sent no header".into()),
        }
        drop(waiting);
        self.arrived.notify_waiters();
    }
}

impl Waiting {
    fn enter(&mut self, id: u64, connection: OwnedFd) {
        if id & SOCKET_STREAM == 0 {
            self.by_id.insert(id, connection);
        } else if let Some(expected) = self.expected.remove(&id) {
            // Whoever expected it may just have given up.
            let _ = expected.send(connection);
        }
    }
}

/// Waits for the next connection to a listener, which must not block.
pub async fn accept(listener: &Fd) -> std::result::Result<OwnedFd, Errno> {
    loop {
        let mut ready = listener.readable().await.map_err(|_| Errno::IO)?;
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            result => return result,
        }
    }
}

async fn read_header(connection: OwnedFd) -> std::result::Result<(StreamHeader, OwnedFd), Errno> {
    let connection = watch(connection, Interest::READABLE).map_err(|_| Errno::IO)?;
    let mut bytes = [0; StreamHeader::SIZE];
    let mut have = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        let mut ready = connection.readable().await.map_err(|_| Errno::IO)?;
        match rustix::io::read(&connection, rest) {
            Ok(0) => return Err(Errno::CONNRESET),
            Ok(n) => have += n,
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok((StreamHeader::from_bytes(bytes), connection.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_request_waits_for_its_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("streams");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let streams = Arc::new(Streams::default());
            tokio::spawn(streams.clone().serve(listener.into()));
            assert!(streams.take(0).await.unwrap().is_none());
            let waiter = tokio::spawn({
                let streams = streams.clone();
                async move { streams.take(7).await }
            });
            tokio::task::yield_now().await;
            let mut connection = UnixStream::connect(&path).unwrap();
            connection.write_all(&StreamHeader { id: 7 }.to_bytes()).unwrap();
            assert!(waiter.await.unwrap().unwrap().is_some());
        });
    }

    #[test]
    fn a_stream_that_does_not_come_is_waited_for_a_while() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let message = runtime.block_on(Streams::default().take(7)).unwrap_err().message;
        assert_eq!(message, "stream 7 was not connected within 10 s");
    }

    #[test]
    fn what_is_not_expected_any_more_is_closed() {
        let streams = Arc::new(Streams::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (first, second) = (streams.expect(), streams.expect());
            let ids = (first.id(), second.id());
            assert_ne!(ids.0, ids.1);
            drop(second);
            let enter = |id| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                streams.lock().enter(id, ours.into());
                theirs
            };
            let (mut wanted, mut unwanted) = (enter(ids.0), enter(ids.1));
            assert!(first.stream().await.is_ok());
            assert!(wanted.write(b"x").is_err());
            assert!(unwanted.write(b"x").is_err());
            assert!(streams.lock().expected.is_empty() && streams.lock().by_id.is_empty());
        });
    }

    #[test]
    fn waiting_streams_are_bounded() {
        let streams = Streams::default();
        assert_eq!((0..2000).filter(|_| streams.reserve()).count(), MAX_WAITING);
    }
}
