//! When the guest's clock needs the host's: after the host's was set or the host slept, and now and then, since the
//! guest does not follow what NTP does to the host.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// At 50 millionths, as badly as clocks drift, a fiftieth of a second.
const INTERVAL: Duration = Duration::from_secs(600);

/// A timer that also ends when the clock jumps.
pub struct Clock(AsyncFd<OwnedFd>);

impl Clock {
    /// Needs a running tokio runtime.
    pub fn new() -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).context("make a timer")?;
        // SAFETY: an OwnedFd keeps the same descriptor open until the AsyncFd, which now owns it, is dropped.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    /// Returns when the guest should be told the time.
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
