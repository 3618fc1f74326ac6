//! The pairs of queues behind the first, each with a worker of its own while the driver uses it.
//!
//! ```text
//!  the device's worker                         worker of a lane
//!  ───────────────────                         ────────────────
//!  idle: its tap      ──the driver uses it──▶  Lane: pair, tap, two rings
//!                     ◀──it does not, or the device ends──
//! ```
//!
//! Until then its queue of the tap is detached: the host steers no frames to it. A lane that stops because of a fault
//! reports it, and has the device's worker stop as well.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState};

use super::Counters;
use super::lane::Lane;
use super::plug::Waker;
use super::tap::Tap;
use crate::virtio::Error;
use crate::virtio::queue::Ring;
use crate::virtio::worker::{Idle, Wiring, Worker};

/// Least time between two changes of how many are used: each takes the host's lock of all network configuration, which a
/// guest that does nothing else shall not have for itself.
const PACE: Duration = Duration::from_millis(5);

/// All of them.
pub struct Lanes {
    sides: Vec<Side>,
    /// How many the driver uses, the first ones.
    used: usize,
    features: u64,
    /// When that number last changed.
    changed: Option<Instant>,
    /// What their workers need. Without it the driver has one pair only.
    wiring: Option<Wiring>,
    /// One of them has stopped because of a fault.
    broken: Arc<AtomicBool>,
}

struct Side {
    counters: Arc<Counters>,
    /// While there is no worker.
    tap: Option<Tap>,
    worker: Option<Worker<Lane>>,
}

impl Lanes {
    /// As many as there are counters, without taps, none in use.
    pub fn new(counters: &[Arc<Counters>]) -> Self {
        let side = |counters: &Arc<Counters>| Side { counters: counters.clone(), tap: None, worker: None };
        let sides = counters.iter().map(side).collect();
        Self { sides, used: 0, features: 0, changed: None, wiring: None, broken: Arc::default() }
    }

    /// What their workers will need, and what wakes the device's when one of them has stopped. Returns their queues.
    pub fn wire(&mut self, wiring: &Wiring, waker: Waker) -> Range<usize> {
        let (report, broken) = (wiring.on_fault.clone(), self.broken.clone());
        let on_fault = Arc::new(move |text| {
            report(text);
            broken.store(true, Ordering::Release);
            // Nothing is left to do where that fails: the driver is told all the same.
            let _ = waker.wake();
        });
        self.wiring = Some(Wiring { on_fault, ..wiring.clone() });
        queues(0).start..queues(self.sides.len()).start
    }

    /// Fails when a lane has.
    pub fn check(&self) -> Result<(), Error> {
        if self.broken.load(Ordering::Acquire) { Err(Error::Reported) } else { Ok(()) }
    }

    /// How many the driver uses.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The same for when the device begins again.
    pub fn set_used(&mut self, used: usize) {
        self.used = used.min(self.sides.len());
    }

    /// The driver is ready, with these features: those that it used go on, with these taps.
    pub fn enter(&mut self, features: u64, taps: Vec<Tap>, rings: &mut [Ring]) -> Result<(), Error> {
        self.features = features;
        self.broken.store(false, Ordering::Release);
        if self.wiring.is_none() {
            self.used = 0;
        }
        self.put(taps, rings)
    }

    /// Undoes [`Lanes::enter`] and gives the taps back.
    pub fn leave(&mut self, rings: &mut [Ring]) -> Vec<Tap> {
        let taps = (0..self.sides.len()).filter_map(|lane| self.stop(lane, rings)).collect();
        self.wiring = None;
        taps
    }

    /// Puts these taps into the places of those that are there, which are closed. An error breaks the device.
    pub fn replace(&mut self, taps: Vec<Tap>, rings: &mut [Ring]) -> Result<(), Error> {
        let put = self.put(taps, rings);
        if let (Err(error), Some(wiring)) = (&put, &self.wiring) {
            (wiring.on_fault)(format!("{}: {error}", wiring.name));
        }
        put
    }

    fn put(&mut self, taps: Vec<Tap>, rings: &mut [Ring]) -> Result<(), Error> {
        let (used, mut taps) = (self.used, taps.into_iter());
        for lane in 0..self.sides.len() {
            drop(self.stop(lane, rings));
            // One whose interface was removed meanwhile is none; who removed it plugs another.
            let steered = |mut tap: Tap| tap.steer(lane < used).is_ok().then_some(tap);
            self.keep(lane, taps.next().and_then(steered));
        }
        (0..used).try_for_each(|lane| self.start(lane, rings))
    }

    /// Whether the first `count` have a tap.
    pub fn have_taps(&self, count: usize) -> bool {
        self.sides.iter().take(count).all(|side| side.tap.is_some() || side.worker.is_some())
    }

    /// The driver uses so many from now on. On an error it uses as many as before.
    pub fn resize(&mut self, wanted: usize, rings: &mut [Ring]) -> Result<(), Error> {
        let before = self.used;
        if wanted == before {
            return Ok(());
        }
        if let Some(last) = self.changed {
            std::thread::sleep(PACE.saturating_sub(last.elapsed()));
        }
        self.changed = Some(Instant::now());
        for lane in before..wanted {
            if let Err(error) = self.begin(lane, rings) {
                (before..=lane).for_each(|lane| self.end(lane, rings));
                return Err(error);
            }
        }
        (wanted..before).for_each(|lane| self.end(lane, rings));
        self.used = wanted;
        Ok(())
    }

    fn begin(&mut self, lane: usize, rings: &mut [Ring]) -> Result<(), Error> {
        if let Some(tap) = self.sides.get_mut(lane).and_then(|side| side.tap.as_mut()) {
            tap.steer(true).map_err(|error| Error::Host("attach a queue of a tap", error))?;
        }
        self.start(lane, rings)
    }

    fn end(&mut self, lane: usize, rings: &mut [Ring]) {
        let tap = self.stop(lane, rings);
        self.keep(lane, tap.and_then(|mut tap| tap.steer(false).is_ok().then_some(tap)));
    }

    fn keep(&mut self, lane: usize, tap: Option<Tap>) {
        if let Some(side) = self.sides.get_mut(lane) {
            side.tap = tap;
        }
    }

    /// Moves a lane, its tap and its rings into a worker.
    fn start(&mut self, lane: usize, rings: &[Ring]) -> Result<(), Error> {
        const NONE: Error = Error::Protocol("a pair of queues that there is not");
        let (Some(side), Some(wiring)) = (self.sides.get_mut(lane), &self.wiring) else { return Err(NONE) };
        let (Some(rings), Some(notified)) = (rings.get(queues(lane)), wiring.notified.get(queues(lane))) else {
            return Err(NONE);
        };
        let name = format!("{}.{}", wiring.name, lane + 1);
        let wiring = Wiring { name, notified: notified.to_vec(), ..wiring.clone() };
        let mut device = Box::new(Lane::new(side.counters.clone())?);
        device.tap = side.tap.take();
        let idle = Idle { device, queues: rings.iter().map(Ring::state).collect() };
        match Worker::start(idle, self.features, wiring) {
            Ok(worker) => side.worker = Some(worker),
            Err((idle, error)) => {
                side.tap = idle.device.tap;
                return Err(Error::Host("start a thread", error));
            }
        }
        Ok(())
    }

    /// Gives a lane's tap back; its rings go where they were before.
    fn stop(&mut self, lane: usize, rings: &mut [Ring]) -> Option<Tap> {
        let side = self.sides.get_mut(lane)?;
        let Some(worker) = side.worker.take() else { return side.tap.take() };
        let wiring = self.wiring.as_ref()?;
        match worker.stop() {
            Some(idle) => {
                put_back(&idle.queues, rings.get_mut(queues(lane))?, wiring);
                idle.device.tap
            }
            None => {
                // It panicked, and what the driver had given it is lost: nothing but a reset helps.
                self.broken.store(true, Ordering::Release);
                let _ = wiring.interrupt.needs_reset();
                None
            }
        }
    }
}

fn put_back(queues: &[QueueState], rings: &mut [Ring], wiring: &Wiring) {
    for (ring, state) in rings.iter_mut().zip(queues) {
        // It was a queue before, so it is one.
        if let Ok(queue) = Queue::try_from(*state) {
            *ring = Ring::new(queue, wiring.interrupt.clone());
        }
    }
}

/// Those of a lane, behind those of the first pair.
fn queues(lane: usize) -> Range<usize> {
    2 * lane + 2..2 * lane + 4
}
