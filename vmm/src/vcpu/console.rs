//! The serial port, for debugging only: each character the guest prints is a VM exit.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::Registers;

/// The irqfd of the serial port.
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 whose output goes to a descriptor and that never receives anything.
pub struct Console(Serial<Line, vm_superio::serial::NoEvents, File>);

impl Console {
    /// A console that writes to `output` and raises `irqfd`.
    pub fn new(output: OwnedFd, irqfd: Arc<EventFd>) -> Self {
        Self(Serial::new(Line(irqfd), File::from(output)))
    }
}

impl Registers for Console {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.0.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            // A console that nobody reads must not stop the guest.
            let _ = self.0.write(offset as u8, *byte);
        }
    }
}
