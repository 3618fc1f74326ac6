//! A device on its worker's thread, as a machine has it, with a driver and a socket in the stead of a tap.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::Net;
use super::super::pair::{RX, TX};
use super::super::tap::Tap;
use super::super::tap_handle::TapHandle;
use super::lab::*;
use crate::virtio::Device;
use crate::virtio::driver::DriverQueue;
use crate::virtio::worker::tests::{Started, start_with, wait, wiring};
use crate::virtio::worker::{Idle, Wiring};

/// For frames, one place for each queue.
const FRAMES: u64 = 0x21_0000;
const FRAME: u64 = 0x2_0000;

pub struct Threaded {
    pub memory: GuestMemoryMmap,
    pub queues: Vec<DriverQueue>,
    pub wiring: Wiring,
    pub tap_handle: TapHandle,
    pub faults: Arc<Mutex<Vec<String>>>,
    pub interrupts: Arc<EventFd>,
    side: Option<Side>,
}

enum Side {
    Idle(Idle),
    Active(Started),
}

/// A socket in the stead of a tap: the device's end and the host's, which waits for what comes.
pub fn tap() -> (Tap, UnixDatagram) {
    let (tap, host) = UnixDatagram::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (fake_tap(tap.into()).0, host)
}

impl Threaded {
    /// A device that is not active yet.
    pub fn inactive() -> Self {
        let (device, tap_handle) = Net::new(MAC).unwrap();
        let sizes = device.queue_sizes().to_vec();
        let (wiring, interrupts, faults) = wiring(sizes.len());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x100_0000)]).unwrap();
        let queues: Vec<_> = (0..).zip(sizes).map(|(index, size)| DriverQueue::new(index, size)).collect();
        let wiring = Wiring { memory: memory.clone(), ..wiring };
        let states = queues.iter().map(|queue| queue.ring(&wiring.interrupt).state()).collect();
        let side = Some(Side::Idle(Idle { device: Box::new(device), queues: states }));
        Self { memory, queues, wiring, tap_handle, faults, interrupts, side }
    }

    /// One in use with all features and a tap.
    pub fn with_tap() -> (Self, UnixDatagram) {
        let mut threaded = Self::inactive();
        let (tap, host) = tap();
        threaded.tap_handle.replace(Some(tap)).unwrap();
        threaded.start(ALL);
        (threaded, host)
    }

    pub fn start(&mut self, features: u64) {
        let Some(Side::Idle(idle)) = self.side.take() else { panic!("it is active") };
        let features = features & idle.device.features();
        self.side = Some(Side::Active(start_with(idle, features, &self.wiring)));
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

    pub fn kick(&mut self, queue: usize) {
        self.wiring.notified[queue].write(1).unwrap();
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
        let at = 0x40_0000 + 0x1000 * (number % 1024) as u64;
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

#[test]
fn a_device_has_one_pair_of_queues_and_no_control_queue() {
    let (device, _handle) = Net::new(MAC).unwrap();
    assert_eq!(device.features() & (1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ), 0);
    assert_eq!((device.queue_sizes(), device.config()), (&[256, 256][..], MAC.to_vec()));
}

#[test]
fn a_device_that_is_stopped_and_started_loses_no_frame() {
    const COUNT: usize = 3000;
    let (mut threaded, host) = Threaded::with_tap();
    std::thread::scope(|scope| {
        let listening = scope.spawn(|| (0..COUNT).all(|at| heard(&host).unwrap() == framed(&frame(60 + at % 100))));
        for at in 0..COUNT {
            let memory = threaded.memory.clone();
            wait("room", || {
                while threaded.queues[TX].take(&memory).is_some() {}
                threaded.offer_apart(TX, at, 60 + at % 100)
            });
            if at % 100 == 99 {
                threaded.stop();
                threaded.start(ALL);
            }
        }
        assert!(listening.join().unwrap());
    });
    assert!(threaded.faults.lock().unwrap().is_empty() && threaded.interrupts.read().unwrap() > 0);
}

#[test]
fn a_fault_stops_the_device_until_a_reset() {
    let (mut threaded, host) = Threaded::with_tap();
    let memory = threaded.memory.clone();
    threaded.queues[TX].add(&memory, &[(u64::MAX - 3, 40, false)]).unwrap();
    threaded.kick(TX);
    assert_eq!(threaded.fault().len(), 1);
    threaded.offer(TX, 60);
    std::thread::sleep(Duration::from_millis(100));
    host.set_nonblocking(true).unwrap();
    assert!(heard(&host).is_none());
    host.set_nonblocking(false).unwrap();
    threaded.reset();
    threaded.start(ALL);
    threaded.sends(TX, &host, 61);
    threaded.receives(RX, &host, 62);
    assert_eq!(threaded.faults.lock().unwrap().len(), 1);
}

/// What a guest without manners does to the queues.
#[derive(Clone, Debug)]
enum Step {
    Chain(usize, Vec<(u64, u32, bool)>),
    Index(usize, u16),
    Scribble(u64, u64),
    Tap(bool),
    Pause,
    Reset(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let buffer = (prop_oneof![0u64..0x100_0000, any::<u64>()], prop_oneof![0u32..5000, any::<u32>()], any::<bool>());
    prop_oneof![
        4 => (0usize..2, prop::collection::vec(buffer, 1..4)).prop_map(|(queue, chain)| Step::Chain(queue, chain)),
        1 => (0usize..2, any::<u16>()).prop_map(|(queue, index)| Step::Index(queue, index)),
        1 => (0x2_0000u64..0x6_0000, any::<u64>()).prop_map(|(at, word)| Step::Scribble(at, word)),
        2 => any::<bool>().prop_map(Step::Tap),
        2 => Just(Step::Pause),
        2 => prop_oneof![Just(ALL), any::<u64>()].prop_map(Step::Reset),
    ]
}

fn perform(threaded: &mut Threaded, step: &Step) {
    let memory = threaded.memory.clone();
    match step {
        Step::Chain(queue, chain) => {
            threaded.queues[*queue].add(&memory, chain);
            threaded.kick(*queue);
        }
        Step::Index(queue, index) => {
            threaded.queues[*queue].set_available(&memory, *index);
            threaded.kick(*queue);
        }
        Step::Scribble(at, word) => memory.write_obj(*word, GuestAddress(*at)).unwrap(),
        // A device that has stopped does not answer in time.
        Step::Tap(_) if threaded.wiring.interrupt.is_broken() => {}
        Step::Tap(there) => {
            threaded.stop();
            threaded.tap_handle.replace(there.then(|| tap().0)).unwrap();
            threaded.start(ALL);
        }
        Step::Pause => {
            threaded.stop();
            threaded.start(ALL);
        }
        Step::Reset(features) => {
            threaded.reset();
            threaded.start(*features);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver does to the queues, nothing panics or hangs, and after a reset both serve.
    #[test]
    fn anything(steps in prop::collection::vec(step(), 1..60)) {
        let (mut threaded, _host) = Threaded::with_tap();
        for step in &steps {
            perform(&mut threaded, step);
        }
        threaded.reset();
        let (tap, host) = tap();
        threaded.tap_handle.replace(Some(tap)).unwrap();
        threaded.faults.lock().unwrap().clear();
        threaded.start(ALL);
        threaded.sends(TX, &host, 60);
        threaded.receives(RX, &host, 61);
        prop_assert!(threaded.faults.lock().unwrap().is_empty());
    }
}
