//! Live virtqueues and the two loops that serve them: [`Ring::serve`] for requests, [`Ring::fill`] for messages that come
//! by themselves.
//!
//! `virtio_queue` checks the ring and walks the chains. [`Chain`] turns a chain into two lists of host buffers, checked
//! once against guest memory; [`Ring`] decides when the driver is interrupted.

mod chain;
mod fill;
mod reserved;
mod ring;

pub use chain::{Buffers, Chain};
pub use fill::Fill;
pub use reserved::{Room, Wanted};
pub use ring::{Outcome, Ring};
