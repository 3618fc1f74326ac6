//! A device of several pairs with its workers, a driver, and a socket in the stead of each queue of a tap.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::Net;
use super::super::plug::Plug;
use super::super::tap::Tap;
use super::lab::*;
use crate::virtio::Device;
use crate::virtio::driver::DriverQueue;
use crate::virtio::worker::tests::{wait, wiring};
use crate::virtio::worker::{Idle, Wiring, Worker};

pub const PAIRS: u16 = 2;
/// Queues of the second pair, and the control queue behind them.
pub const RX1: usize = 2;
pub const TX1: usize = 3;
pub const CONTROL: usize = 4;
/// A place for commands and one for answers.
const COMMAND: u64 = 0x20_0000;
const ANSWER: u64 = 0x20_1000;
/// For frames, one place for each queue.
const FRAMES: u64 = 0x21_0000;
const FRAME: u64 = 0x2_0000;

pub struct Several {
    pub memory: GuestMemoryMmap,
    pub queues: Vec<DriverQueue>,
    pub wiring: Wiring,
    pub plug: Plug,
    pub faults: Arc<Mutex<Vec<String>>>,
    pub interrupts: Arc<EventFd>,
    side: Option<Side>,
}

enum Side {
    Idle(Idle),
    Active(Worker),
}

/// Sockets in the stead of a tap's queues: the device's ends and the host's.
pub fn taps(count: usize) -> (Vec<Tap>, Vec<UnixDatagram>) {
    let pair = || {
        let (tap, host) = UnixDatagram::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (stand_in(tap.into()).0, host)
    };
    (0..count).map(|_| pair()).unzip()
}

impl Several {
    /// A device that is not active yet.
    pub fn inactive() -> Self {
        let (device, plug) = Net::new(MAC, PAIRS).unwrap();
        let sizes = device.queue_sizes().to_vec();
        let (wiring, interrupts, faults) = wiring(sizes.len());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100_0000)]).unwrap();
        let queues: Vec<_> = (0..).zip(sizes).map(|(index, size)| DriverQueue::new(index, size)).collect();
        let wiring = Wiring { memory: memory.clone(), ..wiring };
        let states = queues.iter().map(|queue| queue.ring(&wiring.interrupt).state()).collect();
        let side = Some(Side::Idle(Idle { device: Box::new(device), queues: states }));
        Self { memory, queues, wiring, plug, faults, interrupts, side }
    }

    /// One in use with all features and so many queues of a tap.
    pub fn with(queues: usize) -> (Self, Vec<UnixDatagram>) {
        let mut several = Self::inactive();
        let (tap, hosts) = taps(queues);
        several.plug.change(tap).unwrap();
        several.start(ALL);
        (several, hosts)
    }

    pub fn start(&mut self, features: u64) {
        let Some(Side::Idle(idle)) = self.side.take() else { panic!("it is active") };
        let features = features & idle.device.features();
        let worker = Worker::start(idle, features, self.wiring.clone());
        self.side = Some(Side::Active(worker.unwrap_or_else(|(_, error)| panic!("{error}"))));
    }

    pub fn stop(&mut self) -> &mut Idle {
        let idle = match self.side.take() {
            Some(Side::Active(worker)) => worker.stop().expect("the worker panicked"),
            Some(Side::Idle(idle)) => idle,
            None => panic!("it was lost before"),
        };
        match self.side.insert(Side::Idle(idle)) {
            Side::Idle(idle) => idle,
            Side::Active(_) => unreachable!(),
        }
    }

    /// The driver resets the device and makes its queues anew.
    pub fn reset(&mut self) {
        self.stop();
        let memory = self.memory.clone();
        self.queues.iter_mut().for_each(|queue| queue.renew(&memory));
        let states = self.queues.iter().map(|queue| queue.ring(&self.wiring.interrupt).state()).collect();
        self.wiring.interrupt.set_broken(false);
        let idle = self.stop();
        idle.device.reset();
        idle.queues = states;
    }

    /// Puts another device into the place of the one that is stopped.
    pub fn exchange(&mut self, mut device: Net, plug: Plug) {
        let state = self.stop().device.save().unwrap();
        device.restore(&state).unwrap();
        self.stop().device = Box::new(device);
        self.plug = plug;
    }

    pub fn kick(&mut self, queue: usize) {
        self.wiring.notified[queue].write(1).unwrap();
    }

    /// Gives a command by this queue; the answer.
    pub fn command_by(&mut self, queue: usize, command: &[u8]) -> u8 {
        self.memory.write_slice(command, GuestAddress(COMMAND)).unwrap();
        self.memory.write_obj(0x77u8, GuestAddress(ANSWER)).unwrap();
        let length = command.len() as u32;
        let chain = [(COMMAND, length, false), (ANSWER, 1, true)];
        self.queues[queue].add(&self.memory, if length == 0 { &chain[1..] } else { &chain }).unwrap();
        self.kick(queue);
        wait("an answer", || self.queues[queue].take(&self.memory).is_some());
        self.memory.read_obj(GuestAddress(ANSWER)).unwrap()
    }

    pub fn command(&mut self, command: &[u8]) -> u8 {
        self.command_by(CONTROL, command)
    }

    pub fn use_pairs(&mut self, pairs: u16) -> u8 {
        self.command(&[&[4, 0], &pairs.to_le_bytes()[..]].concat())
    }

    /// Offers a frame of so many bytes.
    pub fn offer(&mut self, queue: usize, bytes: usize) {
        self.offer_bytes(queue, &framed(&frame(bytes)));
    }

    /// Offers this frame with its header.
    pub fn offer_bytes(&mut self, queue: usize, bytes: &[u8]) {
        let at = FRAMES + FRAME * queue as u64;
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        self.queues[queue].add(&self.memory, &[(at, bytes.len() as u32, false)]).unwrap();
        self.kick(queue);
    }

    /// Offers one at a place of its own, if there is a descriptor.
    pub fn offer_apart(&mut self, queue: usize, number: usize, bytes: usize) -> bool {
        let at = 0x40_0000 + 0x1000 * (2 * (number % 512) + queue / 2) as u64;
        if self.queues[queue].is_full() {
            return false;
        }
        self.memory.write_slice(&framed(&frame(bytes)), GuestAddress(at)).unwrap();
        self.queues[queue].add(&self.memory, &[(at, (12 + bytes) as u32, false)]);
        self.kick(queue);
        true
    }

    /// Sends a frame from this queue, which has to come to this end.
    #[track_caller]
    pub fn sends(&mut self, queue: usize, host: &UnixDatagram, bytes: usize) {
        self.offer(queue, bytes);
        assert!(heard(host).unwrap() == framed(&frame(bytes)));
        wait("its chain", || self.queues[queue].take(&self.memory).is_some());
    }

    /// Has a frame from this end come by this queue.
    #[track_caller]
    pub fn receives(&mut self, queue: usize, host: &UnixDatagram, bytes: usize) {
        let at = FRAMES + FRAME * queue as u64;
        self.queues[queue].add(&self.memory, &[(at, 0x1_8000, true)]).unwrap();
        self.kick(queue);
        host.send(&framed(&frame(bytes))).unwrap();
        let mut length = 0;
        wait("a frame", || match self.queues[queue].take(&self.memory) {
            Some((_, written)) => {
                length = written;
                true
            }
            None => false,
        });
        assert_eq!(length as usize, 12 + bytes);
    }

    /// Waits until the device has stopped; what it said.
    pub fn fault(&self) -> Vec<String> {
        wait("a fault", || self.wiring.interrupt.is_broken() && !self.faults.lock().unwrap().is_empty());
        self.faults.lock().unwrap().clone()
    }
}
