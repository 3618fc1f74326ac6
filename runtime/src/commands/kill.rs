//! `runvm kill`

use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::cli::{Global, KillArgs};
use crate::control::{self, Request};
use crate::state::{Dir, Life, State};

/// Time that the guest may take to deliver a signal before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a signal; never waits for the container's end.
pub fn run(global: &Global, args: &KillArgs) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), &args.id)?;
    let signal = parse(&args.signal)?;
    let state = dir.state()?;
    match state.life() {
        Life::Alive => {}
        // runc: --all on a stopped container is no error, engines use it to sweep up.
        Life::Stopped if args.all => return Ok(0),
        Life::Stopped | Life::Creating => bail!("container not running"),
    }
    if signal == 0 {
        // As kill(2): nothing is sent, the container is there.
        return Ok(0);
    }
    match control::call(dir.path(), &Request::Kill { signal, all: args.all }, PATIENCE) {
        // Its monitor delivers the last output, and then ends with the exit code that the engine waits for.
        Err(error) if state.life() == Life::Stopped || says_ended(&error) => bail!("container not running"),
        Err(_) if signal == libc::SIGKILL as u32 => kill_monitor(&state).map(|()| 0),
        other => other.map(|_| 0),
    }
}

/// Whether the monitor, or the guest, says that the process has ended. Not said where nobody takes the connection.
fn says_ended(error: &anyhow::Error) -> bool {
    matches!(error.root_cause().to_string().as_str(), "container not running" | "process already finished")
}

/// Kills the monitor, and so the VM: the effect of SIGKILL when the guest does not answer.
pub fn kill_monitor(state: &State) -> anyhow::Result<()> {
    let failed = || format!("kill the monitor of container {} (pid {})", state.id, state.pid);
    // `create` was killed before it started a monitor or noted its pid; such a monitor ends by itself.
    let Some(pid) = rustix::process::Pid::from_raw(state.pid) else { return Ok(()) };
    // A pidfd names one process for good; the status check after opening it rules out a reused pid.
    let pidfd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        opened => opened.with_context(failed)?,
    };
    if state.life() == Life::Stopped {
        return Ok(());
    }
    match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => {}
        Err(error) => return Err(error).with_context(failed),
    }
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&patience)).with_context(failed)? {
        0 => bail!("the monitor of container {} (pid {}) survived SIGKILL for 10 s", state.id, state.pid),
        _ => Ok(()),
    }
}

/// Parses a signal: a name (`TERM`, `SIGTERM`, `RTMIN+3`, any case) or a number, 0 and real-time ones included.
pub fn parse(text: &str) -> anyhow::Result<u32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let (lowest, highest) = (libc::SIGRTMIN() as u32, libc::SIGRTMAX() as u32);
    let offset = |rest: &str| rest.parse::<u32>().ok();
    let number = if let Ok(number) = name.parse::<u32>() {
        Some(number).filter(|number| *number <= highest)
    } else if name == "RTMIN" || name == "RTMAX" {
        Some(if name == "RTMIN" { lowest } else { highest })
    } else if let Some(rest) = name.strip_prefix("RTMIN+") {
        offset(rest).and_then(|n| lowest.checked_add(n)).filter(|number| *number <= highest)
    } else if let Some(rest) = name.strip_prefix("RTMAX-") {
        offset(rest).and_then(|n| highest.checked_sub(n)).filter(|number| *number >= lowest)
    } else {
        format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as u32)
    };
    number.with_context(|| format!("unknown signal {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// Saves the state of a container whose monitor is this process.
    fn save(dir: &Dir, pid: i32) {
        let state = serde_json::json!({
            "oci_version": "1.0.2", "id": "a", "bundle": "/", "rootfs": "/", "created": "", "owner": "root",
            "annotations": {}, "cgroup": null, "memory_mib": 128, "vcpus": 1, "hooks": crate::plan::Hooks::default(),
            "complete": true, "pid": pid, "pid_start": crate::state::process_start(pid),
        });
        dir.save(&serde_json::from_value(state).unwrap()).unwrap();
    }

    #[test]
    fn a_container_that_has_ended_keeps_its_monitor() {
        for (answer, survives) in [("container not running", true), ("the guest's agent did not answer in time", false)]
        {
            let root = tempfile::tempdir().unwrap();
            let dir = Dir::reserve(root.path(), "a").unwrap();
            let mut monitor = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            save(&dir, monitor.id() as i32);
            let listener = control::listen(dir.path()).unwrap();
            let server = std::thread::spawn(move || {
                let stream = listener.accept().unwrap().0;
                let _: Option<Request> = crate::ipc::receive(&stream).unwrap();
                crate::ipc::send(&stream, &control::Reply::Failed(answer.to_owned())).unwrap();
            });
            let global = crate::cli::Cli::parse_from(["runvm", "--root", root.path().to_str().unwrap()]).global;
            let killed = run(&global, &KillArgs { all: false, id: "a".to_owned(), signal: "KILL".to_owned() });
            server.join().unwrap();
            assert_eq!(killed.map_err(|error| format!("{error:#}")).err().as_deref(), survives.then_some(answer));
            assert_eq!(monitor.try_wait().unwrap().is_none(), survives, "{answer}");
            let _ = monitor.kill();
            monitor.wait().unwrap();
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in
            [("TERM", 15), ("SIGKILL", 9), ("sigusr1", 10), ("9", 9), ("0", 0), ("34", 34), ("RTMIN+3", 37)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        assert_eq!(parse("SIGRTMAX-14").unwrap(), 50);
    }

    #[test]
    fn what_is_no_signal_is_refused_by_name() {
        for text in ["", "65", "-1", "FOO", "SIG", "RTMIN+99", "RTMAX-99", "9x"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("unknown signal {text:?}"));
        }
    }
}
