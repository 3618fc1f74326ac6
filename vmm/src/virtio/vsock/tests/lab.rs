//! The driver of a socket device, and the device.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use crate::interrupt::Interrupt;
use crate::registers::Window;
use crate::virtio::driver::{DriverQueue, Epoll};
use crate::virtio::queue::Ring;
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, Op, Ports, TYPE_STREAM};
use crate::virtio::vsock::{HOST_CID, Handle, Vsock};
use crate::virtio::{Context, Device, Error, Event};

/// The guest of all tests.
pub const GUEST_CID: u64 = 3;
const QUEUE_SIZE: u16 = 64;
const RX_BASE: u64 = 0x10_0000;
const RX_SLOT: u64 = 0x1_0000;
const TX_BASE: u64 = 0x80_0000;
const TX_SLOT: u64 = 0x4_0000;
const MEMORY: usize = 0x200_0000;

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
        let (rx, tx) = (DriverQueue::new(0, QUEUE_SIZE), DriverQueue::new(1, QUEUE_SIZE));
        let rings = vec![rx.ring(&interrupt), tx.ring(&interrupt), DriverQueue::new(2, QUEUE_SIZE).ring(&interrupt)];
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
