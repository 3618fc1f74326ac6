//! Descriptors known to the event loop.

use crate::error::{Context, Result};
use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor known to the event loop.
pub type Fd = AsyncFd<OwnedFd>;

/// Makes it known; the descriptor must not block.
pub fn watch(fd: OwnedFd, interest: Interest) -> Result<Fd> {
    // SAFETY: an OwnedFd stays open and the same for as long as it is held, which is what is asked for.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(std::io::Error::from).context(|| "event loop")
}
