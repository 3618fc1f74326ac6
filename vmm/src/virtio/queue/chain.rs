//! A descriptor chain as two lists of host buffers, checked once against guest memory.

use std::io;

use libc::iovec;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryBackend, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::virtio::error::Error;

/// A descriptor chain as host buffers: first what the device reads, then what it writes.
pub struct Chain<'m> {
    pub(super) head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers<'m>,
    /// Where the device writes its answer.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Parses a chain, which is at most as long as its queue (section 2.7.5.3.1), even by way of an indirect table.
    pub(super) fn parse<M>(chain: DescriptorChain<M>, memory: &'m GuestMemoryMmap, longest: u16) -> Result<Self, Error>
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
            let (address, length) = (descriptor.addr(), descriptor.len() as usize);
            // Nearly all buffers are in one region of memory, which is found with fewer instructions.
            if let Ok(slice) = memory.get_slice(address, length) {
                side.push(slice)?;
                continue;
            }
            for slice in GuestMemory::get_slices(memory, address, length, access)? {
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

    /// The buffers, at most `IOV_MAX`, as `iovec`s for readv, writev, preadv, … , valid while the chain lives.
    /// Call [`Buffers::skip`] with what the system call moved.
    pub fn iovecs(&self) -> Vec<iovec> {
        self.each_iovec().take(libc::UIO_MAXIOV as usize).collect()
    }

    /// Each buffer as an `iovec`, however many there are.
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
