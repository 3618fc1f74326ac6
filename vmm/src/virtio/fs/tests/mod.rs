//! The device as a guest's kernel sees it: requests through a real ring, over a directory of the host.

mod bounds;
mod coherence;
mod common;
mod exits;
mod guest;
mod hostile;
mod kernel;
mod listing;
mod locks;
mod many;
mod opens;
mod passthrough;
mod policy;
mod random;
mod restoring;
mod rights;
mod sharing;
mod told;
