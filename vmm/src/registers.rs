//! The registers of virtio-mmio devices as their drivers read them.
//!
//! The registers are memory that KVM shows the guest read-only: reading one is no VM exit, writing one is an exit that the
//! transport (`virtio::mmio`) answers. The vCPU's thread and the device's thread both change them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{MmapRegion, VolatileMemory};

/// Bytes of one device: a page, since pages are what KVM protects.
pub const SIZE: usize = 4096;

/// Offsets of the registers (virtio 1.2, section 4.2.2, table 4.1).
#[allow(missing_docs)]
pub mod offset {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// A register of our own among those that the specification leaves free: the port that is notified instead, or 0.
    pub const NOTIFY_PORT: u64 = 0x0d0;
}

/// `DEVICE_NEEDS_RESET` in the `Status` register.
pub const NEEDS_RESET: u32 = 64;

/// The registers of one device: 4 KiB, zero at first.
#[derive(Clone)]
pub struct Window {
    pages: Arc<MmapRegion>,
    start: usize,
}

impl Window {
    /// Windows of `count` devices, one after the other in one mapping of `count` × 4 KiB.
    ///
    /// # Errors
    /// The host has no memory.
    pub fn row(count: usize) -> io::Result<Vec<Self>> {
        let pages = Arc::new(MmapRegion::new(count * SIZE).map_err(io::Error::other)?);
        Ok((0..count).map(|index| Self { pages: pages.clone(), start: index * SIZE }).collect())
    }

    /// Address of the window in this process.
    pub fn address(&self) -> u64 {
        self.pages.as_ptr() as u64 + self.start as u64
    }

    /// The register at this offset; 0 where none can be.
    pub fn load(&self, offset: u64) -> u32 {
        self.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets the register at this offset.
    pub fn store(&self, offset: u64, value: u32) {
        self.change(offset, |_| value);
    }

    /// Replaces the register at this offset by what `change` makes of it.
    pub fn change(&self, offset: u64, change: impl Fn(u32) -> u32) {
        if let Some(word) = self.word(offset) {
            // The update always gives a value, and so succeeds.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |value| Some(change(value)));
        }
    }

    fn word(&self, offset: u64) -> Option<&AtomicU32> {
        let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(4) && *offset < SIZE)?;
        self.pages.get_atomic_ref(self.start + offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_apart_and_bounded() {
        let row = Window::row(2).unwrap();
        let end = SIZE as u64;
        assert_eq!(row[1].address() - row[0].address(), end);
        row[0].store(end - 4, 7);
        row[0].change(end - 4, |value| value | 8);
        for nowhere in [2, end, u64::MAX] {
            row[0].store(nowhere, 9);
            assert_eq!(row[0].load(nowhere), 0);
        }
        assert_eq!((row[0].load(end - 4), row[1].load(0)), (15, 0));
    }
}
