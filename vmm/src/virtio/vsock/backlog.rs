//! Bytes from the guest that the host's socket could not take yet: a ring of fixed capacity whose
//! memory exists only while something waits.

use crate::virtio::queue::Buffers;

/// A bounded ring of bytes.
#[derive(Default)]
pub struct Backlog {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
}

impl Backlog {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Moves in what fits of `data`, in a ring of `capacity` bytes made now if there is none; returns
    /// how many bytes that were. The memory is zeroed lazily by the allocator, thus touched only as used.
    pub fn push(&mut self, data: &mut Buffers, capacity: usize) -> usize {
        if self.bytes.is_empty() {
            self.bytes = vec![0; capacity].into_boxed_slice();
        }
        let before = self.len;
        while !data.is_empty() {
            let moved = data.read(self.space());
            if moved == 0 {
                break;
            }
            self.len += moved;
        }
        self.len - before
    }

    /// What waits, oldest first, in up to two pieces.
    pub fn pieces(&self) -> [&[u8]; 2] {
        let (wrapped, from_start) = self.bytes.split_at(self.start);
        let first = self.len.min(from_start.len());
        [&from_start[..first], &wrapped[..self.len - first]]
    }

    /// Drops the `count` oldest bytes; gives the memory back when none is left.
    pub fn skip(&mut self, count: usize) {
        self.len -= count.min(self.len);
        if self.len == 0 {
            *self = Self::default();
        } else {
            self.start = (self.start + count) % self.bytes.len();
        }
    }

    /// The free bytes directly after the waiting ones, up to the end of the memory.
    fn space(&mut self) -> &mut [u8] {
        let capacity = self.bytes.len();
        let end = self.start + self.len;
        if end < capacity { &mut self.bytes[end..] } else { &mut self.bytes[end - capacity..self.start] }
    }
}
