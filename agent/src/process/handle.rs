//! Handle to a process that the host asked for, from the clone until its end has been reported.

use crate::error::{Context, Error, Result};
use crate::event::Fd;
use crate::process::terminal;
use crate::sys::{self, Spawned};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::{OnceLock, Weak};
use tokio::sync::watch;

/// End of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code as a shell says it: 128+n for signal n.
    pub code: u32,
    /// Whether the kernel killed something in the container's cgroup for want of memory.
    pub oom_killed: bool,
}

/// A process that the host asked for.
pub struct Process {
    /// Number of the process in the guest's initial pid namespace.
    pub pid: i32,
    /// Reference to the process that stays right when the pid is used again.
    pub pidfd: OwnedFd,
    exit: watch::Sender<Option<Exit>>,
    terminal: OnceLock<Weak<Fd>>,
}

impl Process {
    /// A handle to a process just made.
    pub fn new(spawned: Spawned) -> Self {
        let (exit, _) = watch::channel(None);
        Self { pid: spawned.pid, pidfd: spawned.pidfd, exit, terminal: OnceLock::new() }
    }

    /// Remembers the master of the process's terminal.
    pub fn set_terminal(&self, master: Weak<Fd>) {
        // Set once, by whoever made the process.
        let _ = self.terminal.set(master);
    }

    /// Whether the process has been reaped.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Notes how the process ended, and wakes those who wait for that.
    pub fn set_exit(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Waits for the end of the process.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        ended.ok().flatten().ok_or_else(|| Error::internal("exit status lost"))
    }

    /// Changes the size of the process's terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        match self.terminal.get().and_then(Weak::upgrade) {
            Some(master) => terminal::set_size(master.get_ref(), terminal::size(rows, columns)),
            None => Err(Error::precondition("process has no terminal")),
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: u32) -> Result<()> {
        match sys::pidfd_send_signal(&self.pidfd, signal) {
            Err(Errno::SRCH) => Err(Error::precondition("process already finished")),
            Err(Errno::INVAL) => Err(Error::invalid(format!("invalid signal {signal}"))),
            sent => sent.context(|| format!("signal {signal}")),
        }
    }

    /// Ends the process, whatever it is doing.
    pub fn kill(&self) {
        // A process that has ended already needs no signal.
        let _ = sys::pidfd_send_signal(&self.pidfd, libc::SIGKILL as u32);
    }
}
