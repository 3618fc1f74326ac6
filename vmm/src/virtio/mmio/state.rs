//! The saved form of a transport's state.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// Version of [`DeviceState`] that this build writes and reads.
pub const STATE_VERSION: u32 = 1;

/// State of one device with its transport, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Version of the form: [`STATE_VERSION`].
    pub version: u32,
    /// Device id (virtio 1.2, section 5); must match on restore.
    pub id: u32,
    /// The registers the driver wrote.
    pub registers: Registers,
    /// The queues, in the device's order.
    pub queues: Vec<SavedQueue>,
    /// Whether the device had set `DEVICE_NEEDS_RESET`.
    pub broken: bool,
    /// What [`Device::save`](crate::virtio::Device::save) gave.
    pub device: Vec<u8>,
}

/// Registers that the driver writes and that are not part of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// `Status` without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `QueueSel`.
    pub queue_sel: u32,
}

/// `virtio_queue::QueueState` in a form that can be saved; the fields are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SavedQueue {
    pub max_size: u16,
    pub next_avail: u16,
    pub next_used: u16,
    pub event_idx_enabled: bool,
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl From<&QueueState> for SavedQueue {
    fn from(queue: &QueueState) -> Self {
        let QueueState { max_size, next_avail, next_used, event_idx_enabled, size, ready, .. } = *queue;
        let QueueState { desc_table, avail_ring, used_ring, .. } = *queue;
        Self { max_size, next_avail, next_used, event_idx_enabled, size, ready, desc_table, avail_ring, used_ring }
    }
}

impl From<&SavedQueue> for QueueState {
    fn from(queue: &SavedQueue) -> Self {
        let SavedQueue { max_size, next_avail, next_used, event_idx_enabled, size, ready, .. } = *queue;
        let SavedQueue { desc_table, avail_ring, used_ring, .. } = *queue;
        Self { max_size, next_avail, next_used, event_idx_enabled, size, ready, desc_table, avail_ring, used_ring }
    }
}
