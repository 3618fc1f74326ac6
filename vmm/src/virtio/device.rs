//! The contract that every device keeps.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::error::Error;
use super::queue::Ring;
use crate::event_loop::Watcher;

/// Why a device is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver added buffers to the queue of this index (or may have: spurious calls are allowed).
    Queue(usize),
    /// The descriptor registered under this token is ready; the bits are `EPOLLIN`, `EPOLLOUT`, …
    Fd(u64, u32),
}

/// What is left of a queue that was served at an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtExit {
    /// Nothing.
    Served,
    /// Something that the device's own thread is to serve.
    Left,
}

/// What a thread does once before it may serve a device, as [`Device::enter_thread`] has the device's own thread do.
pub type EnterThread = Arc<dyn Fn() -> Result<(), Error> + Send + Sync>;

/// What a device is given with every call, for as long as the call lasts.
pub struct Context<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemoryMmap,
    /// The rings, one per virtqueue, in the device's order. Only queues that the driver enabled are live.
    pub rings: &'a mut [Ring],
    /// Watches descriptors for the device.
    pub watcher: &'a mut dyn Watcher,
}

/// A virtio device without its transport.
///
/// Calls, in order: `id`, `features`, `queue_sizes`, `config` by the transport at any time while it
/// holds the device; `enter_thread` once, on the worker's thread; then, again and again on that thread, `activate`,
/// `handle` any number of times, and `deactivate`, after which the device is back with the transport as if never
/// activated, its own state kept. `reset` follows when the driver asked for a reset, on the worker's thread if the
/// device was there.
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
    /// Makes the calling thread the one that serves this device: what the thread needs for good, and can have no more once
    /// its rights are taken from it.
    fn enter_thread(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Has the threads of vCPUs serve queues as well, with [`Device::serve_at_exit`]: what each of them has to do first. `None`
    /// where the device's own thread serves alone.
    fn enter_vcpu(&self) -> Option<EnterThread> {
        None
    }
    /// Whether the machine has the device in reserve, for what may come while it runs. One that is hot-plugged and in reserve shares
    /// the interrupt of another device, so that it costs a guest nothing that never hears of it, and its thread starts with
    /// the machine, whose owner may have no rights to give to one that starts later.
    fn in_reserve(&self) -> bool {
        false
    }
    /// Serves what the driver has just added to the queue of this index, on the thread of the vCPU that notifies it, which stands
    /// still meanwhile: so only what is done at once. What is left is for [`Device::handle`].
    fn serve_at_exit(
        &mut self,
        _queue: usize,
        _memory: &GuestMemoryMmap,
        _rings: &mut [Ring],
    ) -> Result<AtExit, Error> {
        Ok(AtExit::Left)
    }
    /// Begins to serve a driver that is ready (`DRIVER_OK`) with these features. Register descriptors here.
    fn activate(&mut self, _features: u64, _context: &mut Context) -> Result<(), Error> {
        Ok(())
    }
    /// Serves everything that there is to serve after this event and returns; never blocks for long.
    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error>;
    /// Takes back what `activate` and `handle` registered with the watcher: the worker is about to end.
    fn deactivate(&mut self, _context: &mut Context) {}
    /// Forgets the guest's state and keeps the configuration, as the driver reset the device.
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
