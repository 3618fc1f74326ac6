//! How a device interrupts its driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::Error;

/// Bit of `InterruptStatus`: a used ring was updated (virtio 1.2, section 4.2.2).
pub const VRING: u32 = 1;
/// Bit of `InterruptStatus`: the configuration or the device status changed.
pub const CONFIG: u32 = 2;

/// The interrupt line of one virtio-mmio device: an irqfd and the status register behind it.
#[derive(Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that raises `irqfd` (registered with KVM by the machine).
    pub fn new(irqfd: Arc<EventFd>) -> Self {
        Self { status: Arc::new(AtomicU32::new(0)), irqfd }
    }

    /// Tells the driver that a used ring was updated.
    pub fn queue(&self) -> Result<(), Error> {
        self.raise(VRING)
    }

    /// Tells the driver that configuration or status changed.
    pub fn config(&self) -> Result<(), Error> {
        self.raise(CONFIG)
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    fn raise(&self, bit: u32) -> Result<(), Error> {
        self.status.fetch_or(bit, Ordering::AcqRel);
        self.irqfd.write(1).map_err(|error| Error::Host("raise an interrupt", error))
    }
}
