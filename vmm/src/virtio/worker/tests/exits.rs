//! A device that vCPUs serve, by the same fake driver.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, ThreadId};

use super::*;
use crate::virtio::{AtExit, ExitNotifier};

/// A request that is left to the device's thread, and one that waits there until it is let go.
const LEFT: u32 = 100;
const SLOW: u32 = 200;

/// Answers each number with the next one, and says which thread did.
struct Both {
    served: Sender<(u32, ThreadId)>,
    go: Receiver<()>,
}

impl Both {
    fn serve(&self, ring: &mut Ring, memory: &GuestMemoryMmap, at_exit: bool) -> Result<AtExit, Error> {
        let mut rest = AtExit::Served;
        ring.serve(memory, |chain| {
            let mut bytes = [0; 4];
            chain.readable.read(&mut bytes);
            let value = u32::from_le_bytes(bytes);
            if at_exit && value >= LEFT {
                rest = AtExit::Left;
                return Ok(Outcome::Later);
            }
            self.served.send((value, thread::current().id())).unwrap();
            if value == SLOW {
                self.go.recv().unwrap();
            }
            Ok(Outcome::Used(chain.writable.write(&(value + 1).to_le_bytes()) as u32))
        })?;
        Ok(rest)
    }
}

impl Device for Both {
    fn id(&self) -> u32 {
        999
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn serve_at_exit(&mut self, queue: usize, memory: &GuestMemoryMmap, rings: &mut [Ring]) -> Result<AtExit, Error> {
        self.serve(&mut rings[queue], memory, true)
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        let Event::Queue(queue) = event else { return Ok(()) };
        self.serve(&mut context.rings[queue], context.memory, false).map(drop)
    }
}

struct Machine {
    wiring: Wiring,
    notifier: ExitNotifier,
    driver: Driver,
    served: Receiver<(u32, ThreadId)>,
    let_go: Sender<()>,
    device: Option<Box<dyn Device>>,
}

impl Machine {
    fn new() -> Self {
        let ((say, served), (let_go, go)) = (mpsc::channel(), mpsc::channel());
        let wiring = wiring(1).0;
        // Notified by hand, as a vCPU would.
        let driver = Driver::new(wiring.memory.clone(), event());
        let device: Box<dyn Device> = Box::new(Both { served: say, go });
        Self { notifier: wiring.exit_notifier(), wiring, driver, served, let_go, device: Some(device) }
    }

    fn idle(&mut self) -> Idle {
        Idle { device: self.device.take().unwrap(), queues: vec![queue()] }
    }

    /// Waits until the device's thread has served what was there at its start.
    fn await_start(&mut self, first: u32) -> ThreadId {
        let (value, worker) = self.served.recv().unwrap();
        assert_eq!(value, first);
        wait("the first answer", || self.driver.collect() == 1);
        worker
    }
}

#[test]
fn a_vcpu_serves_what_it_can_and_leaves_the_rest() {
    let mut machine = Machine::new();
    assert!(machine.driver.submit(0));
    let started = start_with(machine.idle(), 0, &machine.wiring);
    let worker = machine.await_start(0);
    for value in 1..=50 {
        // Where the thread was still at it the vCPU leaves it to that; this must come to an end.
        assert!(machine.driver.submit(value));
        machine.notifier.notify(0);
        wait("an answer", || machine.driver.collect() == 1);
    }
    let own = machine.served.try_iter().filter(|(_, thread)| *thread == thread::current().id()).count();
    assert!(own >= 49, "a vCPU has served {own} of 50");
    assert!(machine.driver.submit(LEFT));
    machine.notifier.notify(0);
    assert_eq!(machine.served.recv().unwrap(), (LEFT, worker));
    wait("an answer", || machine.driver.collect() == 1);
    started.stop().unwrap();
}

#[test]
fn a_vcpu_does_not_wait_for_a_busy_device() {
    let mut machine = Machine::new();
    assert!(machine.driver.submit(SLOW));
    let started = start_with(machine.idle(), 0, &machine.wiring);
    let (_, worker) = machine.served.recv().unwrap();
    for value in 1..5 {
        assert!(machine.driver.submit(value));
        // Returns though the device is at its request.
        machine.notifier.notify(0);
    }
    assert_eq!((machine.driver.collect(), machine.served.try_recv().ok()), (0, None));
    machine.let_go.send(()).unwrap();
    let mut collected = 0;
    wait("all answers", || {
        collected += machine.driver.collect();
        collected == 5
    });
    assert!(machine.served.try_iter().all(|(_, thread)| thread == worker));
    started.stop().unwrap();
}

#[test]
fn several_vcpus_lose_and_double_nothing() {
    const REQUESTS: u32 = 20_000;
    let mut machine = Machine::new();
    let started = start_with(machine.idle(), 0, &machine.wiring);
    let (notifier, done) = (&machine.notifier, &std::sync::atomic::AtomicBool::new(false));
    let (driver, served) = (&mut machine.driver, &machine.served);
    thread::scope(|scope| {
        // Other vCPUs, which notify at any time.
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    notifier.notify(0);
                    thread::yield_now();
                }
            });
        }
        let (mut next, mut completed) = (0, 0);
        wait("all requests", || {
            // As the driver has it: a notification for each.
            while next < REQUESTS && driver.submit(next % LEFT) {
                next += 1;
                notifier.notify(0);
            }
            completed += driver.collect();
            completed == REQUESTS as usize
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    started.stop().unwrap();
    assert!(served.try_iter().map(|(value, _)| value).eq((0..REQUESTS).map(|value| value % LEFT)));
}

#[test]
fn what_is_wrong_at_an_exit_stops_the_device() {
    let mut machine = Machine::new();
    assert!(machine.driver.submit(0));
    let started = start_with(machine.idle(), 0, &machine.wiring);
    machine.await_start(0);
    machine.driver.describe(0, (u64::MAX - 1, u32::MAX), (0, 0));
    machine.driver.offer(0);
    machine.notifier.notify(0);
    wait("a fault", || machine.wiring.interrupt.is_broken());
    // As often as it likes, it is not served any more.
    machine.notifier.notify(0);
    assert_eq!(started.stop().unwrap().queues.len(), 1);
}

#[test]
fn notifications_of_a_device_that_is_not_in_use_are_kept() {
    let mut machine = Machine::new();
    assert!(machine.driver.submit(1));
    machine.notifier.notify(0);
    machine.notifier.notify(7);
    assert!(machine.served.try_recv().is_err());
    assert_eq!(machine.wiring.notified[0].read().unwrap(), 1);
    let started = start_with(machine.idle(), 0, &machine.wiring);
    machine.await_start(1);
    started.stop().unwrap();
}
