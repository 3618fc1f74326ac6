//! A fake driver on a real ring, against a worker that is stopped and started under it.

mod exits;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::queue::Outcome;
use super::*;
use crate::layout::MIB;
use crate::registers::Window;
use crate::virtio::rng::Rng;

pub(crate) const SIZE: u16 = 16;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x8000;
const TABLE: u64 = 0x9000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A driver as strict as Linux: it notifies only when `avail_event` asks for it, so a lost wake-up
/// shows as a request that never completes.
pub(crate) struct Driver {
    memory: GuestMemoryMmap,
    notified: Arc<EventFd>,
    available: u16,
    seen: u16,
    free: Vec<u16>,
    pending: HashMap<u16, u32>,
}

impl Driver {
    pub(crate) fn new(memory: GuestMemoryMmap, notified: Arc<EventFd>) -> Self {
        let free = (0..SIZE / 2).rev().collect();
        Self { memory, notified, available: 0, seen: 0, free, pending: HashMap::new() }
    }

    fn word(&self, at: u64) -> u16 {
        self.memory.load(GuestAddress(at), Ordering::Acquire).unwrap()
    }

    /// A readable descriptor of 4 bytes with `value`, then a writable one of 4; false if none is free.
    pub(crate) fn submit(&mut self, value: u32) -> bool {
        let Some(slot) = self.free.pop() else { return false };
        let buffer = BUFFERS + u64::from(slot) * 8;
        self.memory.write_obj([value, 0], GuestAddress(buffer)).unwrap();
        self.describe(2 * slot, (buffer, 4), (NEXT, 2 * slot + 1));
        self.describe(2 * slot + 1, (buffer + 4, 4), (WRITE, 0));
        self.pending.insert(slot, value);
        self.offer(2 * slot);
        true
    }

    pub(crate) fn describe(&self, index: u16, (address, length): (u64, u32), (flags, next): (u16, u16)) {
        let at = DESCRIPTORS + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj([flags, next], GuestAddress(at + 12)).unwrap();
    }

    /// Makes the chain available and notifies the device if it asks for that.
    pub(crate) fn offer(&mut self, head: u16) {
        let at = AVAILABLE + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
        fence(Ordering::SeqCst);
        if self.word(USED + 4 + u64::from(SIZE) * 8) == self.available.wrapping_sub(1) {
            self.notified.write(1).unwrap();
        }
    }

    /// Takes what the device completed; checks that each answer is the request plus one.
    pub(crate) fn collect(&mut self) -> usize {
        let mut count = 0;
        while self.word(USED + 2) != self.seen {
            let at = GuestAddress(USED + 4 + u64::from(self.seen % SIZE) * 8);
            let [id, length]: [u32; 2] = self.memory.read_obj(at).unwrap();
            let slot = id as u16 / 2;
            let value = self.pending.remove(&slot).expect("used once only");
            let answer: u32 = self.memory.read_obj(GuestAddress(BUFFERS + u64::from(slot) * 8 + 4)).unwrap();
            assert_eq!((length, answer), (4, value + 1));
            self.seen = self.seen.wrapping_add(1);
            // `used_event`: interrupt with the next one.
            self.memory.write_obj(self.seen, GuestAddress(AVAILABLE + 4 + u64::from(SIZE) * 2)).unwrap();
            self.free.push(slot);
            count += 1;
        }
        count
    }
}

/// Answers each number with the next one; remembers in which order.
#[derive(Default)]
pub(crate) struct Successor {
    pub(crate) served: Arc<Mutex<Vec<u32>>>,
}

impl Device for Successor {
    fn id(&self) -> u32 {
        999
    }

    fn features(&self) -> u64 {
        1 << 40
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, SIZE]
    }

    fn config(&self) -> Vec<u8> {
        (0..10).collect()
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        let Event::Queue(queue) = event else { return Ok(()) };
        context.rings[queue].serve(context.memory, |chain| {
            let mut bytes = [0; 4];
            chain.readable.read(&mut bytes);
            let value = u32::from_le_bytes(bytes);
            self.served.lock().unwrap().push(value);
            Ok(Outcome::Used(chain.writable.write(&(value + 1).to_le_bytes()) as u32))
        })
    }
}

pub(crate) fn queue() -> QueueState {
    QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        event_idx_enabled: true,
        desc_table: DESCRIPTORS,
        avail_ring: AVAILABLE,
        used_ring: USED,
        ..QueueState::default()
    }
}

pub(crate) fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
}

/// Wiring of `queues` queues, its irqfd, and the faults that were reported.
pub(crate) fn wiring(queues: usize) -> (Wiring, Arc<EventFd>, Arc<Mutex<Vec<String>>>) {
    let (irqfd, faults): (_, Arc<Mutex<Vec<String>>>) = (event(), Arc::default());
    let report = faults.clone();
    let wiring = Wiring {
        name: "virtio-test".to_owned(),
        memory: crate::memory::allocate(MIB).unwrap(),
        notified: (0..queues).map(|_| event()).collect(),
        active: Arc::default(),
        interrupt: Interrupt::new(irqfd.clone(), Window::row(1).unwrap().remove(0)),
        on_fault: Arc::new(move |text| report.lock().unwrap().push(text)),
    };
    (wiring, irqfd, faults)
}

pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// A worker that serves a device.
pub(crate) struct Started(Worker);

impl Started {
    /// Gives the device back as it is; `None` if the worker panicked.
    pub(crate) fn stop(&self) -> Option<Idle> {
        self.0.ask_back(false);
        match self.0.take_back(None) {
            Back::Here(idle) => Some(idle),
            Back::NotYet | Back::Lost => None,
        }
    }

    /// Serves again, on the same thread.
    fn go_on(&self, idle: Idle) {
        assert!(self.0.start(idle, 0).is_ok());
    }
}

/// Has a thread of its own serve a device.
pub(crate) fn start_with(idle: Idle, features: u64, wiring: &Wiring) -> Started {
    let Idle { device, queues } = idle;
    let spawned = Worker::spawn(device, wiring.clone(), &OnThread::default());
    let starting = spawned.unwrap_or_else(|(_, error)| panic!("{error}"));
    let (device, worker) = starting.finish();
    let (device, worker) = (device.unwrap(), worker.unwrap());
    assert!(worker.start(Idle { device, queues }, features).is_ok());
    Started(worker)
}

fn start(idle: Idle, wiring: &Wiring) -> Started {
    start_with(idle, 0, wiring)
}

#[test]
fn nothing_is_lost_or_doubled_when_stopped_in_the_middle() {
    const REQUESTS: u32 = 20_000;
    let (wiring, irqfd, faults) = wiring(2);
    let served: Arc<Mutex<Vec<u32>>> = Arc::default();
    let device = Successor { served: served.clone() };
    let unused = QueueState { max_size: SIZE, size: SIZE, ..QueueState::default() };
    let worker = start(Idle { device: Box::new(device), queues: vec![queue(), unused] }, &wiring);

    let mut driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
    let done = Arc::new(AtomicU16::new(0));
    let finished = done.clone();
    let traffic = std::thread::spawn(move || {
        let (mut next, mut completed) = (0, 0);
        wait("all requests", || {
            while next < REQUESTS && driver.submit(next) {
                next += 1;
            }
            completed += driver.collect();
            completed == REQUESTS as usize
        });
        finished.store(1, Ordering::Release);
    });
    let mut restarts = 0;
    while done.load(Ordering::Acquire) == 0 && !traffic.is_finished() {
        std::thread::sleep(Duration::from_micros(300));
        worker.go_on(worker.stop().unwrap());
        restarts += 1;
    }
    traffic.join().unwrap();
    let idle = worker.stop().unwrap();
    assert_eq!(u32::from(idle.queues[0].next_used), REQUESTS % 65_536);
    assert!(served.lock().unwrap().iter().copied().eq(0..REQUESTS), "each once, in order");
    assert!(restarts > 3, "only {restarts} restarts");
    assert!(irqfd.read().unwrap() > 0 && faults.lock().unwrap().is_empty());
}

#[test]
fn requests_made_while_no_worker_runs_are_served_at_its_start() {
    let (wiring, ..) = wiring(1);
    let mut driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
    // The notification of these is consumed by nobody.
    assert!(driver.submit(1) && driver.submit(2));
    wiring.notified[0].read().unwrap();
    let worker = start(Idle { device: Box::<Successor>::default(), queues: vec![queue()] }, &wiring);
    let mut completed = 0;
    wait("two answers", || {
        completed += driver.collect();
        completed == 2
    });
    worker.stop().unwrap();
}

#[test]
fn the_entropy_device_fills_buffers() {
    let (wiring, ..) = wiring(1);
    let mut driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
    driver.describe(0, (BUFFERS, 64), (WRITE, 0));
    driver.offer(0);
    let worker = start(Idle { device: Box::new(Rng), queues: vec![queue()] }, &wiring);
    wait("random bytes", || driver.word(USED + 2) == 1);
    let (used, bytes): ([u32; 2], [u8; 64]) = (
        wiring.memory.read_obj(GuestAddress(USED + 4)).unwrap(),
        wiring
            .memory
            .read_obj(GuestAddress(BUFFERS))
            .map(|words: [u64; 8]| words.map(u64::to_le_bytes))
            .unwrap()
            .concat()
            .try_into()
            .unwrap(),
    );
    assert_eq!(used, [0, 64]);
    assert!(bytes.iter().filter(|byte| **byte != 0).count() > 32);
    worker.stop().unwrap();
}

/// What hostile drivers do to descriptors; none may do more than stop the device.
#[test]
fn a_bad_chain_stops_the_device_once_and_asks_for_a_reset() {
    type Damage = fn(&Driver);
    let damages: [Damage; 6] = [
        |driver| {
            // An indirect table longer than the queue: each entry names the next one, the last itself.
            driver.describe(0, (TABLE, 16 * 64), (INDIRECT, 0));
            for index in 0..64u16 {
                let at = GuestAddress(TABLE + u64::from(index) * 16);
                driver
                    .memory
                    .write_obj([BUFFERS, 1 | (u64::from(NEXT) << 32) | (u64::from(index + 1) << 48)], at)
                    .unwrap();
            }
        },
        |driver| driver.describe(0, (MIB - 2, 4), (NEXT, 1)),
        |driver| driver.describe(0, (u64::MAX - 1, u32::MAX), (NEXT, 1)),
        |driver| {
            // A writable descriptor first, then a readable one.
            driver.describe(0, (BUFFERS, 4), (NEXT | WRITE, 1));
            driver.describe(1, (BUFFERS, 4), (0, 0));
        },
        |driver| driver.memory.write_obj(500u16, GuestAddress(AVAILABLE + 2)).unwrap(),
        |driver| driver.memory.write_obj(99u16, GuestAddress(AVAILABLE + 4)).unwrap(),
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        let (wiring, irqfd, faults) = wiring(1);
        let mut driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
        driver.submit(5);
        damage(&driver);
        let worker = start(Idle { device: Box::<Successor>::default(), queues: vec![queue()] }, &wiring);
        wait(&format!("a fault of kind {number}"), || wiring.interrupt.is_broken());
        wiring.notified[0].write(1).unwrap();
        assert_eq!(worker.stop().unwrap().queues.len(), 1);
        assert_eq!(
            wiring.interrupt.registers().load(crate::registers::offset::INTERRUPT_STATUS) & crate::interrupt::CONFIG,
            crate::interrupt::CONFIG
        );
        assert!(irqfd.read().unwrap() > 0, "the status changes first, then the driver is told");
        let faults = faults.lock().unwrap();
        assert!(faults.len() == 1 && faults[0].starts_with("virtio-test: "), "{faults:?}");
    }
}

/// Loops in the descriptor table are bounded by its size.
#[test]
fn an_endless_chain_comes_to_an_end() {
    let (wiring, ..) = wiring(1);
    let mut driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
    driver.describe(0, (BUFFERS, 4), (NEXT, 0));
    driver.offer(0);
    let worker = start(Idle { device: Box::<Successor>::default(), queues: vec![queue()] }, &wiring);
    wait("an answer or a fault", || driver.word(USED + 2) == 1 || wiring.interrupt.is_broken());
    worker.stop().unwrap();
}
