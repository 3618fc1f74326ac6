//! PID 1 is the parent of last resort: everything that ends in the guest is reaped here.

use crate::container::table::Containers;
use crate::error::{Context, Result};
use crate::event::watch;
use crate::log;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::WaitOptions;
use std::sync::Arc;
use tokio::io::Interest;

/// Reaps for ever; `signals` is readable when a child has ended.
pub async fn run(signals: OwnedFd, containers: Arc<Containers>) -> Result<()> {
    let signals = watch(signals, Interest::READABLE)?;
    loop {
        reap(&containers);
        let mut ready = signals.readable().await.context(|| "event loop")?;
        // One read takes several signals; how many does not matter.
        let mut buffer = [0u8; 1024];
        if rustix::io::read(&signals, &mut buffer).is_err() {
            ready.clear_ready();
        }
    }
}

fn reap(containers: &Containers) {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let code = decode(status.as_raw());
                log::debug(|| format!("process {pid} ended: {code}"));
                containers.ended(pid.as_raw_nonzero().get(), code);
            }
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// What wait(2) reports, as a shell says it.
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
    fn codes_are_those_of_a_shell() {
        assert_eq!(code_of("exit 3"), 3);
        assert_eq!(code_of("kill -9 $$"), 137);
    }
}
