//! virtio devices: the contract every device keeps, and what stands around it.
//!
//! ```text
//!  vCPU thread                    worker thread (one per activated device)
//!  ───────────                    ────────────────────────────────────────
//!  mmio::Transport  ─activate─▶   Worker { device, rings }
//!   few registers   ◀──stop────     │ epoll: queue ioeventfds, device descriptors, stop
//!                                   └─▶ Device::handle(event, rings) ─▶ used ring, irqfd
//! ```
//!
//! The transport owns the registers and, while the device is inactive, the device itself. Activation
//! *moves* the device and its queues into a worker; stopping the worker returns both. Reset, pause and
//! snapshot all start from that one return value. Nothing is shared and locked between the two.
//!
//! Everything read from guest memory is data that lies. A device answers it with [`Error`]; the worker
//! then logs once, sets `DEVICE_NEEDS_RESET` and stops serving this device only.

pub mod balloon;
pub mod block;
#[cfg(test)]
mod driver;
pub mod fs;
mod io;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod vsock;
pub mod worker;

use std::os::fd::RawFd;

use vm_memory::GuestMemoryMmap;

use queue::Ring;

/// What a device found wrong with the guest or with itself; it stops the device, not the VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest's ring or a descriptor chain breaks the rules of virtio.
    #[error("bad virtqueue: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// A descriptor points outside guest memory.
    #[error("descriptor outside guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A message in a chain breaks the device's protocol.
    #[error("malformed request: {0}")]
    Protocol(&'static str),
    /// A host operation that the device needs failed.
    #[error("{0}: {1}")]
    Host(&'static str, #[source] std::io::Error),
}

/// Why a device is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver added buffers to the queue of this index (or may have: spurious calls are allowed).
    Queue(usize),
    /// The descriptor registered under this token is ready; the bits are `EPOLLIN`, `EPOLLOUT`, …
    Fd(u64, u32),
}

/// How a device has descriptors watched by its worker. Tokens are the device's own; level-triggered.
pub trait Watcher {
    /// Watches `fd` for `events` (`EPOLLIN`, …). Fails if `fd` is already watched.
    fn add(&mut self, fd: RawFd, token: u64, events: u32) -> std::io::Result<()>;
    /// Changes what `fd` is watched for; 0 keeps it known but silent except for errors and hang-up.
    fn modify(&mut self, fd: RawFd, token: u64, events: u32) -> std::io::Result<()>;
    /// Stops watching `fd`. Call it before `fd` is closed.
    fn remove(&mut self, fd: RawFd) -> std::io::Result<()>;
}

/// What a device is given with every call, for as long as the call lasts.
pub struct Context<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemoryMmap,
    /// One ring per virtqueue, in the device's order. Only queues that the driver enabled are live.
    pub rings: &'a mut [Ring],
    /// Where to have descriptors watched.
    pub watcher: &'a mut dyn Watcher,
}

/// A virtio device without its transport.
///
/// Calls, in order: `id`, `features`, `queue_sizes`, `config` by the transport at any time while it
/// holds the device; then `activate` once by a new worker, on its thread; then `handle` any number of
/// times on that thread; then, when the worker stops, `deactivate` once on that thread, and the device
/// is back with the transport as if never activated, its own state kept. `reset` follows when the
/// driver asked for a reset.
pub trait Device: Send {
    /// Device id of virtio 1.2, section 5 (4 is entropy, 5 balloon, 19 socket, 26 file system).
    fn id(&self) -> u32;
    /// Feature bits offered, besides those of the transport (`VERSION_1`, `EVENT_IDX`, `INDIRECT_DESC`).
    fn features(&self) -> u64 {
        0
    }
    /// Largest size of each virtqueue; powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device's configuration space, as the driver reads it.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }
    /// The driver is ready (`DRIVER_OK`) with these features. Register descriptors here.
    fn activate(&mut self, _features: u64, _context: &mut Context) -> Result<(), Error> {
        Ok(())
    }
    /// Something happened. Serve everything there is to serve and return; never block for long.
    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error>;
    /// The worker is about to end: undo what `activate` and `handle` registered with the watcher.
    fn deactivate(&mut self, _context: &mut Context) {}
    /// The driver reset the device: forget the guest's state, keep the configuration.
    fn reset(&mut self) {}
    /// The device's own state as plain versioned bytes (its queues are saved by the transport).
    /// Called while no worker runs. Empty when a device has none.
    fn save(&self) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }
    /// Takes back what [`Device::save`] gave, before activation. Never trust the bytes blindly.
    fn restore(&mut self, _state: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}
