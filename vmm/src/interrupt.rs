//! How a device interrupts its driver.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;

use crate::registers::offset::{INTERRUPT_STATUS, STATUS};
use crate::registers::{NEEDS_RESET, Window};

/// Bit of `InterruptStatus`: a used ring was updated (virtio 1.2, section 4.2.2).
pub const VRING: u32 = 1;
/// Bit of `InterruptStatus`: the configuration or the device status changed.
pub const CONFIG: u32 = 2;

/// An interrupt line of the machine.
pub trait Line: Send + Sync {
    /// Interrupts once: an edge.
    ///
    /// # Errors
    /// The host refuses.
    fn raise(&self) -> io::Result<()>;
}

/// A line of KVM's I/O APIC.
///
/// Raised by two system calls of the device's own thread. An irqfd would be one, but KVM leaves what goes by the I/O
/// APIC to a thread of the kernel's: two context switches more until the guest knows.
pub struct KvmLine {
    vm: Arc<VmFd>,
    irq: u32,
    /// Held for an edge: of two that overlap KVM would see one, at a time when only one device had something to say.
    edge: Mutex<()>,
}

impl KvmLine {
    /// The line of this number.
    pub fn new(vm: Arc<VmFd>, irq: u32) -> Self {
        Self { vm, irq, edge: Mutex::new(()) }
    }
}

impl Line for KvmLine {
    fn raise(&self) -> io::Result<()> {
        let _edge = self.edge.lock().unwrap_or_else(PoisonError::into_inner);
        self.vm.set_irq_line(self.irq, true)?;
        Ok(self.vm.set_irq_line(self.irq, false)?)
    }
}

/// The line of devices' tests, which read the event.
#[cfg(test)]
impl Line for vmm_sys_util::eventfd::EventFd {
    fn raise(&self) -> io::Result<()> {
        self.write(1)
    }
}

/// The interrupt of one virtio-mmio device: a line and the status register behind it.
///
/// The driver reads the register on each interrupt. Each interrupt means that a used ring was updated, so that bit is
/// always set and nobody has to see an acknowledgement: our kernel makes none (patch 0015), and what other kernels write to
/// `InterruptACK` ends in an event that nobody reads. A changed configuration stays visible too: the only one there is yet is
/// `DEVICE_NEEDS_RESET`, and the reset clears it.
#[derive(Clone)]
pub struct Interrupt {
    registers: Window,
    line: Arc<dyn Line>,
}

impl Interrupt {
    /// An interrupt that raises this line and shows in `registers`.
    pub fn new(line: Arc<dyn Line>, registers: Window) -> Self {
        registers.store(INTERRUPT_STATUS, VRING);
        Self { registers, line }
    }

    /// Tells the driver that a used ring was updated.
    ///
    /// # Errors
    /// The host refuses.
    pub fn queue(&self) -> io::Result<()> {
        self.line.raise()
    }

    /// Has the device status show `DEVICE_NEEDS_RESET` from now on, and tells the driver.
    ///
    /// # Errors
    /// The host refuses the interrupt; the status is set all the same.
    pub fn needs_reset(&self) -> io::Result<()> {
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

    /// Shows the state of a working device, or of a broken one, without raising an interrupt.
    pub fn set_broken(&self, broken: bool) {
        let (status, interrupt) = if broken { (NEEDS_RESET, VRING | CONFIG) } else { (0, VRING) };
        self.registers.change(STATUS, |old| old & !NEEDS_RESET | status);
        self.registers.store(INTERRUPT_STATUS, interrupt);
    }
}
