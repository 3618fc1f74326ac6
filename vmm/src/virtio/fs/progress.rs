//! What a device's thread is at, for whoever wants to know whether it gets on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts the beginnings and the ends of requests that a device's own thread serves.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

/// A request that a device's thread was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

impl Progress {
    /// A request begins.
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// The request that the thread is at; `None` while it is at none.
    pub fn now(&self) -> Option<Moment> {
        // Between a beginning and an end the number is odd.
        Some(self.0.load(Relaxed)).filter(|count| count % 2 == 1).map(Moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_a_moment_of_its_own() {
        let progress = Progress::default();
        assert_eq!(progress.now(), None);
        progress.begin();
        let first = progress.now();
        assert!(first.is_some() && progress.now() == first);
        progress.end();
        assert_eq!(progress.now(), None);
        progress.begin();
        assert!(progress.now().is_some() && progress.now() != first);
    }
}
