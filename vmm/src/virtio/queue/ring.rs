//! The ring loop of requests: pop → serve → used → notify.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::Chain;
use super::reserved::Reserved;
use crate::interrupt::Interrupt;
use crate::virtio::error::Error;

/// What a device did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: give the chain back to the driver with this many bytes written.
    Used(u32),
    /// Not now: the chain stays in the ring and the loop ends. The same chain is offered again when
    /// the device calls [`Ring::serve`] next.
    Later,
}

/// A live virtqueue with what is needed to serve it.
pub struct Ring {
    pub(super) queue: Queue,
    interrupt: Interrupt,
    pub(super) reserved: Reserved,
}

impl Ring {
    /// A ring over a queue that the transport has checked with `QueueT::is_valid`, or one never enabled.
    pub fn new(queue: Queue, interrupt: Interrupt) -> Self {
        Self { queue, interrupt, reserved: Reserved::default() }
    }

    /// Plain state of the queue, to save or to build it again; reserved chains are the driver's in it.
    pub fn state(&self) -> QueueState {
        let state = self.queue.state();
        QueueState { next_avail: state.next_avail.wrapping_sub(self.reserved.chains()), ..state }
    }

    /// Whether there is something to serve.
    pub fn has_chains(&self, memory: &GuestMemoryMmap) -> bool {
        let added = self.queue.avail_idx(memory, Ordering::Acquire);
        self.queue.ready() && added.is_ok_and(|added| added.0 != self.state().next_avail)
    }

    /// Serves every chain the driver made available, in order, until there is none or `serve` answers
    /// [`Outcome::Later`]; then interrupts the driver if it wants that. Chains added meanwhile are
    /// served too. Does nothing on a queue that the driver did not enable.
    pub fn serve<F>(&mut self, memory: &GuestMemoryMmap, mut serve: F) -> Result<(), Error>
    where
        F: FnMut(&mut Chain) -> Result<Outcome, Error>,
    {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.set_next_avail(self.state().next_avail);
        self.reserved.clear();
        let before = self.queue.next_used();
        let result = self.serve_all(memory, &mut serve);
        // Even when a chain was bad, the driver hears of those before it.
        self.notify(memory, before)?;
        result
    }

    /// Interrupts the driver if chains were used since `before` and it wants to hear of one of them (section 2.7.7.1).
    /// `Queue::needs_notification` counts the calls of `add_used`, and so knows nothing of what [`Ring::fill`] gives.
    pub(super) fn notify(&self, memory: &GuestMemoryMmap, before: u16) -> Result<(), Error> {
        let after = self.queue.next_used();
        if after == before {
            return Ok(());
        }
        if self.queue.event_idx_enabled() {
            // Either the driver sees what was used, or its `used_event` is seen here.
            fence(Ordering::SeqCst);
            let at = GuestAddress(self.queue.avail_ring()).checked_add(4 + 2 * u64::from(self.queue.size()));
            let at = at.ok_or(virtio_queue::Error::AddressOverflow)?;
            let used_event = u16::from_le(memory.load(at, Ordering::Relaxed)?);
            if after.wrapping_sub(used_event).wrapping_sub(1) >= after.wrapping_sub(before) {
                return Ok(());
            }
        }
        self.interrupt.queue().map_err(|error| Error::Host("raise an interrupt", error))
    }

    fn serve_all<F>(&mut self, memory: &GuestMemoryMmap, serve: &mut F) -> Result<(), Error>
    where
        F: FnMut(&mut Chain) -> Result<Outcome, Error>,
    {
        loop {
            self.queue.disable_notification(memory)?;
            while let Some(chain) = self.queue.iter(memory)?.next() {
                let mut chain = Chain::parse(chain, memory, self.queue.size())?;
                match serve(&mut chain)? {
                    Outcome::Used(length) => self.queue.add_used(memory, chain.head, length)?,
                    Outcome::Later => {
                        self.queue.go_to_previous_position();
                        return Ok(());
                    }
                }
            }
            if !self.queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}
