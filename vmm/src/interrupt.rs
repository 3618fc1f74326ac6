//! How a device interrupts its driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::Error;

/// Bit of `InterruptStatus`: a used ring was updated (virtio 1.2, section 4.2.2).
pub const VRING: u32 = 1;
/// Bit of `InterruptStatus`: the configuration or the device status changed.
pub const CONFIG: u32 = 2;

/// The interrupt line of one virtio-mmio device: an irqfd, the status register behind it, and whether
/// the device told its driver that it is broken.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    broken: Arc<AtomicBool>,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that raises `irqfd` (registered with KVM by the machine).
    pub fn new(irqfd: Arc<EventFd>) -> Self {
        Self { status: Arc::default(), broken: Arc::default(), irqfd }
    }

    /// Tells the driver that a used ring was updated.
    pub fn queue(&self) -> Result<(), Error> {
        self.raise(VRING)
    }

    /// Tells the driver that configuration or status changed.
    pub fn config(&self) -> Result<(), Error> {
        self.raise(CONFIG)
    }

    /// Has the device status show `DEVICE_NEEDS_RESET` from now on, and tells the driver.
    pub fn needs_reset(&self) -> Result<(), Error> {
        self.broken.store(true, Ordering::Release);
        self.config()
    }

    /// Whether [`Interrupt::needs_reset`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Back to the given state, raising nothing: after a reset (0, false) or when state is restored.
    pub fn set(&self, status: u32, broken: bool) {
        self.status.store(status & (VRING | CONFIG), Ordering::Release);
        self.broken.store(broken, Ordering::Release);
    }

    fn raise(&self, bit: u32) -> Result<(), Error> {
        self.status.fetch_or(bit, Ordering::AcqRel);
        self.irqfd.write(1).map_err(|error| Error::Host("raise an interrupt", error))
    }
}
