//! A driver with its device, and a socket in the stead of a tap.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::frame::HEADER;
use super::super::pair::{RX, TX};
use super::super::tap::Tap;
use super::super::{Counters, Net, TapHandle};
use crate::interrupt::Interrupt;
use crate::registers::Window;
use crate::virtio::driver::{DriverQueue, Epoll};
use crate::virtio::queue::Ring;
use crate::virtio::{Context, Device, Error, Event};

pub const SIZE: u16 = 256;
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// All that the device offers.
pub const ALL: u64 = u64::MAX;
pub const NO_MERGING: u64 = !(1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF);
const RX_BASE: u64 = 0x10_0000;
const TX_BASE: u64 = 0x200_0000;
/// What one chain has of the memory.
const SLOT: u64 = 0x1_8000;
pub const MEMORY: usize = 0x400_0000;

pub struct Lab {
    pub memory: GuestMemoryMmap,
    pub device: Net,
    pub tap_handle: TapHandle,
    pub counters: Arc<Counters>,
    pub watcher: Epoll,
    pub rx: DriverQueue,
    pub tx: DriverQueue,
    pub interrupts: Arc<EventFd>,
    /// Frames of the guest's, each with its header, and the chains it came in.
    pub inbox: Vec<(Vec<u8>, u16)>,
    /// Chains of the guest's that came back.
    pub sent: usize,
    pub rings: Vec<Ring>,
    /// Whether what is behind the end of a frame may have changed, as frames that are dropped leave it.
    pub careless: bool,
    posted: HashMap<u16, (u64, u32)>,
    slots: Vec<u64>,
    tx_slots: Vec<u64>,
    tx_posted: HashMap<u16, u64>,
}

/// A header that asks for nothing, and this frame.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER], frame].concat()
}

/// A frame of bytes that differ.
pub fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect()
}

/// A socket in the stead of a tap, and where its offloads are noted.
pub fn fake_tap(fd: OwnedFd) -> (Tap, Arc<AtomicU32>) {
    let noted = Arc::new(AtomicU32::new(u32::MAX));
    (Tap::of_socket(fd, noted.clone()), noted)
}

impl Lab {
    /// A device whose driver is not ready yet.
    pub fn inactive() -> Self {
        let (device, tap_handle) = Net::new(MAC).unwrap();
        let interrupts = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let (rx, tx) = (DriverQueue::new(0, SIZE), DriverQueue::new(1, SIZE));
        let interrupt = Interrupt::new(interrupts.clone(), Window::row(1).unwrap().remove(0));
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            counters: device.counters(),
            device,
            tap_handle,
            watcher: Epoll::new(),
            rings: vec![rx.ring(&interrupt), tx.ring(&interrupt)],
            rx,
            tx,
            interrupts,
            inbox: Vec::new(),
            sent: 0,
            careless: false,
            posted: HashMap::new(),
            slots: (0..u64::from(SIZE)).rev().collect(),
            tx_slots: (0..u64::from(SIZE)).rev().collect(),
            tx_posted: HashMap::new(),
        }
    }

    /// A device in use with these features, and a tap whose other end this is.
    pub fn with(features: u64) -> (Self, UnixDatagram) {
        let mut lab = Self::inactive();
        lab.activate(features);
        let host = lab.attach_tap();
        (lab, host)
    }

    /// As a worker begins.
    pub fn activate(&mut self, features: u64) {
        let features = self.device.features() & features;
        self.call(|device, context| device.activate(features, context)).unwrap();
        for queue in [RX, TX] {
            self.call(|device, context| device.handle(Event::Queue(queue), context)).unwrap();
        }
    }

    /// As a worker ends; its rings are built again from what would be saved.
    pub fn deactivate(&mut self) {
        self.call(|device, context| {
            device.deactivate(context);
            Ok(())
        })
        .unwrap();
        let interrupt = Interrupt::new(self.interrupts.clone(), Window::row(1).unwrap().remove(0));
        let again = |ring: &Ring| Ring::new(Queue::try_from(ring.state()).unwrap(), interrupt.clone());
        self.rings = self.rings.iter().map(again).collect();
    }

    pub fn call(&mut self, call: impl FnOnce(&mut Net, &mut Context) -> Result<(), Error>) -> Result<(), Error> {
        let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut self.watcher };
        call(&mut self.device, &mut context)
    }

    /// Attaches a tap and returns its other end.
    pub fn attach_tap(&mut self) -> UnixDatagram {
        let (tap, host) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        self.change(Some(fake_tap(tap.into()).0)).unwrap();
        host
    }

    /// The same with room for few frames from the guest.
    pub fn attach_narrow_tap(&mut self) -> UnixDatagram {
        let (tap, host) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&tap, 1).unwrap();
        self.change(Some(fake_tap(tap.into()).0)).unwrap();
        host
    }

    /// Asks from another thread, as the device's own has to answer.
    pub fn change(&mut self, tap: Option<Tap>) -> Result<(), Error> {
        let tap_handle = self.tap_handle.clone();
        let asking = std::thread::spawn(move || tap_handle.replace(tap));
        while !asking.is_finished() {
            self.turn();
        }
        asking.join().unwrap()
    }

    /// Offers `count` chains for frames, each of one buffer of this size, without notification.
    pub fn post(&mut self, size: u32, count: usize) {
        for _ in 0..count {
            self.post_cut(&[size]);
        }
    }

    /// Offers a chain of buffers of these sizes, side by side.
    pub fn post_cut(&mut self, sizes: &[u32]) {
        let slot = self.slots.pop().expect("no memory left for another chain");
        let start = RX_BASE + slot * SLOT;
        let total: u32 = sizes.iter().sum();
        assert!(u64::from(total) <= SLOT);
        self.memory.write_slice(&vec![0xee; total as usize], GuestAddress(start)).unwrap();
        let head = self.rx.add(&self.memory, &cut(start, sizes, true)).expect("no descriptors left");
        self.posted.insert(head, (slot, total));
    }

    /// Offers a frame with its header in pieces of these sizes, without notification; the last piece is the rest.
    pub fn offer(&mut self, bytes: &[u8], sizes: &[u32]) {
        let slot = self.tx_slots.pop().expect("no memory left for another frame");
        let start = TX_BASE + slot * SLOT;
        self.memory.write_slice(bytes, GuestAddress(start)).unwrap();
        let rest = bytes.len() as u32 - sizes.iter().sum::<u32>();
        let head = self.tx.add(&self.memory, &cut(start, &[sizes, &[rest]].concat(), false));
        self.tx_posted.insert(head.expect("no descriptors left"), slot);
    }

    /// Offers a frame and lets everything happen that follows.
    pub fn send(&mut self, bytes: &[u8]) {
        self.offer(bytes, &[]);
        self.run();
    }

    /// One round: notifications, then descriptors. Whether anything happened.
    pub fn turn(&mut self) -> bool {
        let mut busy = false;
        for (index, kicked) in [self.rx.kick(&self.memory), self.tx.kick(&self.memory)].into_iter().enumerate() {
            if kicked {
                busy = true;
                self.call(|device, context| device.handle(Event::Queue(index), context)).unwrap();
            }
        }
        for (token, events) in self.watcher.wait(0) {
            busy = true;
            self.call(|device, context| device.handle(Event::Fd(token, events), context)).unwrap();
        }
        self.collect();
        busy
    }

    /// Runs until nothing happens any more.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the device never comes to rest");
    }

    /// Takes what came back.
    pub fn collect(&mut self) {
        while let Some((bytes, chains)) = self.take_one() {
            let mut all = bytes;
            for _ in 1..chains {
                all.extend(self.take_one().expect("part of a frame is missing").0);
            }
            self.inbox.push((all, chains));
        }
        while let Some((head, _)) = self.tx.take(&self.memory) {
            self.tx_slots.extend(self.tx_posted.remove(&head));
            self.sent += 1;
        }
    }

    /// The content of the next chain that came back, and what `num_buffers` would be in it.
    fn take_one(&mut self) -> Option<(Vec<u8>, u16)> {
        let (head, length) = self.rx.take(&self.memory)?;
        let (slot, total) = self.posted.remove(&head).expect("a chain that was never posted");
        assert!(length <= total, "more written than there is room for");
        let mut bytes = vec![0; total as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(RX_BASE + slot * SLOT)).unwrap();
        let untouched = bytes.split_off(length as usize);
        assert!(self.careless || untouched.iter().all(|&byte| byte == 0xee), "bytes behind the end were written");
        self.slots.push(slot);
        let chains = bytes.get(10..12).map_or(0, |chains| u16::from_le_bytes([chains[0], chains[1]]));
        Some((bytes, chains))
    }

    /// Chains that were posted and did not come back.
    pub fn rx_waiting(&self) -> usize {
        self.posted.len()
    }

    /// An interrupt that nobody counts.
    pub fn interrupt(&self) -> Interrupt {
        Interrupt::new(Arc::new(EventFd::new(0).unwrap()), Window::row(1).unwrap().remove(0))
    }

    /// The frames that the guest has, without headers, taken.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.inbox.drain(..).map(|(bytes, _)| bytes[HEADER..].to_vec()).collect()
    }

    /// How often the guest was interrupted since last asked.
    pub fn interrupted(&self) -> u64 {
        self.interrupts.read().unwrap_or(0)
    }

    /// Frames, bytes and drops of what was received.
    pub fn received(&self) -> (u64, u64, u64) {
        let traffic = &self.counters.received;
        (traffic.frames(), traffic.bytes(), traffic.dropped())
    }

    /// The same of what was transmitted.
    pub fn transmitted(&self) -> (u64, u64, u64) {
        let traffic = &self.counters.transmitted;
        (traffic.frames(), traffic.bytes(), traffic.dropped())
    }
}

fn cut(start: u64, sizes: &[u32], write: bool) -> Vec<(u64, u32, bool)> {
    let starts = sizes.iter().scan(start, |at, &size| {
        *at += u64::from(size);
        Some(*at - u64::from(size))
    });
    starts.zip(sizes).map(|(at, &size)| (at, size, write)).collect()
}

/// What a tap was told last.
pub fn noted(noted: &AtomicU32) -> u32 {
    noted.load(Ordering::Relaxed)
}

/// What the host got, header and frame.
pub fn heard(host: &UnixDatagram) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    let got = host.recv(&mut bytes).ok()?;
    bytes.truncate(got);
    Some(bytes)
}
