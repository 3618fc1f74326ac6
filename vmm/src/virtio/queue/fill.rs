//! The ring loop of messages that come by themselves and may need several chains: reserve → fill → used → notify.
//!
//! Nobody knows how long the next message is before it is here. So the loop reserves room for the longest one first, and
//! keeps what the message did not need for the next. Reserved chains stay so between calls, already checked, and are the
//! driver's again when the ring is saved or served otherwise.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::Chain;
use super::reserved::{Room, Wanted};
use super::ring::Ring;
use crate::virtio::error::Error;

/// Result of one filling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// This many bytes were written from the start of the room on, at least one: the driver gets the chains they are in.
    Used(usize),
    /// Nothing that counts was written: the same room is filled once more.
    Unused,
    /// There is no message now: the loop ends.
    Later,
}

impl Ring {
    /// Has `fill` write messages, each into chains that were reserved for it before, until there is none or no room;
    /// then interrupts the driver if it wants that. Returns whether it was the room: then the driver notifies of the
    /// next chain that it adds. A queue that the driver did not enable has no room.
    ///
    /// # Errors
    /// `fill` failed, or a ring or a chain breaks the rules.
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

    /// Gives the driver the chains with the first `bytes` bytes. The driver sees all or none of them, since a driver that
    /// finds the beginning of a message expects the rest to be there.
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
            write_used(&self.queue, memory, chain.head, length)?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        Ok(())
    }
}

/// Writes the next entry of the used ring without telling the driver.
fn write_used(queue: &Queue, memory: &GuestMemoryMmap, head: u16, length: u32) -> Result<(), Error> {
    let place = u64::from(queue.next_used().checked_rem(queue.size()).unwrap_or(0));
    // Behind flags and index, 8 bytes each.
    let at = GuestAddress(queue.used_ring()).checked_add(4 + place * 8).ok_or(virtio_queue::Error::AddressOverflow)?;
    memory.write_obj([u32::from(head).to_le(), length.to_le()], at)?;
    Ok(())
}
