//! The host's handle of the device, which opens and accepts streams from any thread.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::packet::PORT_ANY;
use super::stream::{Shared, Socket};

/// First of the host's ports that connections from the host use as their own; nobody listens on these.
pub const FIRST_OWN_PORT: u32 = 0xC000_0000;
/// Streams that may wait in one listener; the guest's next ones are refused.
const BACKLOG: usize = 128;

/// A connection that the host wants: the guest's port and the device's end of the stream.
pub struct Connect {
    /// Port of the guest.
    pub port: u32,
    /// The device's end.
    pub socket: Socket,
}

/// Opens streams to the guest and takes those that the guest opens. Clones are the same handle.
#[derive(Clone)]
pub struct Handle {
    /// Requests to the worker. Unbounded: what waits is the host's own doing, and each entry holds a descriptor.
    commands: Sender<Connect>,
    wake: Arc<EventFd>,
    listeners: Arc<Listeners>,
}

impl Handle {
    /// A handle that sends its requests to `commands` and raises `wake`.
    pub(super) fn new(commands: Sender<Connect>, wake: Arc<EventFd>, listeners: Arc<Listeners>) -> Self {
        Self { commands, wake, listeners }
    }

    /// Connects to a port of the guest and returns at once with the host's end of the stream, in
    /// blocking mode. What is written before the guest accepts is delivered after that. When the guest
    /// refuses, when the driver resets the device and when the device is gone, the stream is at its
    /// end: reads give 0, writes fail with `BrokenPipe`. Works before the driver is ready.
    ///
    /// # Errors
    /// `InvalidInput` for port 2³²−1, `NotConnected` when the device is gone, or what `socketpair` gave.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (socket, stream) = Socket::pair()?;
        self.request(port, socket)?;
        Ok(stream)
    }

    /// Connects a stream socket that is there already to a port of the guest, as [`Handle::connect`] does with a new
    /// one. The guest reads `greeting` and then what the socket gives; each direction ends on its own. The device lets
    /// go of the socket when the connection is over, or could not be made. Until then whoever has it may shut it down.
    ///
    /// # Errors
    /// The same as [`Handle::connect`].
    pub fn join(&self, port: u32, stream: Shared, greeting: &[u8]) -> io::Result<()> {
        self.request(port, Socket::joined(stream, greeting))
    }

    fn request(&self, port: u32, socket: Socket) -> io::Result<()> {
        if port == PORT_ANY {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.commands.send(Connect { port, socket }).map_err(|_| io::Error::from(ErrorKind::NotConnected))?;
        self.wake.write(1)
    }

    /// Takes the streams that the guest opens to this port of the host, from now until the listener is
    /// dropped. Works before the driver is ready.
    ///
    /// # Errors
    /// `InvalidInput` for ports from `0xC000_0000`, which connections from the host use; `AddrInUse`
    /// when somebody listens there; or what `eventfd` gave.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        if port >= FIRST_OWN_PORT {
            return Err(ErrorKind::InvalidInput.into());
        }
        let ready = Arc::new(EventFd::new(libc::EFD_CLOEXEC | libc::EFD_SEMAPHORE)?);
        let (sender, streams) = mpsc::sync_channel(BACKLOG);
        match self.listeners.lock().entry(port) {
            Entry::Occupied(_) => return Err(ErrorKind::AddrInUse.into()),
            Entry::Vacant(entry) => entry.insert(Waiting { streams: Some(sender), ready: ready.clone() }),
        };
        Ok(Listener { port, streams, ready, listeners: self.listeners.clone() })
    }
}

/// Streams that the guest opened to one port of the host.
///
/// The listener's descriptor is readable while a stream waits, and for ever once the device is gone.
pub struct Listener {
    port: u32,
    streams: Receiver<UnixStream>,
    ready: Arc<EventFd>,
    listeners: Arc<Listeners>,
}

impl Listener {
    /// Takes the next stream, in blocking mode; waits for one unless the descriptor was set to
    /// non-blocking.
    ///
    /// # Errors
    /// `WouldBlock` on a non-blocking descriptor when none waits; `NotConnected` when the device is gone.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.ready.read()?;
        self.streams.try_recv().map_err(|error| match error {
            TryRecvError::Empty => ErrorKind::WouldBlock.into(),
            TryRecvError::Disconnected => {
                // Stay readable.
                self.ready.write(1).err().unwrap_or(ErrorKind::NotConnected.into())
            }
        })
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.listeners.lock().remove(&self.port);
    }
}

/// The device's end of a listener.
struct Waiting {
    /// `None` only while the value is dropped.
    streams: Option<SyncSender<UnixStream>>,
    ready: Arc<EventFd>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // First the channel: whoever wakes up is to find it closed.
        self.streams = None;
        let _ = self.ready.write(1);
    }
}

/// Listeners by port of the host. Locked for a moment when somebody starts or stops to listen
/// and when the guest asks for a connection: a listener is there as soon as [`Handle::listen`] returns.
#[derive(Default)]
pub struct Listeners(Mutex<HashMap<u32, Waiting>>);

impl Listeners {
    /// Gives a new stream to the listener on `port`; returns the device's end, or an error when nobody
    /// listens, too many streams wait already or there are no descriptors left.
    pub fn offer(&self, port: u32) -> io::Result<Socket> {
        let ports = self.lock();
        let waiting = ports.get(&port).ok_or(ErrorKind::ConnectionRefused)?;
        let streams = waiting.streams.as_ref().ok_or(ErrorKind::ConnectionRefused)?;
        let (socket, stream) = Socket::pair()?;
        streams.try_send(stream).map_err(|_| io::Error::from(ErrorKind::ConnectionRefused))?;
        waiting.ready.write(1)?;
        Ok(socket)
    }

    /// Ends every listener, since the device is gone.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
