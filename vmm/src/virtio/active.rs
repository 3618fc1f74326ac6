//! A device that a driver uses, where all threads find it that serve it: its own and, for a device that has them do so, those of
//! vCPUs at the guest's notifications.
//!
//! ```text
//!  guest notifies ──exit──▶ vCPU's thread ── is the device free? ──yes──▶ Device::serve_at_exit ──▶ back into the guest
//!                                                 │ no                     │ something is left
//!                                                 └───────── event ────────┴──▶ device's thread: Device::handle
//! ```
//!
//! A vCPU never waits for the device: what it cannot have at once it leaves to the device's thread. That one waits for vCPUs,
//! which hold the device for requests that end by themselves only.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::queue::Ring;
use super::{AtExit, Context, Device, Error, Event};
use crate::event_loop::Watcher;

/// A device with the rings that it serves.
pub(super) struct Active {
    /// The device.
    pub device: Box<dyn Device>,
    /// Its rings, in the device's order.
    pub rings: Vec<Ring>,
    /// What ended its service at an exit: for its thread, which stops the device.
    fault: Option<Error>,
}

impl Active {
    /// A device with its rings.
    pub fn new(device: Box<dyn Device>, rings: Vec<Ring>) -> Self {
        Self { device, rings, fault: None }
    }

    /// Has the device handle an event, on its thread.
    ///
    /// # Errors
    /// The device's, or one that it had at an exit before.
    pub fn handle(&mut self, event: Event, memory: &GuestMemoryMmap, watcher: &mut dyn Watcher) -> Result<(), Error> {
        self.check()?;
        self.device.handle(event, &mut Context { memory, rings: &mut self.rings, watcher })
    }

    /// Fails with what ended the service at an exit.
    pub fn check(&mut self) -> Result<(), Error> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn serve_at_exit(&mut self, queue: usize, memory: &GuestMemoryMmap) -> AtExit {
        if self.fault.is_some() {
            return AtExit::Left;
        }
        self.device.serve_at_exit(queue, memory, &mut self.rings).unwrap_or_else(|error| {
            self.fault = Some(error);
            AtExit::Left
        })
    }
}

/// The place of a device that is in use; empty while it is not.
#[derive(Default)]
pub struct ActiveDevice(Mutex<Option<Active>>);

impl ActiveDevice {
    /// Waits for whoever serves the device. For its thread only.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Active>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_at_exit(&self, queue: usize, memory: &GuestMemoryMmap) -> AtExit {
        match self.0.try_lock() {
            Ok(mut active) => active.as_mut().map_or(AtExit::Left, |active| active.serve_at_exit(queue, memory)),
            Err(_) => AtExit::Left,
        }
    }
}

/// Where vCPUs' threads notify a device that has them serve its queues.
pub struct ExitNotifier {
    active: Arc<ActiveDevice>,
    memory: GuestMemoryMmap,
    notified: Vec<Arc<EventFd>>,
}

impl ExitNotifier {
    /// For the device at this place, with these events for what is left to its thread.
    pub fn new(active: Arc<ActiveDevice>, memory: GuestMemoryMmap, notified: Vec<Arc<EventFd>>) -> Self {
        Self { active, memory, notified }
    }

    /// Serves what the driver has added to the queue of this index; leaves to the device's thread what would have to be waited for.
    pub fn notify(&self, queue: u32) {
        let queue = queue as usize;
        let Some(notified) = self.notified.get(queue) else { return };
        if self.active.serve_at_exit(queue, &self.memory) == AtExit::Left {
            // A full counter is a pending notification already.
            let _ = notified.write(1);
        }
    }
}
