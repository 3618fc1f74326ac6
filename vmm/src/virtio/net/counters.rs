//! Number of frames that went through a device, to look for lost ones.

use std::sync::atomic::{AtomicU64, Ordering};

/// Frames since the device was made. Read it from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the tap to the guest.
    pub received: Traffic,
    /// From the guest to the tap.
    pub transmitted: Traffic,
}

/// Traffic of one direction.
#[derive(Debug, Default)]
pub struct Traffic {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Traffic {
    /// Counts a frame that arrived. Only the device's worker does.
    pub(super) fn pass(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a frame that was dropped.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of frames that arrived.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes of the frames that arrived, without the headers of virtio.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Number of frames that were dropped: malformed, too long, refused by the tap, or sent while there was no tap.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
