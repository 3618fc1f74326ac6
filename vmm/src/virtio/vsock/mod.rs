//! Socket device (virtio 1.2, section 5.10): streams between processes of the host and of the guest.
//!
//! ```text
//!  any thread of the host          the device's worker thread                         guest
//!  ──────────────────────          ──────────────────────────                         ─────
//!  Handle::connect ──commands───▶  device   rings, budgets, the wake-up descriptor
//!  Handle::join ────────┘           │
//!  Handle::listen ─▶ Listeners ◀─   │
//!  Listener::accept ◀───────────   muxer    table of connections, who sends next  ◀─▶ tx, rx ring
//!                                   │
//!  UnixStream ◀── socket pair ──▶  connection   credit, half-close, phases; no I/O of its own
//! ```
//!
//! A stream is a Unix socket pair, of which the host's side holds one end and the device the other, or a socket that the
//! host's side had already and leaves to the device, so that no thread has to stand between. Bytes from the guest go from
//! its buffers into the socket; what the socket cannot take waits in a `backlog` that never exceeds the credit given to the
//! guest. The device reads bytes for the guest from the socket straight into a buffer of the rx ring, so they stay in the
//! socket while there is no buffer or no credit.
//!
//! Life of a connection, seen from the device (see `connection`):
//!
//! ```text
//!   connect() ─▶ Requested ──RESPONSE──▶ Open ◀──RESPONSE sent── REQUEST from the guest
//!                    │ RST                │ │
//!                    ▼                    │ └─ host closed: SHUTDOWN sent ─▶ Lingering ─RST─▶ gone
//!                  gone                   └─ SHUTDOWN (both) or RST ─▶ Draining ─backlog empty─▶ gone
//! ```
//!
//! Only the stream type is offered. A snapshot keeps no connection: see [`Vsock`].

mod backlog;
mod connection;
mod credit;
mod device;
mod handle;
mod muxer;
mod packet;
mod stream;
#[cfg(test)]
mod tests;

pub use device::{Vsock, new};
pub use handle::{Handle, Listener};
pub use packet::HOST_CID;
pub use stream::Shared;
