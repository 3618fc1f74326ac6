//! Keeps the guest's clock.
//!
//! The monitor tells the guest the time after the host's clock was set or the host slept, and now and then, since the guest
//! does not follow what NTP does to the host.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::Vm;
use super::agent_client::Agent;
use crate::log::{self, Level};

/// Time between two updates: at 50 millionths, as badly as clocks drift, the guest is off by a fiftieth of a second.
const INTERVAL: Duration = Duration::from_secs(600);

/// Keeps the guest's clock, for ever. A clock that cannot be kept is logged, and no reason to end the guest.
pub async fn keep(vm: Rc<Vm>, agent: Agent) {
    let clock = match Clock::new() {
        Ok(clock) => clock,
        Err(error) => return log::warning(&format!("the guest's clock is not kept: {error:#}")),
    };
    while clock.due().await.is_ok() {
        if let Err(error) = vm.ask(agent.configure(0)).await {
            log::repeated(Level::Debug, &format!("the guest's clock: {error:#}"));
        }
    }
}

/// A timer that also ends when the clock jumps.
struct Clock(AsyncFd<OwnedFd>);

impl Clock {
    /// Makes the timer. Needs a running tokio runtime.
    fn new() -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags).context("make a timer")?;
        // SAFETY: an OwnedFd keeps the same descriptor open until the AsyncFd, which now owns it, is dropped.
        Ok(Self(unsafe { AsyncFd::register(timer) }?))
    }

    /// Returns when the guest should be told the time.
    async fn due(&self) -> anyhow::Result<()> {
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
