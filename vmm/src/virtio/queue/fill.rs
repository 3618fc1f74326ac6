//! The other ring loop, for messages that come by themselves and may need several chains: reserve → fill → used →
//! notify.
//!
//! Nobody knows how long the next message is before it is here. So there is always room for the longest one first;
//! what it did not need is there for the next. What is reserved stays so between calls, already checked, and is the
//! driver's again when the ring is saved or served otherwise.

use std::collections::VecDeque;
use std::sync::Arc;

use libc::iovec;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::{Chain, Error, Ring};

/// Buffers reserved at a time: as many as one system call takes, less one for the caller's own.
const BUFFERS: usize = libc::UIO_MAXIOV as usize - 1;

/// What a filling became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// So many bytes were written from the start of the room on, at least one: the driver gets the chains they are in.
    Used(usize),
    /// Nothing that counts was written: the same room once more.
    Unused,
    /// There is no message now: the loop ends.
    Later,
}

/// How much room there has to be before each filling.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes.
    pub bytes: usize,
    /// No more than so many chains. Half of the queue always does: a driver may not add any before it gets some.
    pub chains: usize,
    /// Least bytes of each chain; one that is smaller is an error.
    pub least: usize,
}

/// Reserved chains, as one row of buffers.
pub struct Room<'r>(&'r Reserved);

impl Room<'_> {
    /// The buffers, fewer than `UIO_MAXIOV`.
    pub fn iovecs(&self) -> &[iovec] {
        &self.0.iovecs
    }

    /// Bytes in all of them.
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// Whether there is no room at all; never the case where a filling is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// How many chains the first `bytes` bytes are in.
    pub fn chains(&self, bytes: usize) -> usize {
        let ends = self.0.chains.iter().scan(0, |end, chain| {
            *end += chain.bytes;
            Some(*end)
        });
        ends.take_while(|&end| end < bytes).count() + 1
    }

    /// Writes at this place of the row; what is beyond its end is left out.
    pub fn write_at(&self, offset: usize, data: &[u8]) {
        let (mut skip, mut data) = (offset, data.iter());
        for buffer in &self.0.iovecs {
            for place in skip.min(buffer.iov_len)..buffer.iov_len {
                let Some(byte) = data.next() else { return };
                // SAFETY: the place is in a buffer that `Reserved` keeps mapped, guest memory to which only
                // volatile accesses are made.
                unsafe { buffer.iov_base.cast::<u8>().add(place).write_volatile(*byte) };
            }
            skip = skip.saturating_sub(buffer.iov_len);
        }
    }
}

/// Chains that were taken from the ring and not given back yet, oldest first.
#[derive(Default)]
pub(super) struct Reserved {
    /// Keeps mapped what the buffers point to.
    memory: Option<Arc<GuestMemoryMmap>>,
    chains: VecDeque<Held>,
    /// Buffers of all chains.
    iovecs: Vec<iovec>,
    bytes: usize,
}

struct Held {
    head: u16,
    iovecs: usize,
    bytes: usize,
}

impl Reserved {
    /// The memory in which everything is; the first to come is the only one.
    fn memory(&mut self, memory: &GuestMemoryMmap) -> Arc<GuestMemoryMmap> {
        self.memory.get_or_insert_with(|| Arc::new(memory.clone())).clone()
    }

    /// How many chains of the driver's are here.
    pub(super) fn chains(&self) -> u16 {
        self.chains.len() as u16
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.iovecs.clear();
        self.bytes = 0;
    }

    fn is_enough(&self, wanted: &Wanted, size: u16) -> bool {
        let chains = wanted.chains.min(usize::from(size / 2)).max(1);
        // A chain has no more buffers than the queue has entries.
        let full = !self.chains.is_empty() && self.iovecs.len() + usize::from(size) > BUFFERS;
        self.bytes >= wanted.bytes || self.chains.len() >= chains || full
    }

    fn push(&mut self, chain: &Chain) -> Result<(), Error> {
        let before = self.iovecs.len();
        self.iovecs.extend(chain.writable.each_iovec());
        if self.iovecs.len() > BUFFERS {
            return Err(Error::Protocol("a chain of more buffers than a system call takes"));
        }
        let (iovecs, bytes) = (self.iovecs.len() - before, chain.writable.len());
        self.chains.push_back(Held { head: chain.head, iovecs, bytes });
        self.bytes += bytes;
        Ok(())
    }

    fn pop(&mut self) -> Option<Held> {
        let first = self.chains.pop_front()?;
        self.iovecs.drain(..first.iovecs.min(self.iovecs.len()));
        self.bytes -= first.bytes;
        Some(first)
    }
}

impl Ring {
    /// Has `fill` write messages, each into chains that were reserved for it before, until there is none or no room;
    /// then interrupts the driver if it wants that. Returns whether it was the room: then the driver notifies of the
    /// next chain that it adds. A queue that the driver did not enable has no room.
    ///
    /// # Errors
    /// Those of `fill`, and a ring or a chain that breaks the rules.
    pub fn fill<F>(&mut self, memory: &GuestMemoryMmap, wanted: &Wanted, mut fill: F) -> Result<bool, Error>
    where
        F: FnMut(&Room) -> Result<Fill, Error>,
    {
        if !self.queue.ready() {
            return Ok(true);
        }
        let memory = self.reserved.memory(memory);
        let before = self.queue.next_used();
        let result = self.fill_all(&memory, wanted, &mut fill);
        self.notify(&memory, before)?;
        result
    }

    fn fill_all<F>(&mut self, memory: &GuestMemoryMmap, wanted: &Wanted, fill: &mut F) -> Result<bool, Error>
    where
        F: FnMut(&Room) -> Result<Fill, Error>,
    {
        self.queue.disable_notification(memory)?;
        while self.reserve(memory, wanted)? {
            match fill(&Room(&self.reserved))? {
                Fill::Used(bytes) => self.give_back(memory, bytes)?,
                Fill::Unused => {}
                Fill::Later => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether there is enough room; where there is not, the driver notifies of what it adds.
    fn reserve(&mut self, memory: &GuestMemoryMmap, wanted: &Wanted) -> Result<bool, Error> {
        while !self.reserved.is_enough(wanted, self.queue.size()) {
            match self.queue.iter(memory)?.next() {
                Some(chain) => {
                    let chain = Chain::parse(chain, memory, self.queue.size())?;
                    if chain.writable.len() < wanted.least {
                        return Err(Error::Protocol("a chain too short to be filled"));
                    }
                    self.reserved.push(&chain)?;
                }
                None if self.queue.enable_notification(memory)? => self.queue.disable_notification(memory)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Gives the driver the chains with the first `bytes` bytes. It sees all or none of them: one that finds the
    /// beginning of a message expects the rest to be there.
    fn give_back(&mut self, memory: &GuestMemoryMmap, bytes: usize) -> Result<(), Error> {
        let mut left = bytes;
        while let Some(chain) = self.reserved.pop() {
            let written = chain.bytes.min(left);
            left -= written;
            let length = u32::try_from(written).unwrap_or(u32::MAX);
            if left == 0 || self.reserved.chains.is_empty() {
                // This is what tells the driver of those before.
                self.queue.add_used(memory, chain.head, length)?;
                return Ok(());
            }
            write_used(&self.queue, memory, (chain.head, length))?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        Ok(())
    }
}

/// Writes the next entry of the used ring without telling the driver.
fn write_used(queue: &Queue, memory: &GuestMemoryMmap, (head, length): (u16, u32)) -> Result<(), Error> {
    let place = u64::from(queue.next_used().checked_rem(queue.size()).unwrap_or(0));
    // Behind flags and index, 8 bytes each.
    let at = GuestAddress(queue.used_ring()).checked_add(4 + place * 8).ok_or(virtio_queue::Error::AddressOverflow)?;
    memory.write_obj([u32::from(head).to_le(), length.to_le()], at)?;
    Ok(())
}
