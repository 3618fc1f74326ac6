//! How a device interrupts its driver.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::virtio::Error;
use crate::virtio::mmio::{INTERRUPT_STATUS, NEEDS_RESET, STATUS};
use crate::virtio::registers::Window;

/// Bit of `InterruptStatus`: a used ring was updated (virtio 1.2, section 4.2.2).
pub const VRING: u32 = 1;
/// Bit of `InterruptStatus`: the configuration or the device status changed.
pub const CONFIG: u32 = 2;

/// The interrupt line of one virtio-mmio device: an irqfd and the status register behind it.
///
/// The driver reads the register on each interrupt and writes `InterruptACK` then. Each interrupt means
/// that a used ring was updated, so that bit is always set; hence nobody has to see the write, which
/// the machine lets end in an event that nobody reads. A changed configuration stays visible too: the
/// only one there is yet is `DEVICE_NEEDS_RESET`, and the reset clears it.
#[derive(Clone)]
pub struct Interrupt {
    registers: Window,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that raises `irqfd` (registered with KVM by the machine) and shows in `registers`.
    pub fn new(irqfd: Arc<EventFd>, registers: Window) -> Self {
        registers.store(INTERRUPT_STATUS, VRING);
        Self { registers, irqfd }
    }

    /// Tells the driver that a used ring was updated.
    pub fn queue(&self) -> Result<(), Error> {
        self.irqfd.write(1).map_err(|error| Error::Host("raise an interrupt", error))
    }

    /// Has the device status show `DEVICE_NEEDS_RESET` from now on, and tells the driver.
    pub fn needs_reset(&self) -> Result<(), Error> {
        self.registers.change(STATUS, |status| status | NEEDS_RESET);
        self.registers.change(INTERRUPT_STATUS, |status| status | CONFIG);
        self.queue()
    }

    /// Whether [`Interrupt::needs_reset`] was called since the last reset.
    pub fn is_broken(&self) -> bool {
        self.registers.load(STATUS) & NEEDS_RESET != 0
    }

    /// The registers that this interrupt shows in.
    pub fn registers(&self) -> &Window {
        &self.registers
    }

    /// Back to a working device's state, or a broken one's, raising nothing.
    pub fn set_broken(&self, broken: bool) {
        let (status, interrupt) = if broken { (NEEDS_RESET, VRING | CONFIG) } else { (0, VRING) };
        self.registers.change(STATUS, |old| old & !NEEDS_RESET | status);
        self.registers.store(INTERRUPT_STATUS, interrupt);
    }
}
