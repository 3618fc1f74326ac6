//! A fake driver: queues in guest memory, notifications only where `EVENT_IDX` asks for them, and
//! a watcher on a real epoll.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::interrupt::Interrupt;
use crate::virtio::queue::Ring;
use crate::virtio::registers::Window;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, Op, Ports, TYPE_STREAM};
use crate::virtio::vsock::{HOST_CID, Handle, Vsock};
use crate::virtio::{Context, Device, Error, Event, Watcher};

/// The guest of all tests.
pub const GUEST_CID: u64 = 3;
const QUEUE_SIZE: u16 = 64;
const RX_BASE: u64 = 0x10_0000;
const RX_SLOT: u64 = 0x1_0000;
const TX_BASE: u64 = 0x80_0000;
const TX_SLOT: u64 = 0x4_0000;
const MEMORY: usize = 0x200_0000;

/// Whether the other side of a ring wants to hear of entries `old..new` (virtio 1.2, 2.7.10).
fn wanted(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The driver's side of one queue.
pub struct DriverQueue {
    base: u64,
    avail: u16,
    used: u16,
    kicked: u16,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
}

impl DriverQueue {
    fn new(index: u64) -> Self {
        let free = (0..QUEUE_SIZE).rev().collect();
        Self { base: 0x2_0000 * (index + 1), avail: 0, used: 0, kicked: 0, free, chains: HashMap::new() }
    }

    fn ring(&self, interrupt: &Interrupt) -> Ring {
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        queue.set_size(QUEUE_SIZE);
        queue.set_event_idx(true);
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.base as u32 + 0x4000), Some(0));
        queue.set_used_ring_address(Some(self.base as u32 + 0x8000), Some(0));
        queue.set_ready(true);
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
        let slot = u64::from(self.avail % QUEUE_SIZE);
        memory.write_obj(head, GuestAddress(self.base + 0x4004 + 2 * slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        memory.write_obj(self.avail, GuestAddress(self.base + 0x4002)).unwrap();
        self.chains.insert(head, ids);
        Some(head)
    }

    /// Takes back the next used chain: its head and the bytes written.
    fn take(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index: u16 = memory.read_obj(GuestAddress(self.base + 0x8002)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = u64::from(self.used % QUEUE_SIZE);
        let [head, len]: [u32; 2] = memory.read_obj(GuestAddress(self.base + 0x8004 + 8 * slot)).unwrap();
        self.used = self.used.wrapping_add(1);
        let event = GuestAddress(self.base + 0x4004 + 2 * u64::from(QUEUE_SIZE));
        memory.write_obj(self.used, event).unwrap();
        self.free.extend(self.chains.remove(&(head as u16)).expect("a chain given back twice"));
        Some((head as u16, len))
    }

    /// Whether the device wants to be notified of what was added since last asked.
    fn kick(&mut self, memory: &GuestMemoryMmap) -> bool {
        let place = GuestAddress(self.base + 0x8004 + 8 * u64::from(QUEUE_SIZE));
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
    fn new() -> Self {
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

    fn wait(&self, timeout: i32) -> Vec<(u64, u32)> {
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

/// A packet as the guest saw it.
pub type Packet = (Header, Vec<u8>);

/// Device, driver and memory.
pub struct Lab {
    pub memory: GuestMemoryMmap,
    pub device: Vsock,
    pub handle: Handle,
    pub watcher: Epoll,
    /// What the guest received and the test did not look at.
    pub inbox: VecDeque<Packet>,
    /// Shape of the buffers for the guest.
    pub rx_shape: Vec<u32>,
    /// Lengths into which packets to the host are cut; the last one repeats.
    pub tx_shape: Vec<u32>,
    pub rx: DriverQueue,
    pub tx: DriverQueue,
    pub interrupts: Arc<EventFd>,
    rings: Vec<Ring>,
    rx_slots: Vec<u64>,
    rx_posted: HashMap<u16, u64>,
    tx_slots: Vec<u64>,
    tx_posted: HashMap<u16, u64>,
}

impl Lab {
    /// A device whose driver is not ready yet.
    pub fn inactive() -> Self {
        let (device, handle) = crate::virtio::vsock::new(GUEST_CID).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let interrupts = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let interrupt = Interrupt::new(interrupts.clone(), Window::row(1).unwrap().remove(0));
        let (rx, tx) = (DriverQueue::new(0), DriverQueue::new(1));
        let rings = vec![rx.ring(&interrupt), tx.ring(&interrupt), DriverQueue::new(2).ring(&interrupt)];
        Self {
            memory,
            device,
            handle,
            watcher: Epoll::new(),
            inbox: VecDeque::new(),
            rx_shape: vec![4096],
            tx_shape: vec![44, 32 << 10],
            rx,
            tx,
            interrupts,
            rings,
            rx_slots: (0..32).collect(),
            rx_posted: HashMap::new(),
            tx_slots: (0..32).collect(),
            tx_posted: HashMap::new(),
        }
    }

    /// A device in use, with buffers for what it sends.
    pub fn new() -> Self {
        let mut lab = Self::inactive();
        lab.post();
        lab.activate();
        lab
    }

    pub fn activate(&mut self) {
        self.call(|device, context| device.activate(1, context)).unwrap();
    }

    /// Stops the device, and builds its rings again from their saved state.
    pub fn stop(&mut self) {
        self.call(|device, context| {
            device.deactivate(context);
            Ok(())
        })
        .unwrap();
        let interrupt = Interrupt::new(self.interrupts.clone(), Window::row(1).unwrap().remove(0));
        let again = |ring: &Ring| Ring::new(Queue::try_from(ring.state()).unwrap(), interrupt.clone());
        self.rings = self.rings.iter().map(again).collect();
    }

    pub fn call(&mut self, call: impl FnOnce(&mut Vsock, &mut Context) -> Result<(), Error>) -> Result<(), Error> {
        let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut self.watcher };
        call(&mut self.device, &mut context)
    }

    /// Offers all free rx buffers, without notification.
    pub fn post(&mut self) {
        while let Some(slot) = self.rx_slots.pop() {
            let mut address = RX_BASE + slot * RX_SLOT;
            let fragment = |len: &u32| {
                address += u64::from(*len);
                (address - u64::from(*len), *len, true)
            };
            let buffers: Vec<_> = self.rx_shape.iter().map(fragment).collect();
            let Some(head) = self.rx.add(&self.memory, &buffers) else { return self.rx_slots.push(slot) };
            self.rx_posted.insert(head, slot);
        }
    }

    /// Offers a packet, without notification; false when there is no room.
    pub fn offer(&mut self, header: &Header, data: &[u8]) -> bool {
        self.reap();
        let Some(slot) = self.tx_slots.pop() else { return false };
        let bytes = [header.as_bytes(), data].concat();
        let address = TX_BASE + slot * TX_SLOT;
        self.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
        let buffers = self.cut(address, bytes.len() as u32);
        let Some(head) = self.tx.add(&self.memory, &buffers) else {
            self.tx_slots.push(slot);
            return false;
        };
        self.tx_posted.insert(head, slot);
        true
    }

    fn cut(&self, mut address: u64, mut left: u32) -> Vec<(u64, u32, bool)> {
        let mut buffers = Vec::new();
        let mut shape = self.tx_shape.iter();
        let mut len = left;
        while left > 0 {
            len = *shape.next().unwrap_or(&len);
            let piece = len.min(left);
            buffers.push((address, piece, false));
            address += u64::from(piece);
            left -= piece;
        }
        buffers
    }

    fn reap(&mut self) {
        while let Some((head, _)) = self.tx.take(&self.memory) {
            self.tx_slots.extend(self.tx_posted.remove(&head));
        }
    }

    /// Sends a packet and lets everything happen that follows.
    pub fn send(&mut self, header: &Header, data: &[u8]) {
        assert!(self.offer(header, data), "no room in the tx ring");
        self.run();
    }

    /// Takes what the device sent, without giving the buffers back.
    pub fn collect(&mut self) -> usize {
        let before = self.inbox.len();
        while let Some((head, len)) = self.rx.take(&self.memory) {
            let slot = self.rx_posted.remove(&head).unwrap();
            let mut bytes = vec![0; len as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(RX_BASE + slot * RX_SLOT)).unwrap();
            let header = Header::read_from_bytes(&bytes[..HEADER_SIZE]).unwrap();
            assert_eq!(header.len.get() as usize, bytes.len() - HEADER_SIZE);
            assert_eq!((header.src_cid.get(), header.dst_cid.get()), (HOST_CID, GUEST_CID));
            self.inbox.push_back((header, bytes.split_off(HEADER_SIZE)));
            self.rx_slots.push(slot);
        }
        self.inbox.len() - before
    }

    /// One round: notifications, then descriptors; waits up to `timeout` ms. Whether anything happened.
    pub fn turn(&mut self, timeout: i32) -> bool {
        let mut busy = false;
        for (index, kicked) in [self.rx.kick(&self.memory), self.tx.kick(&self.memory)].into_iter().enumerate() {
            if kicked {
                busy = true;
                self.call(|device, context| device.handle(Event::Queue(index), context)).unwrap();
            }
        }
        for (token, events) in self.watcher.wait(if busy { 0 } else { timeout }) {
            busy = true;
            self.call(|device, context| device.handle(Event::Fd(token, events), context)).unwrap();
        }
        busy |= self.collect() > 0;
        self.reap();
        busy
    }

    /// Runs until nothing happens any more, buffers given back at once.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            self.post();
            if !self.turn(0) {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// The only packet that the guest has, taken.
    pub fn packet(&mut self) -> Packet {
        assert_eq!(self.inbox.len(), 1, "{:?}", self.ops());
        self.inbox.pop_front().unwrap()
    }

    /// Operations of all packets that the guest has, taken.
    pub fn ops(&mut self) -> Vec<Op> {
        self.inbox.drain(..).map(|(header, _)| header.op().unwrap()).collect()
    }
}

/// A header from the guest to the host, with plenty of credit.
pub fn from_guest(op: Op, ports: Ports) -> Header {
    let mut header = Header::to_guest(GUEST_CID, ports, op);
    std::mem::swap(&mut header.src_cid, &mut header.dst_cid);
    std::mem::swap(&mut header.src_port, &mut header.dst_port);
    assert_eq!(header.kind.get(), TYPE_STREAM);
    header.buf_alloc.set(1 << 20);
    header
}

/// A `SHUTDOWN` from the guest.
pub fn shutdown(ports: Ports, flags: u32) -> Header {
    let mut header = from_guest(Op::Shutdown, ports);
    header.flags.set(flags);
    header
}

/// A data packet from the guest.
pub fn data(ports: Ports, len: usize) -> Header {
    let mut header = from_guest(Op::Data, ports);
    header.len.set(len as u32);
    header
}
