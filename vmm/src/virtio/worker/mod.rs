//! The thread of a device: parked, except while the device is active.
//!
//! ```text
//!   spawn ──▶ enter_thread, hook ──▶ parked ──start──▶ activate → serve every queue once → ┌─ wait ◀─┐
//!                                      ▲                                                    └▶ handle ┘
//!                                      │                                                         │
//!   Idle  ◀──take_back─────────────────┴──── reset, if asked ◀── deactivate ◀── ask_back, also after a fault
//! ```
//!
//! The device and its queues move into the thread when they are to be served and come back when they are asked for. Who
//! asks need not wait: a device may be at something slow. While they are served they are where threads of vCPUs find them, too
//! ([`ActiveDevice`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::Builder;
use std::time::Duration;

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::active::{Active, ActiveDevice, ExitNotifier};
use super::queue::Ring;
use super::{Context, Device, Error, Event};
use crate::event_loop::{EventLoop, Ready};
use crate::interrupt::Interrupt;
use crate::threads::{OnThread, ThreadKind};

/// Called with a sentence for the log when a device is stopped by a fault: once for each reason, however often a guest does
/// it again.
pub type OnFault = Arc<dyn Fn(String) + Send + Sync>;

/// What a worker needs besides device and queues.
#[derive(Clone)]
pub struct Wiring {
    /// The thread's name, at most 15 bytes; also names the device in fault messages.
    pub name: String,
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Notification events (ioeventfds), one per queue.
    pub notified: Vec<Arc<EventFd>>,
    /// Where the device is while it is served.
    pub active: Arc<ActiveDevice>,
    /// The device's interrupt.
    pub interrupt: Interrupt,
    /// Where a fault is reported.
    pub on_fault: OnFault,
}

impl Wiring {
    /// Where vCPUs notify the device.
    pub fn exit_notifier(&self) -> ExitNotifier {
        ExitNotifier::new(self.active.clone(), self.memory.clone(), self.notified.clone())
    }
}

/// A device that no worker has, and the state of its queues.
pub struct Idle {
    /// The device.
    pub device: Box<dyn Device>,
    /// State of the queues, in the device's order.
    pub queues: Vec<QueueState>,
}

/// The owner's end of a device's thread. Dropped, it has the thread end as soon as that serves nothing; nobody waits for it.
pub struct Worker {
    jobs: SyncSender<Job>,
    returned: Receiver<Idle>,
    signals: Arc<Signals>,
}

/// A thread that has not said yet whether it may serve.
pub struct Starting {
    worker: Worker,
    entered: Receiver<(Box<dyn Device>, io::Result<()>)>,
}

/// What became of a device that was asked back.
pub enum Back {
    /// It is here.
    Here(Idle),
    /// It has not come yet.
    NotYet,
    /// The thread panicked, and the device is lost.
    Lost,
}

struct Job {
    idle: Idle,
    features: u64,
}

/// What the owner tells a thread that is busy.
struct Signals {
    stop: EventFd,
    /// Whether the device is to forget the guest's state before it comes back.
    reset: AtomicBool,
}

/// The thread's end.
struct Seat {
    jobs: Receiver<Job>,
    returned: SyncSender<Idle>,
    signals: Arc<Signals>,
    wiring: Wiring,
    /// Made with the thread, so that a guest that resets the device again and again makes no descriptors.
    watcher: EventLoop,
    /// Reasons of the faults that were reported.
    reported: Vec<&'static str>,
}

impl Worker {
    /// Spawns the thread of this device, which takes part in it and comes back with [`Starting::finish`].
    ///
    /// # Errors
    /// Host resources are exhausted; the device is given back.
    pub fn spawn(
        device: Box<dyn Device>,
        wiring: Wiring,
        on_thread: &OnThread,
    ) -> Result<Starting, (Box<dyn Device>, io::Error)> {
        let made = EventFd::new(libc::EFD_CLOEXEC).and_then(|stop| Ok((EventLoop::new(&stop)?, stop)));
        let (watcher, stop) = match made {
            Ok(made) => made,
            Err(error) => return Err((device, error)),
        };
        let signals = Arc::new(Signals { stop, reset: AtomicBool::new(false) });
        // The device goes through a channel so that it isn't lost when no thread can be had.
        let (bring, brought) = mpsc::sync_channel::<Box<dyn Device>>(1);
        let ((enter, entered), (jobs, taken), (give, returned)) =
            (mpsc::sync_channel(1), mpsc::sync_channel(1), mpsc::sync_channel(1));
        let (name, on_thread) = (wiring.name.clone(), on_thread.clone());
        let mut seat =
            Seat { jobs: taken, returned: give, signals: signals.clone(), wiring, watcher, reported: Vec::new() };
        let begin = move || {
            let Ok(mut device) = brought.recv() else { return };
            let admitted = admit(device.as_mut(), &on_thread);
            let serves = admitted.is_ok();
            if enter.send((device, admitted)).is_ok() && serves {
                seat.serve_jobs();
            }
        };
        if let Err(error) = Builder::new().name(name).spawn(begin) {
            return Err((device, error));
        }
        match bring.send(device) {
            Ok(()) => Ok(Starting { worker: Self { jobs, returned, signals }, entered }),
            Err(device) => Err((device.0, io::Error::other("the thread ended early"))),
        }
    }

    /// Has the thread activate the device with the negotiated `features` and serve it. Never waits. Call it while the
    /// device is not with the thread.
    ///
    /// # Errors
    /// The thread has panicked; the device is given back.
    pub fn start(&self, idle: Idle, features: u64) -> Result<(), Idle> {
        self.signals.reset.store(false, Ordering::Release);
        self.jobs.try_send(Job { idle, features }).map_err(|refused| match refused {
            mpsc::TrySendError::Full(job) | mpsc::TrySendError::Disconnected(job) => job.idle,
        })
    }

    /// Asks for the device, which the thread gives back between two calls of it, reset if so wished. Call it once for each
    /// start.
    pub fn ask_back(&self, reset: bool) {
        self.signals.reset.store(reset, Ordering::Release);
        // Writing to an eventfd of our own only fails when its counter overflows, and then it's set.
        let _ = self.signals.stop.write(1);
    }

    /// Waits for a device that was asked back: so long, or for ever.
    pub fn take_back(&self, patience: Option<Duration>) -> Back {
        let taken = match patience {
            Some(patience) => self.returned.recv_timeout(patience),
            None => self.returned.recv().map_err(RecvTimeoutError::from),
        };
        match taken {
            Ok(idle) => Back::Here(idle),
            Err(RecvTimeoutError::Timeout) => Back::NotYet,
            Err(RecvTimeoutError::Disconnected) => Back::Lost,
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.signals.stop.write(1);
    }
}

impl Starting {
    /// Waits until the thread is ready, and gives the device back. No device means that the thread panicked.
    ///
    /// # Errors
    /// The thread's hook failed, or the device did.
    pub fn finish(self) -> (Option<Box<dyn Device>>, io::Result<Worker>) {
        match self.entered.recv() {
            Ok((device, admitted)) => (Some(device), admitted.map(|()| self.worker)),
            Err(_) => (None, Err(io::Error::other("the thread panicked"))),
        }
    }
}

/// What the device wants of its thread, then what the machine's owner wants of it.
fn admit(device: &mut dyn Device, on_thread: &OnThread) -> io::Result<()> {
    device.enter_thread().map_err(io::Error::other)?;
    on_thread.run(ThreadKind::of_device(device.id()))
}

impl Seat {
    fn serve_jobs(&mut self) {
        while let Ok(job) = self.jobs.recv() {
            // Nobody else takes the device.
            let Some(mut idle) = self.serve_job(job) else { return };
            if self.signals.reset.load(Ordering::Acquire) {
                idle.device.reset();
            }
            if self.returned.send(idle).is_err() {
                return;
            }
        }
    }

    /// Serves the device until the stop event, which is silent again afterwards.
    fn serve_job(&mut self, job: Job) -> Option<Idle> {
        let Job { idle: Idle { device, queues }, features } = job;
        let (result, idle) = match build_rings(&queues, &self.wiring) {
            Ok(rings) => {
                let (result, active) = self.serve(Active::new(device, rings), features);
                self.watcher.clear();
                let idle =
                    |Active { device, rings, .. }| Idle { device, queues: rings.iter().map(Ring::state).collect() };
                (result, active.map(idle))
            }
            Err(error) => (Err(error), Some(Idle { device, queues })),
        };
        if let Err(error) = result {
            self.fault(&error);
        }
        wait_for(&self.signals.stop);
        idle
    }

    /// Runs the device until the stop event; an error ends it early.
    fn serve(&mut self, mut active: Active, features: u64) -> (Result<(), Error>, Option<Active>) {
        if let Err(error) = activate(&mut active, features, &self.wiring, &mut self.watcher) {
            return (Err(error), Some(active));
        }
        *self.wiring.active.lock() = Some(active);
        let result = serve_events(&self.wiring, &mut self.watcher);
        let mut active = self.wiring.active.lock().take();
        if let Some(Active { device, rings, .. }) = &mut active {
            device.deactivate(&mut Context { memory: &self.wiring.memory, rings, watcher: &mut self.watcher });
        }
        (result, active)
    }

    fn fault(&mut self, error: &Error) {
        let wiring = &self.wiring;
        if !self.reported.contains(&error.reason()) {
            self.reported.push(error.reason());
            (wiring.on_fault)(format!("{}: {error}; the device is stopped until the guest resets it", wiring.name));
        }
        // Nothing is left to do for a driver that cannot even be interrupted.
        let _ = wiring.interrupt.needs_reset();
    }
}

/// Activates the device on its thread.
fn activate(active: &mut Active, features: u64, wiring: &Wiring, watcher: &mut EventLoop) -> Result<(), Error> {
    let live = active.rings.iter().enumerate().filter(|(_, ring)| ring.state().ready).map(|(index, _)| index);
    let notified = live.filter_map(|index| Some((index, wiring.notified.get(index)?.as_ref())));
    watcher.watch_queues(notified).map_err(|error| Error::Host("watch a device's queues", error))?;
    active.device.activate(features, &mut Context { memory: &wiring.memory, rings: &mut active.rings, watcher })
}

/// Has the device handle events until the stop event.
fn serve_events(wiring: &Wiring, watcher: &mut EventLoop) -> Result<(), Error> {
    // Notifications that came before this thread, or that an earlier worker consumed, count too.
    for queue in 0..wiring.notified.len() {
        if let Some(active) = wiring.active.lock().as_mut()
            && active.rings.get(queue).is_some_and(|ring| ring.state().ready)
        {
            active.handle(Event::Queue(queue), &wiring.memory, watcher)?;
        }
    }
    loop {
        let ready = watcher.next_ready().map_err(|error| Error::Host("wait for events", error))?;
        let mut active = wiring.active.lock();
        let Some(active) = active.as_mut() else { return Ok(()) };
        let event = match ready {
            Ready::Stop => return active.check(),
            Ready::Queue(queue) => Event::Queue(queue),
            Ready::Descriptor(token, events) => Event::Fd(token, events),
        };
        active.handle(event, &wiring.memory, watcher)?;
    }
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

fn wait_for(stop: &EventFd) {
    while let Err(error) = stop.read() {
        if error.kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
