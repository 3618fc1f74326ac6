//! The ring loop of requests: pop → serve → used → notify. ([`Ring::fill`] is that of messages that come by themselves.)
//!
//! `virtio_queue` checks the ring and walks the chains; this module turns each chain into two lists of
//! host buffers, checked once against guest memory, and decides when the driver is interrupted.

mod fill;

use std::io;
use std::sync::atomic::{Ordering, fence};

use libc::iovec;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::Error;
use crate::interrupt::Interrupt;
pub use fill::{Fill, Room, Wanted};

/// What became of a chain.
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
    queue: Queue,
    interrupt: Interrupt,
    reserved: fill::Reserved,
}

impl Ring {
    /// A ring over a queue that the transport has checked with `QueueT::is_valid`, or one never enabled.
    pub fn new(queue: Queue, interrupt: Interrupt) -> Self {
        Self { queue, interrupt, reserved: fill::Reserved::default() }
    }

    /// Plain state of the queue, to save or to build it again. What is reserved is the driver's in it.
    pub fn state(&self) -> QueueState {
        let state = self.queue.state();
        QueueState { next_avail: state.next_avail.wrapping_sub(self.reserved.chains()), ..state }
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
    fn notify(&self, memory: &GuestMemoryMmap, before: u16) -> Result<(), Error> {
        let after = self.queue.next_used();
        if after == before {
            return Ok(());
        }
        if self.queue.event_idx_enabled() {
            // The driver sees what was used before its wish is looked at, or the wish is seen here.
            fence(Ordering::SeqCst);
            let at = GuestAddress(self.queue.avail_ring()).checked_add(4 + 2 * u64::from(self.queue.size()));
            let at = at.ok_or(virtio_queue::Error::AddressOverflow)?;
            let used_event = u16::from_le(memory.load(at, Ordering::Relaxed)?);
            if after.wrapping_sub(used_event).wrapping_sub(1) >= after.wrapping_sub(before) {
                return Ok(());
            }
        }
        self.interrupt.queue()
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

/// A descriptor chain as host buffers: first what the device reads, then what it writes.
pub struct Chain<'m> {
    head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Where the device writes its answer.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// A chain is at most as long as its queue (section 2.7.5.3.1), even by way of an indirect table.
    fn parse<M>(chain: DescriptorChain<M>, memory: &'m GuestMemoryMmap, longest: u16) -> Result<Self, Error>
    where
        M: std::ops::Deref<Target = GuestMemoryMmap> + Clone,
    {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        for (index, descriptor) in chain.enumerate() {
            if index >= usize::from(longest) {
                return Err(Error::Protocol("a descriptor chain longer than its queue"));
            }
            let (side, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.left == 0 {
                (&mut readable, Permissions::Read)
            } else {
                return Err(Error::Protocol("a readable descriptor after a writable one"));
            };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access)? {
                side.push(slice?)?;
            }
        }
        Ok(Self { head, readable, writable })
    }
}

/// A list of buffers in guest memory, consumed from the front. The guest may change their content at
/// any time: copy first, then check the copy.
#[derive(Default)]
pub struct Buffers<'m> {
    slices: std::collections::VecDeque<VolatileSlice<'m>>,
    left: usize,
}

impl<'m> Buffers<'m> {
    fn push(&mut self, slice: VolatileSlice<'m>) -> Result<(), Error> {
        let left = self.left.checked_add(slice.len()).filter(|&left| left <= u32::MAX as usize);
        self.left = left.ok_or(Error::Protocol("a descriptor chain of more than 4 GiB"))?;
        if !slice.is_empty() {
            self.slices.push_back(slice);
        }
        Ok(())
    }

    /// Bytes not yet consumed.
    pub fn len(&self) -> usize {
        self.left
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Copies out and consumes `min(len(), out.len())` bytes; returns how many.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        self.consume(out.len(), |slice, at| slice.copy_to(&mut out[at..at + slice.len()]))
    }

    /// Copies in and consumes `min(len(), data.len())` bytes; returns how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        self.consume(data.len(), |slice, at| {
            slice.copy_from(&data[at..at + slice.len()]);
            slice.len()
        })
    }

    /// Splits off everything after the first `at` bytes (all of it when there are fewer).
    pub fn split_off(&mut self, at: usize) -> Buffers<'m> {
        let mut front = Buffers::default();
        self.consume_slices(at, |slice| {
            front.left += slice.len();
            front.slices.push_back(slice);
        });
        std::mem::replace(self, front)
    }

    /// The buffers as `iovec`s for readv, writev, preadv, … . They stay valid while the chain lives;
    /// call [`Buffers::skip`] with what the system call moved. At most `IOV_MAX` of them.
    pub fn iovecs(&self) -> Vec<iovec> {
        self.each_iovec().take(libc::UIO_MAXIOV as usize).collect()
    }

    /// The same one by one, however many there are.
    pub(in crate::virtio) fn each_iovec(&self) -> impl Iterator<Item = iovec> {
        self.slices.iter().map(|slice| iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
    }

    /// Consumes `count` bytes (or what is left) without touching them; returns how many.
    pub fn skip(&mut self, count: usize) -> usize {
        self.consume_slices(count, |_| ())
    }

    fn consume(&mut self, count: usize, mut copy: impl FnMut(VolatileSlice<'m>, usize) -> usize) -> usize {
        let mut at = 0;
        self.consume_slices(count, |slice| at += copy(slice, at))
    }

    fn consume_slices(&mut self, count: usize, mut take: impl FnMut(VolatileSlice<'m>)) -> usize {
        let mut todo = count.min(self.left);
        let done = todo;
        while todo > 0 {
            let Some(slice) = self.slices.pop_front() else { break };
            match slice.split_at(todo.min(slice.len())) {
                Ok((front, back)) => {
                    todo -= front.len();
                    take(front);
                    if !back.is_empty() {
                        self.slices.push_front(back);
                    }
                }
                Err(_) => break,
            }
        }
        self.left -= done - todo;
        done - todo
    }
}

impl io::Read for Buffers<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        Ok(Buffers::read(self, out))
    }
}

impl io::Write for Buffers<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(Buffers::write(self, data))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
