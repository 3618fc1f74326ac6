//! A fake driver for tests, benchmarks and fuzzing: queues in guest memory, notifications only where `EVENT_IDX` asks for
//! them, a watcher on a real epoll, and what a device needs that is called without a worker.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::queue::Ring;
use crate::event_loop::Watcher;
use crate::interrupt::{Interrupt, Line};
use crate::registers::Window;

/// A line and a watcher that do nothing, for a device that is called by hand.
pub struct Silent;

impl Silent {
    /// An interrupt with registers of its own that nobody hears.
    ///
    /// # Panics
    /// The host has no memory.
    pub fn interrupt() -> Interrupt {
        Interrupt::new(Arc::new(Silent), Window::row(1).unwrap().remove(0))
    }
}

impl Line for Silent {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Watcher for Silent {
    fn add(&mut self, _: RawFd, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn modify(&mut self, _: RawFd, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }
    fn remove(&mut self, _: RawFd) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of so many entries that the driver has set up: its descriptors, available and used ring are at these places.
///
/// # Panics
/// There is no queue of that size.
pub fn queue(size: u16, [desc_table, avail_ring, used_ring]: [u64; 3]) -> Queue {
    let fresh = QueueState { max_size: size, size, ready: true, ..QueueState::default() };
    Queue::try_from(QueueState { desc_table, avail_ring, used_ring, ..fresh }).unwrap()
}

/// Whether the other side of a ring wants to hear of entries `old..new` (virtio 1.2, 2.7.10).
fn wanted(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The driver's side of one queue.
pub struct DriverQueue {
    base: u64,
    size: u16,
    avail: u16,
    used: u16,
    kicked: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl DriverQueue {
    /// A queue of so many entries, at a place of its own.
    pub fn new(index: u64, size: u16) -> Self {
        let free = (0..size).rev().collect();
        Self { base: 0x2_0000 * (index + 1), size, avail: 0, used: 0, kicked: 0, free, chains: HashMap::new() }
    }

    /// The same, empty again, as after a reset.
    pub fn renew(&mut self, memory: &GuestMemoryMmap) {
        memory.write_slice(&[0; 0x1_0000], GuestAddress(self.base)).unwrap();
        let free = (0..self.size).rev().collect();
        *self = Self { base: self.base, size: self.size, avail: 0, used: 0, kicked: 0, free, chains: HashMap::new() };
    }

    /// The device's side of it.
    pub fn ring(&self, interrupt: &Interrupt) -> Ring {
        let mut queue = queue(self.size, [self.base, self.base + 0x4000, self.base + 0x8000]);
        queue.set_event_idx(true);
        Ring::new(queue, interrupt.clone())
    }

    /// Offers a chain of (address, length, device writes); `None` when descriptors are short.
    pub fn add(&mut self, memory: &GuestMemoryMmap, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let ids: Vec<u16> = buffers.iter().filter_map(|_| self.free.pop()).collect();
        for (at, (address, len, write)) in buffers.iter().enumerate() {
            let next = ids.get(at + 1);
            let flags = u16::from(next.is_some()) | if *write { 2 } else { 0 };
            let place = GuestAddress(self.base + 16 * u64::from(ids[at]));
            let words = u64::from(*len) | u64::from(flags) << 32 | u64::from(*next.unwrap_or(&0)) << 48;
            memory.write_obj([*address, words], place).unwrap();
        }
        let head = ids[0];
        let slot = u64::from(self.avail % self.size);
        memory.write_obj(head, GuestAddress(self.base + 0x4004 + 2 * slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        memory.write_obj(self.avail, GuestAddress(self.base + 0x4002)).unwrap();
        self.chains.insert(head, ids);
        Some(head)
    }

    /// Whether no descriptor is left.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes back the next used chain: its head and the bytes written.
    pub fn take(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index: u16 = memory.read_obj(GuestAddress(self.base + 0x8002)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.size);
        let [head, len]: [u32; 2] = memory.read_obj(GuestAddress(self.base + 0x8004 + 8 * slot)).unwrap();
        self.used = self.used.wrapping_add(1);
        let event = GuestAddress(self.base + 0x4004 + 2 * u64::from(self.size));
        memory.write_obj(self.used, event).unwrap();
        self.free.extend(self.chains.remove(&(head as u16)).expect("a chain given back twice"));
        Some((head as u16, len))
    }

    /// Makes the chain that was added last, of one descriptor, one of an indirect table there.
    pub fn make_indirect(&self, memory: &GuestMemoryMmap) {
        let slot = u64::from(self.avail.wrapping_sub(1) % self.size);
        let head: u16 = memory.read_obj(GuestAddress(self.base + 0x4004 + 2 * slot)).unwrap();
        memory.write_obj(4u16, GuestAddress(self.base + 16 * u64::from(head) + 12)).unwrap();
    }

    /// Says that there are so many chains, whatever was added.
    pub fn set_available(&self, memory: &GuestMemoryMmap, index: u16) {
        memory.write_obj(index, GuestAddress(self.base + 0x4002)).unwrap();
    }

    /// Has the device interrupt with the chain of this number from now on, the next one being 1.
    pub fn interrupt_with(&self, memory: &GuestMemoryMmap, number: u16) {
        let event = GuestAddress(self.base + 0x4004 + 2 * u64::from(self.size));
        memory.write_obj(self.used.wrapping_add(number - 1), event).unwrap();
    }

    /// Where the used ring's index is.
    pub fn used_index(&self) -> u64 {
        self.base + 0x8002
    }

    /// Whether the device wants to be notified of what was added since last asked.
    pub fn kick(&mut self, memory: &GuestMemoryMmap) -> bool {
        let place = GuestAddress(self.base + 0x8004 + 8 * u64::from(self.size));
        let event: u16 = memory.read_obj(place).unwrap();
        let old = std::mem::replace(&mut self.kicked, self.avail);
        old != self.avail && wanted(event, self.avail, old)
    }
}

/// A watcher on epoll that counts its calls.
pub struct Epoll {
    fd: OwnedFd,
    /// Calls of `epoll_ctl`.
    pub calls: usize,
}

impl Epoll {
    pub fn new() -> Self {
        // SAFETY: the call takes no pointers, and its result is checked and owned by nobody else.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: as above.
        Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, calls: 0 }
    }

    fn control(&mut self, op: i32, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.calls += 1;
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` lives across the call.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd, &mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What is ready within `timeout` ms.
    pub fn wait(&self, timeout: i32) -> Vec<(u64, u32)> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        // SAFETY: pointer and length describe `events`.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), 64, timeout) };
        events.iter().take(count.max(0) as usize).map(|event| (event.u64, event.events)).collect()
    }
}

impl Watcher for Epoll {
    fn add(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, events)
    }

    fn modify(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, events)
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }
}
