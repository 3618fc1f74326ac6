//! PID 1 is the parent of last resort: everything that ends in the guest is reaped here.

use crate::container::table::Containers;
use crate::error::{Context, Result};
use crate::event::watch;
use crate::log;
use rustix::fd::OwnedFd;
use rustix::process::WaitOptions;
use std::sync::Arc;
use tokio::io::Interest;

/// Children reaped before others get their turn: a container may make children faster than that.
const AT_ONCE: usize = 64;

/// Reaps for ever; `signals` is readable when a child has ended.
pub async fn run(signals: OwnedFd, containers: Arc<Containers>) -> Result<()> {
    let signals = watch(signals, Interest::READABLE)?;
    loop {
        while reap(wait, |pid, code| containers.ended(pid, code)) {
            tokio::task::yield_now().await;
        }
        let mut ready = signals.readable().await.context(|| "event loop")?;
        // One read takes several signals; how many does not matter.
        let mut buffer = [0u8; 1024];
        if rustix::io::read(&signals, &mut buffer).is_err() {
            ready.clear_ready();
        }
    }
}

/// Reaps some of the children that have ended; whether there may be more.
fn reap(mut next: impl FnMut() -> Option<(i32, u32)>, ended: impl Fn(i32, u32)) -> bool {
    for _ in 0..AT_ONCE {
        let Some((pid, code)) = next() else { return false };
        log::debug(|| format!("process {pid} ended: {code}"));
        ended(pid, code);
    }
    true
}

/// A child that has ended, with its exit code.
fn wait() -> Option<(i32, u32)> {
    let waited = rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::NOHANG));
    let (pid, status) = waited.ok()??;
    Some((pid.as_raw_nonzero().get(), decode(status.as_raw())))
}

/// Exit code, as a shell says it, for a status of wait(2).
fn decode(status: i32) -> u32 {
    let signal = libc::WIFSIGNALED(status).then(|| 128 + libc::WTERMSIG(status));
    let code = if libc::WIFEXITED(status) { Some(libc::WEXITSTATUS(status)) } else { signal };
    code.and_then(|code| u32::try_from(code).ok()).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(script: &str) -> u32 {
        use std::os::unix::process::ExitStatusExt;
        let status = std::process::Command::new("sh").args(["-c", script]).status().unwrap();
        decode(status.into_raw())
    }

    #[test]
    fn children_without_end_leave_others_their_turn() {
        let reaped = std::cell::Cell::new(0);
        assert!(reap(|| Some((2, 0)), |_, _| reaped.set(reaped.get() + 1)));
        assert_eq!(reaped.get(), AT_ONCE);
        let mut two = [(2, 0), (3, 1)].into_iter();
        assert!(!reap(|| two.next(), |_, _| reaped.set(reaped.get() + 1)));
        assert_eq!(reaped.get(), AT_ONCE + 2);
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(code_of("exit 3"), 3);
        assert_eq!(code_of("kill -9 $$"), 137);
    }
}
