//! Descriptors that the event loop watches.

use crate::error::{Context, Result};
use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that the event loop watches.
pub type Fd = AsyncFd<OwnedFd>;

/// Registers a descriptor with the event loop; the descriptor must not block.
pub fn watch(fd: OwnedFd, interest: Interest) -> Result<Fd> {
    // SAFETY: an OwnedFd stays open and the same for as long as it is held, which is what is asked for.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(std::io::Error::from).context(|| "event loop")
}
