//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): registers of one device.
//!
//! ```text
//!  Idle ──DRIVER_OK──▶ Active ──status := 0──▶ Returning ──the device is back──▶ Idle
//!    ▲                  │   ▲
//!    └──────pause───────┘   └── resume
//! ```
//!
//! A vCPU that resets the device waits for it, but not for long: the device may be at something slow, and whoever pauses the
//! machine waits for the vCPU. Until the device is back `Status` keeps its value, as the specification has it, and other
//! writes do nothing; the driver looks for the end of the reset by asking for it again.
//!
//! A queue's settings live here until `DRIVER_OK`; from then on the worker owns the queues, and what
//! it returns when stopped takes the settings' place. Wrong accesses are ignored, as hardware would.
//! After each write of the driver's the transport shows in a [`crate::registers::Window`] what the driver reads.

mod state;
mod values;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::worker::{Back, Idle, Starting, Wiring, Worker};
use super::{Device, Error};
use crate::registers::{NEEDS_RESET, offset};
use crate::threads::OnThread;
pub use state::{DeviceState, Registers, STATE_VERSION, SavedQueue};
use values::{fresh_queue, half, set_half, show_constants};

/// `VIRTIO_RING_F_INDIRECT_DESC`, `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_F_VERSION_1`.
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// How long a vCPU that resets a device waits for it. Devices that serve a driver in order are back in microseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bits of the `Status` register (section 2.1).
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const FAILED: u32 = 128;
}

/// Where the device is.
enum Side {
    Idle(Box<dyn Device>),
    /// With the worker.
    Active,
    /// With the worker, which was asked to reset it and give it back.
    Returning,
    /// The worker panicked: the device is gone and answers with `DEVICE_NEEDS_RESET` for ever.
    Lost,
}

/// The device's thread.
enum Thread {
    /// There is none yet: the driver can set the device up, but not use it.
    None,
    Starting(Starting),
    Parked(Worker),
}

/// The registers of one device, and the device itself while no worker has it.
pub struct Transport {
    side: Side,
    thread: Thread,
    wiring: Wiring,
    registers: Registers,
    queues: Vec<QueueState>,
    id: u32,
    features: u64,
}

impl Transport {
    /// A transport in its reset state. `wiring.notified` has one event per queue of the device.
    pub fn new(device: Box<dyn Device>, wiring: Wiring) -> Self {
        show_constants(wiring.interrupt.registers(), device.as_ref());
        let transport = Self {
            registers: Registers::default(),
            queues: device.queue_sizes().iter().map(|&size| fresh_queue(size)).collect(),
            id: device.id(),
            features: device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC,
            side: Side::Idle(device),
            thread: Thread::None,
            wiring,
        };
        transport.show();
        transport
    }

    /// The notification event of each queue, to be registered as ioeventfd.
    pub fn notified(&self) -> &[Arc<EventFd>] {
        &self.wiring.notified
    }

    /// Spawns the device's thread, which first does what `on_thread` says. Other threads can be spawned before
    /// [`Transport::await_thread`] is called.
    ///
    /// # Errors
    /// Host resources are exhausted.
    pub fn spawn_thread(&mut self, on_thread: &OnThread) -> io::Result<()> {
        match std::mem::replace(&mut self.side, Side::Lost) {
            Side::Idle(device) => match Worker::spawn(device, self.wiring.clone(), on_thread) {
                Ok(starting) => self.thread = Thread::Starting(starting),
                Err((device, error)) => {
                    self.side = Side::Idle(device);
                    return Err(error);
                }
            },
            other => self.side = other,
        }
        Ok(())
    }

    /// Waits until the thread that was spawned may serve the device.
    ///
    /// # Errors
    /// What `on_thread` gave; the thread has ended then.
    pub fn await_thread(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.thread, Thread::None) {
            Thread::Starting(starting) => {
                let (device, worker) = starting.finish();
                self.side = device.map_or(Side::Lost, Side::Idle);
                self.thread = Thread::Parked(worker?);
                Ok(())
            }
            other => {
                self.thread = other;
                Ok(())
            }
        }
    }

    /// Name of the device's thread.
    pub fn name(&self) -> &str {
        &self.wiring.name
    }

    /// Shows the driver what its last write changed.
    fn show(&self) {
        let window = self.wiring.interrupt.registers();
        let queue = self.queues.get(self.registers.queue_sel as usize);
        window.store(offset::DEVICE_FEATURES, half(self.features, self.registers.device_features_sel));
        window.store(offset::QUEUE_SIZE_MAX, queue.map_or(0, |queue| queue.max_size.into()));
        window.store(offset::QUEUE_READY, queue.is_some_and(|queue| queue.ready).into());
        // The device's thread adds DEVICE_NEEDS_RESET.
        window.change(offset::STATUS, |shown| shown & NEEDS_RESET | self.registers.status);
    }

    /// Carries out the driver's write of `data` at `offset`. Activation and reset happen in here.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else { return };
        let value = u32::from_le_bytes(bytes);
        self.take_back(Some(Duration::ZERO));
        if !matches!(self.side, Side::Returning) {
            self.write_register(offset, value);
        }
        self.show();
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            offset::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            offset::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            offset::DRIVER_FEATURES => self.accept_features(value),
            offset::QUEUE_SEL => self.registers.queue_sel = value,
            offset::QUEUE_NOTIFY => self.notify(value),
            offset::STATUS if value == 0 => self.reset(),
            offset::STATUS => self.set_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        // Settings are open from FEATURES_OK to DRIVER_OK, and not once the queue is ready.
        if self.registers.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.registers.queue_sel as usize) else { return };
        if queue.ready {
            queue.ready = offset != offset::QUEUE_READY || value & 1 != 0;
            return;
        }
        match offset {
            // A size that doesn't fit becomes 0, which activation refuses.
            offset::QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            offset::QUEUE_READY => queue.ready = value & 1 != 0,
            offset::QUEUE_DESC_LOW => set_half(&mut queue.desc_table, 0, value),
            offset::QUEUE_DESC_HIGH => set_half(&mut queue.desc_table, 1, value),
            offset::QUEUE_DRIVER_LOW => set_half(&mut queue.avail_ring, 0, value),
            offset::QUEUE_DRIVER_HIGH => set_half(&mut queue.avail_ring, 1, value),
            offset::QUEUE_DEVICE_LOW => set_half(&mut queue.used_ring, 0, value),
            offset::QUEUE_DEVICE_HIGH => set_half(&mut queue.used_ring, 1, value),
            _ => {}
        }
    }

    fn accept_features(&mut self, value: u32) {
        let open = self.registers.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER;
        if open {
            set_half(&mut self.registers.driver_features, self.registers.driver_features_sel, value);
        }
    }

    /// Notifications usually end in the kernel, at the ioeventfd; what comes here is a wrong index or
    /// a host that has none. Before `DRIVER_OK` the event keeps it for the worker to come.
    fn notify(&self, queue: u32) {
        if let Some(notified) = self.wiring.notified.get(queue as usize) {
            // A full counter is a pending notification already.
            let _ = notified.write(1);
        }
    }

    fn set_status(&mut self, value: u32) {
        let before = self.registers.status;
        let known = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        // Bits are only ever added; taking one back takes a reset.
        let mut new = before | (value & known);
        let features = self.registers.driver_features;
        if new & !before & status::FEATURES_OK != 0 && (features & !self.features != 0 || features & VERSION_1 == 0) {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.registers.status = new;
        if new & !before & status::DRIVER_OK != 0 {
            let event_idx = features & EVENT_IDX != 0;
            self.queues.iter_mut().for_each(|queue| queue.event_idx_enabled = event_idx);
            self.activate();
        }
    }

    fn activate(&mut self) {
        let device = match std::mem::replace(&mut self.side, Side::Lost) {
            Side::Idle(device) => device,
            other => {
                self.side = other;
                return;
            }
        };
        let idle = Idle { device, queues: self.queues.clone() };
        let started = match &self.thread {
            Thread::Parked(worker) => worker.start(idle, self.registers.driver_features),
            Thread::None | Thread::Starting(_) => Err(idle),
        };
        match started {
            Ok(()) => self.side = Side::Active,
            Err(idle) => {
                // A device that was not plugged in, or whose thread has panicked.
                self.side = Side::Idle(idle.device);
                // The status register shows it even if the interrupt fails.
                let _ = self.wiring.interrupt.needs_reset();
            }
        }
    }

    /// Asks the worker for the device, if that has it.
    fn ask_back(&mut self, reset: bool) {
        if let (Side::Active, Thread::Parked(worker)) = (&self.side, &self.thread) {
            worker.ask_back(reset);
            self.side = Side::Returning;
        }
    }

    /// Waits for a device that was asked back, so long or for ever, and completes the reset that it was asked back for.
    fn take_back(&mut self, patience: Option<Duration>) {
        if let Some(queues) = self.receive(patience) {
            self.queues = queues;
            self.forget();
        }
    }

    /// Waits for a device that was asked back; its queues once it is here.
    fn receive(&mut self, patience: Option<Duration>) -> Option<Vec<QueueState>> {
        let (Side::Returning, Thread::Parked(worker)) = (&self.side, &self.thread) else { return None };
        match worker.take_back(patience) {
            Back::Here(idle) => {
                self.side = Side::Idle(idle.device);
                Some(idle.queues)
            }
            Back::NotYet => None,
            Back::Lost => {
                self.side = Side::Lost;
                self.wiring.interrupt.set_broken(true);
                None
            }
        }
    }

    fn reset(&mut self) {
        match &mut self.side {
            Side::Active => {
                self.ask_back(true);
                self.take_back(Some(PATIENCE));
            }
            Side::Idle(device) => {
                // It was never active, or came back as after a reset: there is next to nothing to forget.
                device.reset();
                self.forget();
            }
            Side::Returning => {}
            Side::Lost => self.forget(),
        }
    }

    /// Puts the registers into their reset state.
    fn forget(&mut self) {
        self.registers = Registers::default();
        self.queues.iter_mut().for_each(|queue| *queue = fresh_queue(queue.max_size));
        self.wiring.interrupt.set_broken(matches!(self.side, Side::Lost));
    }

    /// Takes the device from the worker and keeps everything, so that [`Transport::resume`] goes on from here. Waits until
    /// the device has done what it is at. Call it while no vCPU runs.
    pub fn pause(&mut self) {
        self.take_back(None);
        self.ask_back(false);
        if let Some(queues) = self.receive(None) {
            self.queues = queues;
        }
        self.show();
    }

    /// Starts the worker again if the driver had activated the device.
    pub fn resume(&mut self) {
        if self.registers.status & status::DRIVER_OK != 0 {
            self.activate();
        }
    }

    /// State of a device whose worker is not running.
    ///
    /// # Errors
    /// The device is active or lost, or cannot be saved.
    pub fn save(&self) -> Result<DeviceState, Error> {
        let Side::Idle(device) = &self.side else {
            return Err(Error::Protocol("a device that runs or is lost cannot be saved"));
        };
        Ok(DeviceState {
            version: STATE_VERSION,
            id: self.id,
            registers: self.registers,
            queues: self.queues.iter().map(SavedQueue::from).collect(),
            broken: self.wiring.interrupt.is_broken(),
            device: device.save()?,
        })
    }

    /// Takes back what [`Transport::save`] gave; [`Transport::resume`] then starts the worker.
    ///
    /// # Errors
    /// The state is of another version or another device, or the device refuses it.
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), Error> {
        let sizes = self.queues.iter().map(|queue| queue.max_size);
        let same = state.id == self.id && sizes.eq(state.queues.iter().map(|queue| queue.max_size));
        let Registers { status, driver_features, .. } = state.registers;
        // Before FEATURES_OK they are a wish, which may be of any bits and comes to nothing.
        let agreed = status & status::FEATURES_OK == 0 || driver_features & !self.features == 0;
        if state.version != STATE_VERSION || !same || !agreed {
            return Err(Error::Protocol("saved state of another device or version"));
        }
        let Side::Idle(device) = &mut self.side else {
            return Err(Error::Protocol("a device that runs or is lost cannot be restored"));
        };
        device.restore(&state.device)?;
        // The configuration is part of the device's state.
        show_constants(self.wiring.interrupt.registers(), device.as_ref());
        self.registers = state.registers;
        self.queues = state.queues.iter().map(QueueState::from).collect();
        self.wiring.interrupt.set_broken(state.broken);
        self.show();
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // Not for ever: the thread ends by itself once the device has done what it is at.
        self.ask_back(false);
        self.receive(Some(PATIENCE));
    }
}

#[cfg(test)]
mod tests;
