//! virtio devices: the contract every device keeps, and what stands around it.
//!
//! ```text
//!  vCPU thread                    worker thread (one per device, parked while that is inactive)
//!  ───────────                    ─────────────────────────────────────────────────────────────
//!  mmio::Transport  ─activate─▶   Worker { device, rings }
//!   few registers   ◀──stop────     │ epoll: queue ioeventfds, device descriptors, stop
//!                                   └─▶ Device::handle(event, rings) ─▶ used ring, interrupt
//! ```
//!
//! The transport owns the registers and, while the device is inactive, the device itself. Activation
//! *moves* the device and its queues into a worker, which gives both back when asked. Reset, pause and
//! snapshot all start from that one return value. Nothing is shared and locked between transport and worker.
//!
//! A device may have the threads of vCPUs serve its queues at the guest's notifications; worker and vCPUs then share it (`active`).
//!
//! Everything read from guest memory is data that lies. A device answers it with [`Error`]; the worker
//! then reports it, once for each reason, sets `DEVICE_NEEDS_RESET` and stops serving this device only.

mod active;
pub mod balloon;
pub mod block;
mod device;
#[cfg(any(test, feature = "driver"))]
#[allow(missing_docs, clippy::new_without_default, reason = "for tests")]
pub mod driver;
mod error;
pub mod fs;
mod io;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod vsock;
pub mod worker;

pub use active::{ActiveDevice, ExitNotifier};
pub use device::{AtExit, Context, Device, EnterThread, Event};
pub use error::Error;
