//! Chains that were taken from a ring before there is a message for them.

use std::collections::VecDeque;
use std::sync::Arc;

use libc::iovec;
use vm_memory::GuestMemoryMmap;

use super::chain::Chain;
use crate::virtio::error::Error;

/// Buffers reserved at a time: as many as one system call takes, less one for the caller's own.
const BUFFERS: usize = libc::UIO_MAXIOV as usize - 1;

/// How much room there has to be before each filling.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes of room.
    pub bytes: usize,
    /// Most chains. Half of the queue is always enough: a driver may not add any before it gets some back.
    pub chains: usize,
    /// Least bytes of each chain; one that is smaller is an error.
    pub least: usize,
}

/// Reserved chains, as one row of buffers.
pub struct Room<'r>(pub(super) &'r Reserved);

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
pub struct Reserved {
    /// The memory that the buffers point into, kept mapped.
    memory: Option<Arc<GuestMemoryMmap>>,
    pub chains: VecDeque<Held>,
    /// Buffers of all chains.
    iovecs: Vec<iovec>,
    bytes: usize,
}

// SAFETY: the pointers are into guest memory, which is kept mapped by `memory` and belongs to no thread.
unsafe impl Send for Reserved {}

/// A chain that was taken and not given back.
pub struct Held {
    pub head: u16,
    iovecs: usize,
    pub bytes: usize,
}

impl Reserved {
    /// The guest's memory; the first call says which.
    pub fn memory(&mut self, memory: &GuestMemoryMmap) -> Arc<GuestMemoryMmap> {
        self.memory.get_or_insert_with(|| Arc::new(memory.clone())).clone()
    }

    /// Number of the driver's chains that are reserved.
    pub fn chains(&self) -> u16 {
        self.chains.len() as u16
    }

    /// Forgets the reserved chains.
    pub fn clear(&mut self) {
        self.chains.clear();
        self.iovecs.clear();
        self.bytes = 0;
    }

    pub fn is_enough(&self, wanted: &Wanted, size: u16) -> bool {
        let chains = wanted.chains.min(usize::from(size / 2)).max(1);
        // A chain has no more buffers than the queue has entries.
        let full = !self.chains.is_empty() && self.iovecs.len() + usize::from(size) > BUFFERS;
        self.bytes >= wanted.bytes || self.chains.len() >= chains || full
    }

    pub fn push(&mut self, chain: &Chain) -> Result<(), Error> {
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

    pub fn pop(&mut self) -> Option<Held> {
        let first = self.chains.pop_front()?;
        self.iovecs.drain(..first.iovecs.min(self.iovecs.len()));
        self.bytes -= first.bytes;
        Some(first)
    }
}
