//! Devices by address: a sorted list of ranges that never changes once vCPUs run.

use std::sync::{Arc, Mutex, PoisonError};

use crate::virtio::ExitNotifier;
use crate::virtio::mmio::Transport;

/// What answers accesses to a range of a bus, of several vCPUs at the same time.
pub trait Target: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` from the range's start. `data` comes filled
    /// with ones, what an empty bus reads as.
    /// Not called where the registers are memory to the guest.
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    /// The guest writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device with registers, which is locked for the length of one access.
pub trait Registers: Send {
    /// As [`Target::read`].
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    /// As [`Target::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<T: Registers> Target for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

impl Registers for Transport {
    fn write(&mut self, offset: u64, data: &[u8]) {
        Transport::write(self, offset, data);
    }
}

/// The port that a device is notified through: no vCPU waits here for another one.
impl Target for ExitNotifier {
    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(queue)) = (offset, data.try_into()) {
            self.notify(u32::from_le_bytes(queue));
        }
    }
}

struct Range {
    start: u64,
    length: u64,
    target: Arc<dyn Target>,
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Adds a device at `start`; ranges must not overlap.
    pub fn insert(&mut self, start: u64, length: u64, target: Arc<dyn Target>) {
        let at = self.ranges.partition_point(|range| range.start < start);
        self.ranges.insert(at, Range { start, length, target });
    }

    /// Reads; `false` and all ones where no device is, or where the access would leave its range.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((range, offset)) = self.find(address, data.len()) else { return false };
        range.target.read(offset, data);
        true
    }

    /// Writes; `false` where no device is.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((range, offset)) = self.find(address, data.len()) else { return false };
        range.target.write(offset, data);
        true
    }

    fn find(&self, address: u64, length: usize) -> Option<(&Range, u64)> {
        let next = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(next.checked_sub(1)?)?;
        let offset = address - range.start;
        (offset.checked_add(length as u64)? <= range.length).then_some((range, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl Registers for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn accesses_go_to_the_range_that_holds_all_of_them() {
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x10, Arc::new(Mutex::new(Echo(0x20))));
        bus.insert(0x1000, 0x10, Arc::new(Mutex::new(Echo(0x10))));
        let read = |address| {
            let mut data = [0; 2];
            (bus.read(address, &mut data), data[0])
        };
        assert_eq!(read(0x1000), (true, 0x10));
        assert_eq!(read(0x200e), (true, 0x2e));
        for nowhere in [0, 0xfff, 0x100f, 0x1010, 0x3000, u64::MAX] {
            assert_eq!(read(nowhere), (false, 0xff));
        }
        assert!(bus.write(0x1004, &[0x50]) && !bus.write(0x900, &[1]));
        assert_eq!(read(0x1000), (true, 0x50));
    }
}
