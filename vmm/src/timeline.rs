//! Time that each step of building and starting a machine took.

use std::time::Duration;

/// Moments by name, in order, on `CLOCK_MONOTONIC` as durations since the host's boot.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Vec<(&'static str, Duration)>);

impl Timeline {
    /// Notes that `what` is done now.
    pub fn mark(&mut self, what: &'static str) {
        self.0.push((what, now()));
    }

    /// The moments noted.
    pub fn moments(&self) -> &[(&'static str, Duration)] {
        &self.0
    }
}

/// The present moment on `CLOCK_MONOTONIC`.
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
