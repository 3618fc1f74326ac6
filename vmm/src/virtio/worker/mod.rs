//! The thread of an activated device.
//!
//! ```text
//!   Idle, Wiring ──start──▶ thread: activate → serve every queue once → ┌─ wait ◀─┐
//!                                                                          └▶ handle ┘
//!            Idle  ◀──stop───  deactivate ◀── stop event, also after a fault
//! ```
//!
//! The device and its queues move into the thread and come back when it is stopped.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::queue::Ring;
use super::{Context, Device, Error, Event};
use crate::event_loop::{EventLoop, Ready};
use crate::interrupt::Interrupt;

/// Called once for each fault that stopped a device, with a sentence for the log.
pub type OnFault = Arc<dyn Fn(String) + Send + Sync>;

/// What a worker needs besides device and queues, kept by the transport between activations.
#[derive(Clone)]
pub struct Wiring {
    /// The thread's name, at most 15 bytes; also names the device in fault messages.
    pub name: String,
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Notification events (ioeventfds), one per queue.
    pub notified: Vec<Arc<EventFd>>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// Where a fault is reported.
    pub on_fault: OnFault,
}

/// A device without a worker, and the state of its queues.
pub struct Idle {
    /// The device.
    pub device: Box<dyn Device>,
    /// State of the queues, in the device's order.
    pub queues: Vec<QueueState>,
}

/// A running worker.
pub struct Worker {
    stop: EventFd,
    thread: JoinHandle<Option<Idle>>,
}

struct Job {
    idle: Idle,
    features: u64,
    wiring: Wiring,
    stop: EventFd,
}

impl Worker {
    /// Starts a thread that activates the device with the negotiated `features` and serves it.
    ///
    /// # Errors
    /// Host resources are exhausted; device and queues are given back.
    pub fn start(idle: Idle, features: u64, wiring: Wiring) -> Result<Self, (Idle, io::Error)> {
        let prepared = EventFd::new(0).and_then(|stop| Ok((stop.try_clone()?, stop)));
        let (stop, stop_clone) = match prepared {
            Ok(pair) => pair,
            Err(error) => return Err((idle, error)),
        };
        // The device goes through a channel so that it isn't lost when no thread can be had.
        let (sender, receiver) = mpsc::channel::<Job>();
        let thread = Builder::new().name(wiring.name.clone()).spawn(move || receiver.recv().ok().map(run));
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return Err((idle, error)),
        };
        match sender.send(Job { idle, features, wiring, stop: stop_clone }) {
            Ok(()) => Ok(Self { stop, thread }),
            Err(job) => Err((job.0.idle, io::Error::other("the device thread ended early"))),
        }
    }

    /// Stops the thread between two calls of the device, and gives everything back. `None` if the
    /// thread panicked and the device is lost.
    pub fn stop(self) -> Option<Idle> {
        // Writing to an eventfd of our own only fails when its counter overflows, and then it's set.
        let _ = self.stop.write(1);
        self.thread.join().ok().flatten()
    }
}

fn run(job: Job) -> Idle {
    let Job { idle: Idle { mut device, queues }, features, wiring, stop } = job;
    let queues = match build_rings(&queues, &wiring) {
        Ok(mut rings) => {
            if let Err(error) = serve(device.as_mut(), features, &mut rings, &wiring, &stop) {
                fault(&wiring, &error);
                wait_for(&stop);
            }
            rings.iter().map(Ring::state).collect()
        }
        Err(error) => {
            fault(&wiring, &error);
            wait_for(&stop);
            queues
        }
    };
    Idle { device, queues }
}

/// Runs the device until the stop event; an error ends it early.
fn serve(
    device: &mut dyn Device,
    features: u64,
    rings: &mut [Ring],
    wiring: &Wiring,
    stop: &EventFd,
) -> Result<(), Error> {
    let live = rings.iter().enumerate().filter(|(_, ring)| ring.state().ready).map(|(index, _)| index);
    let notified = live.clone().filter_map(|index| Some((index, wiring.notified.get(index)?.as_ref())));
    let mut watcher = EventLoop::new(stop, notified).map_err(|error| Error::Host("watch a device's queues", error))?;
    let live: Vec<usize> = live.collect();
    let mut context = Context { memory: &wiring.memory, rings, watcher: &mut watcher };
    device.activate(features, &mut context)?;
    // Notifications that came before this thread, or that an earlier worker consumed, count too.
    let mut result = live.into_iter().try_for_each(|queue| device.handle(Event::Queue(queue), &mut context));
    while result.is_ok() {
        let ready = watcher.next_ready().map_err(|error| Error::Host("wait for events", error));
        let mut context = Context { memory: &wiring.memory, rings, watcher: &mut watcher };
        result = match ready {
            Ok(Ready::Stop) => break,
            Ok(Ready::Queue(queue)) => device.handle(Event::Queue(queue), &mut context),
            Ok(Ready::Descriptor(token, events)) => device.handle(Event::Fd(token, events), &mut context),
            Err(error) => Err(error),
        };
    }
    device.deactivate(&mut Context { memory: &wiring.memory, rings, watcher: &mut watcher });
    result
}

fn build_rings(states: &[QueueState], wiring: &Wiring) -> Result<Vec<Ring>, Error> {
    let build = |state: &QueueState| {
        let queue = Queue::try_from(*state)?;
        if queue.ready() && !queue.is_valid(&wiring.memory) {
            return Err(Error::Protocol("a virtqueue outside guest memory"));
        }
        Ok(Ring::new(queue, wiring.interrupt.clone()))
    };
    states.iter().map(build).collect()
}

fn fault(wiring: &Wiring, error: &Error) {
    (wiring.on_fault)(format!("{}: {error}; the device is stopped until the guest resets it", wiring.name));
    // Nothing is left to do for a driver that cannot even be interrupted.
    let _ = wiring.interrupt.needs_reset();
}

fn wait_for(stop: &EventFd) {
    while let Err(error) = stop.read() {
        if error.kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
