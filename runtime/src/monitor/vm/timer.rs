//! The timer of the guest's clock.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Time between two updates: at 50 millionths, as badly as clocks drift, the guest is off by a fiftieth of a second.
const INTERVAL: Duration = Duration::from_secs(600);

/// A timer that ends when the guest should be told the time: after a while, or when the host's clock jumps.
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// Makes the timer. Needs a running tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).context("make a timer")?;
        // SAFETY: an OwnedFd keeps the same descriptor open until the AsyncFd, which now owns it, is dropped.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    /// Returns when the guest should be told the time.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn due(&self) -> anyhow::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut end = clock_gettime(ClockId::Realtime);
        end.tv_sec = end.tv_sec.saturating_add(INTERVAL.as_secs() as i64);
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        let timer = Itimerspec { it_interval: zero, it_value: end };
        timerfd_settime(self.0.get_ref(), flags, &timer).context("set a timer")?;
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::io::read(self.0.get_ref(), &mut [0u8; 8]) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                // The clock was set.
                Ok(_) | Err(Errno::CANCELED) => return Ok(()),
                Err(error) => return Err(error).context("read a timer"),
            }
        }
    }
}
