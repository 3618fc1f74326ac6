//! The transport as a driver sees it.

use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, ThreadId};

use proptest::prelude::*;

use super::*;
use crate::virtio::worker::tests::{AVAILABLE, DESCRIPTORS, Driver, SIZE, Successor, USED, wait, wiring};
use crate::virtio::{Context, Event};

struct Guest {
    transport: Transport,
    wiring: Wiring,
    irqfd: Arc<EventFd>,
    faults: Arc<Mutex<Vec<String>>>,
}

/// A transport whose device has its thread.
fn ready(mut transport: Transport) -> Transport {
    transport.spawn_thread(&OnThread::default()).unwrap();
    transport.await_thread().unwrap();
    transport
}

impl Guest {
    fn new() -> Self {
        Self::of(Box::<Successor>::default())
    }

    fn of(device: Box<dyn Device>) -> Self {
        let (wiring, irqfd, faults) = wiring(2);
        let transport = ready(Transport::new(device, wiring.clone()));
        Self { transport, wiring, irqfd, faults }
    }

    fn read(&self, offset: u64) -> u32 {
        self.wiring.interrupt.registers().load(offset)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Section 3.1.1, up to and including FEATURES_OK.
    fn negotiate(&mut self, features: u64) {
        for status in [1, 3] {
            self.write(offset::STATUS, status);
        }
        for half in [0, 1] {
            self.write(offset::DRIVER_FEATURES_SEL, half);
            self.write(offset::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        self.write(offset::STATUS, 11);
    }

    fn set_up_queue(&mut self, index: u32, descriptors: u64) {
        self.write(offset::QUEUE_SEL, index);
        assert_eq!(self.read(offset::QUEUE_SIZE_MAX), u32::from(SIZE));
        self.write(offset::QUEUE_SIZE, SIZE.into());
        for (low, address) in [
            (offset::QUEUE_DESC_LOW, descriptors),
            (offset::QUEUE_DRIVER_LOW, AVAILABLE),
            (offset::QUEUE_DEVICE_LOW, USED),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(offset::QUEUE_READY, 1);
    }

    fn start(&mut self, descriptors: u64) {
        self.negotiate(VERSION_1 | EVENT_IDX);
        self.set_up_queue(0, descriptors);
        self.write(offset::STATUS, 15);
    }

    fn driver(&self) -> Driver {
        Driver::new(self.wiring.memory.clone(), self.wiring.notified[0].clone())
    }
}

#[test]
fn identifies_itself() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!((guest.read(4), guest.read(8)), (2, 999));
    assert_eq!(guest.read(offset::DEVICE_FEATURES), ((1u32 << 28) | (1 << 29)));
    guest.write(offset::DEVICE_FEATURES_SEL, 1);
    assert_eq!(guest.read(offset::DEVICE_FEATURES), 1 | (1 << 8));
    guest.write(offset::DEVICE_FEATURES_SEL, 2);
    assert_eq!(guest.read(offset::DEVICE_FEATURES), 0);
    assert_eq!((guest.read(offset::SHM_LEN_LOW), guest.read(offset::SHM_BASE_HIGH)), (u32::MAX, u32::MAX));
    guest.write(offset::QUEUE_SEL, 2);
    assert_eq!((guest.read(offset::QUEUE_SIZE_MAX), guest.read(offset::QUEUE_READY)), (0, 0));
}

#[test]
fn the_configuration_is_shown_and_ends_in_zeros() {
    let guest = Guest::new();
    let words = [0x100, 0x104, 0x108, 0x10c].map(|offset| guest.read(offset).to_le_bytes());
    assert_eq!(words.concat(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [VERSION_1 | 1, EVENT_IDX] {
        let mut guest = Guest::new();
        guest.negotiate(features);
        assert_eq!(guest.read(offset::STATUS), 3);
        guest.write(offset::STATUS, 15);
        assert_eq!(guest.read(offset::STATUS), 3, "no DRIVER_OK without FEATURES_OK");
    }
    let mut guest = Guest::new();
    guest.negotiate(VERSION_1 | (1 << 40));
    assert_eq!(guest.read(offset::STATUS), 11);
}

#[test]
fn a_ready_queue_keeps_its_settings() {
    let mut guest = Guest::new();
    guest.write(offset::QUEUE_SIZE, 8);
    guest.negotiate(VERSION_1);
    guest.set_up_queue(0, DESCRIPTORS);
    guest.write(offset::QUEUE_DESC_LOW, 0x10);
    guest.write(offset::QUEUE_SIZE, 2);
    let queue = guest.transport.queues[0];
    assert_eq!((queue.size, queue.desc_table, queue.ready), (SIZE, DESCRIPTORS, true));
    guest.write(offset::QUEUE_READY, 0);
    assert_eq!(guest.read(offset::QUEUE_READY), 0);
}

#[test]
fn works_from_reset_to_reset() {
    let mut guest = Guest::new();
    for _ in 0..3 {
        let mut driver = guest.driver();
        // Before DRIVER_OK, by the register: as on a host without ioeventfds.
        assert!(driver.submit(7));
        guest.write(offset::QUEUE_NOTIFY, 0);
        guest.write(offset::QUEUE_NOTIFY, 77);
        guest.start(DESCRIPTORS);
        wait("an answer", || driver.collect() == 1);
        wait("an interrupt", || guest.read(offset::INTERRUPT_STATUS) == 1);
        guest.irqfd.read().unwrap();
        guest.write(offset::INTERRUPT_ACK, 1);
        assert_eq!(guest.read(offset::INTERRUPT_STATUS), 1, "each interrupt is one of the rings");
        guest.write(offset::STATUS, 0);
        assert_eq!((guest.read(offset::STATUS), guest.read(offset::QUEUE_READY)), (0, 0));
        let zeros = vec![0u8; 0x1000];
        vm_memory::Bytes::write_slice(&guest.wiring.memory, &zeros, vm_memory::GuestAddress(AVAILABLE)).unwrap();
        vm_memory::Bytes::write_slice(&guest.wiring.memory, &zeros, vm_memory::GuestAddress(USED)).unwrap();
    }
    assert!(guest.faults.lock().unwrap().is_empty());
}

#[test]
fn a_bad_queue_needs_a_reset_and_a_reset_helps() {
    let mut guest = Guest::new();
    guest.start(0xffff_ffff_0000);
    wait("DEVICE_NEEDS_RESET", || guest.read(offset::STATUS) == 15 | 64);
    wait("an interrupt", || guest.irqfd.read().is_ok());
    assert_eq!(guest.read(offset::INTERRUPT_STATUS), 3);
    assert_eq!(guest.faults.lock().unwrap().len(), 1);
    guest.write(offset::STATUS, 0);
    assert_eq!((guest.read(offset::STATUS), guest.read(offset::INTERRUPT_STATUS)), (0, 1));
    let mut driver = guest.driver();
    guest.start(DESCRIPTORS);
    assert!(driver.submit(1));
    wait("an answer", || driver.collect() == 1);
}

#[test]
fn a_fault_that_a_guest_repeats_is_reported_once() {
    let mut guest = Guest::new();
    for _ in 0..100 {
        guest.start(0xffff_ffff_0000);
        wait("DEVICE_NEEDS_RESET", || guest.read(offset::STATUS) == 15 | 64);
        guest.write(offset::STATUS, 0);
    }
    assert_eq!(guest.faults.lock().unwrap().len(), 1);
    // For another reason, with another sentence: a descriptor outside of memory.
    for address in 0..100u64 {
        let driver = guest.driver();
        driver.describe(0, (u64::MAX - address, 1), (0, 0));
        let avail = [1u16 << 1, 1];
        vm_memory::Bytes::write_obj(&guest.wiring.memory, avail, vm_memory::GuestAddress(AVAILABLE)).unwrap();
        guest.start(DESCRIPTORS);
        wait("DEVICE_NEEDS_RESET", || guest.read(offset::STATUS) == 15 | 64);
        guest.write(offset::STATUS, 0);
    }
    let faults = guest.faults.lock().unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
}

#[test]
fn a_saved_device_continues_in_another_transport() {
    let mut guest = Guest::new();
    let mut driver = guest.driver();
    guest.start(DESCRIPTORS);
    assert!(driver.submit(1));
    wait("an answer", || driver.collect() == 1);
    assert!(guest.transport.save().is_err(), "not while it runs");
    guest.transport.pause();
    assert!(driver.submit(2));
    let state = guest.transport.save().unwrap();
    assert_eq!((state.id, state.registers.status, state.queues[0].next_avail), (999, 15, 1));
    drop(guest.transport);

    let mut transport = ready(Transport::new(Box::<Successor>::default(), guest.wiring.clone()));
    let mut other = state.clone();
    other.id = 1;
    assert!(transport.restore(&other).is_err());
    transport.restore(&state).unwrap();
    assert_eq!(transport.save().unwrap(), state);
    transport.resume();
    wait("the second answer", || driver.collect() == 1);
}

#[test]
fn a_driver_that_asks_for_what_is_not_offered_can_be_saved_and_restored() {
    let mut guest = Guest::new();
    guest.negotiate(u64::MAX);
    assert_eq!(guest.read(offset::STATUS), 3);
    let mut state = guest.transport.save().unwrap();
    assert_eq!(state.registers.driver_features, u64::MAX);
    let mut other = Guest::new();
    other.transport.restore(&state).unwrap();
    other.write(offset::STATUS, 11);
    assert_eq!(other.read(offset::STATUS), 3, "it comes to nothing");
    // No driver gets there.
    state.registers.status = 11;
    assert!(Guest::new().transport.restore(&state).is_err());
}

/// Says on which thread it is called, and waits in each request until it is let go.
struct Slow {
    called: SyncSender<(&'static str, ThreadId)>,
    go: Receiver<()>,
}

impl Slow {
    fn say(&self, what: &'static str) {
        self.called.send((what, thread::current().id())).unwrap();
    }
}

impl Device for Slow {
    fn id(&self) -> u32 {
        999
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn enter_thread(&mut self) -> Result<(), Error> {
        self.say("enter");
        Ok(())
    }

    fn handle(&mut self, _event: Event, _context: &mut Context) -> Result<(), Error> {
        self.say("handle");
        self.go.recv().map_err(|_| Error::Protocol("nobody is there"))
    }

    fn reset(&mut self) {
        self.say("reset");
    }
}

#[test]
fn a_vcpu_does_not_wait_for_a_slow_device() {
    let ((called, calls), (let_go, go)) = (mpsc::sync_channel(64), mpsc::sync_channel(64));
    let mut guest = Guest::of(Box::new(Slow { called, go }));
    let (what, worker) = calls.recv().unwrap();
    assert!(what == "enter" && worker != thread::current().id());
    for _ in 0..3 {
        guest.start(DESCRIPTORS);
        assert_eq!(calls.recv().unwrap(), ("handle", worker), "one thread for all activations");
        // Returns, and the device is at its request still: it is as before, and cannot be set up anew.
        guest.write(offset::STATUS, 0);
        guest.write(offset::STATUS, 1);
        assert_eq!(guest.read(offset::STATUS), 15);
        assert!(calls.try_recv().is_err());
        let_go.send(()).unwrap();
        wait("the reset", || {
            guest.write(offset::STATUS, 0);
            guest.read(offset::STATUS) == 0
        });
        assert_eq!(calls.recv().unwrap(), ("reset", worker), "what a reset takes is not for a vCPU to do");
        assert_eq!(guest.read(offset::QUEUE_READY), 0);
        // Asked for while it is over, a reset is the transport's only.
        while calls.try_recv().is_ok() {}
    }
    assert!(guest.faults.lock().unwrap().is_empty());
}

#[test]
fn a_machine_that_pauses_waits_for_the_device_and_completes_its_reset() {
    let ((called, calls), (let_go, go)) = (mpsc::sync_channel(64), mpsc::sync_channel(64));
    let mut guest = Guest::of(Box::new(Slow { called, go }));
    guest.start(DESCRIPTORS);
    while calls.recv().unwrap().0 != "handle" {}
    guest.write(offset::STATUS, 0);
    assert_eq!(guest.read(offset::STATUS), 15);
    let_go.send(()).unwrap();
    guest.transport.pause();
    assert_eq!((guest.read(offset::STATUS), guest.transport.save().unwrap().registers.status), (0, 0));
}

#[test]
fn a_device_without_a_thread_of_its_own_serves_nobody() {
    let (wiring, irqfd, faults) = wiring(2);
    let mut transport = Transport::new(Box::<Successor>::default(), wiring.clone());
    transport.spawn_thread(&OnThread::new(|kind| Err(io::Error::other(format!("no {kind:?}"))))).unwrap();
    assert_eq!(transport.await_thread().unwrap_err().to_string(), "no Other(999)");
    let mut guest = Guest { transport, wiring, irqfd, faults };
    guest.start(DESCRIPTORS);
    assert_eq!(guest.read(offset::STATUS), 15 | 64);
    guest.write(offset::STATUS, 0);
    assert_eq!(guest.read(offset::STATUS), 0);
    // Plugged in, it works.
    guest.transport = ready(guest.transport);
    let mut driver = guest.driver();
    guest.start(DESCRIPTORS);
    assert!(driver.submit(1));
    wait("an answer", || driver.collect() == 1);
}

proptest! {
    /// Whatever is written where and how wide: no panic, and the device still resets.
    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in proptest::collection::vec((0u64..0x120, any::<u32>(), 0usize..9, any::<bool>()), 0..200),
    ) {
        let mut guest = Guest::new();
        for (offset, value, length, aligned) in accesses {
            let offset = if aligned { offset & !3 } else { offset };
            let bytes = u64::from(value % 0x4000).to_le_bytes();
            let length = if aligned { 4 } else { length };
            guest.transport.write(offset, &bytes[..length]);
        }
        guest.write(offset::STATUS, 0);
        prop_assert_eq!(guest.read(offset::STATUS), 0);
        guest.start(DESCRIPTORS);
        prop_assert_eq!(guest.read(offset::STATUS) & 15, 15);
    }
}
