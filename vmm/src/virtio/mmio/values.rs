//! What registers show: constants, and halves of values of 64 bits.

use virtio_queue::QueueState;

use crate::registers::{Window, offset};
use crate::virtio::Device;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "rvm", little endian: the vendor id says which monitor this is; the driver of our kernel looks (patch 0015).
const VENDOR: u32 = 0x006d_7672;
/// Offset of the configuration space.
const CONFIG: u64 = 0x100;

/// Shows the registers that never change. The configuration does not change either while a driver may look; only a
/// restored device may have another one.
pub fn show_constants(window: &Window, device: &dyn Device) {
    window.store(offset::MAGIC_VALUE, MAGIC);
    window.store(offset::VERSION, VERSION);
    window.store(offset::DEVICE_ID, device.id());
    window.store(offset::VENDOR_ID, VENDOR);
    // There are no shared memory regions: all lengths are -1.
    for offset in (offset::SHM_LEN_LOW..=offset::SHM_BASE_HIGH).step_by(4) {
        window.store(offset, u32::MAX);
    }
    for (offset, bytes) in (CONFIG..).step_by(4).zip(device.config().chunks(4)) {
        let mut word = [0; 4];
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        window.store(offset, u32::from_le_bytes(word));
    }
}

/// A queue in its reset state.
pub fn fresh_queue(max_size: u16) -> QueueState {
    QueueState { max_size, size: max_size, ..QueueState::default() }
}

/// The half of a 64-bit value that a register selects.
pub fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Sets the half of a 64-bit value that a register selects.
pub fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = (*value & !u64::from(u32::MAX)) | u64::from(half),
        1 => *value = (*value & u64::from(u32::MAX)) | (u64::from(half) << 32),
        _ => {}
    }
}
