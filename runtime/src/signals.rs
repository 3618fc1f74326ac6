//! Signals of this process, read from a descriptor, and unblocked again in children.

use std::os::unix::net::UnixStream;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

/// Signals that a user or an engine may send to a process; blocked here and read from a descriptor.
const FORWARDED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
    Signal::SIGCHLD,
];

/// Unblocks every signal, between fork and exec: a child started through `std::process` inherits what [`Signals::block`] blocked.
pub fn unblock() -> std::io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Descriptor from which blocked signals of this process are read.
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals. Call it before threads exist; children need [`unblock`].
    pub fn block() -> anyhow::Result<Self> {
        let set = SigSet::from_iter(FORWARDED);
        set.thread_block().context("block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Self(fd.context("make a signal descriptor")?))
    }

    /// Number of the next signal that has arrived.
    fn next(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().map(|info| info.ssi_signo as i32)
    }

    /// Waits for a signal or for `other` to be readable; calls `signal` with each that came.
    pub fn wait(&self, other: Option<&UnixStream>, mut signal: impl FnMut(i32)) -> anyhow::Result<bool> {
        let mut fds = vec![PollFd::new(&self.0, PollFlags::IN)];
        fds.extend(other.map(|stream| PollFd::new(stream, PollFlags::IN)));
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            polled => polled.context("wait for signals")?,
        };
        let readable = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        while let Some(number) = self.next() {
            signal(number);
        }
        Ok(readable)
    }
}
