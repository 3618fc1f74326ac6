//! What went through a device, for whoever looks for lost frames.

use std::sync::atomic::{AtomicU64, Ordering};

/// Frames since the device was made. Read it from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the tap to the guest.
    pub received: Traffic,
    /// From the guest to the tap.
    pub transmitted: Traffic,
}

/// One direction.
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

    /// Counts a frame that did not.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that arrived.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Their bytes, without the headers of virtio.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Frames that did not: malformed, too long, refused by the tap, or sent while there was none.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
