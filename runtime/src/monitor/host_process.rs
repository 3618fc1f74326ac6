//! What a container's process on the host does, be it the monitor of a VM or a join proxy.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_local;

use crate::control::{Reply, Request};
use crate::host::console;
use crate::ipc;

/// Signals that are passed on to the container.
const FORWARDED: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];

/// Answers the command: the container is created, or why not. False when nobody heard it.
pub fn answer<T>(command: &UnixStream, created: &anyhow::Result<T>) -> bool {
    let reply = match created {
        Ok(_) => Reply::Started,
        Err(error) => Reply::Failed(format!("{error:#}")),
    };
    ipc::send(command, &reply).is_ok()
}

/// Passes on what is sent to this process's pid, as if the pid were the container's process: [`Request::Signal`], and
/// [`Request::Resize`] for its terminal.
pub fn follow_signals<W: Future<Output = ()> + 'static>(
    terminal: Option<OwnedFd>,
    pass_on: impl Fn(Request) -> W + Clone + 'static,
) {
    for number in FORWARDED {
        let Ok(mut signals) = signal(SignalKind::from_raw(number)) else { continue };
        // The terminal's hang-up reaches the process through its own terminal.
        let ignored = number == libc::SIGHUP && terminal.is_some();
        let pass_on = pass_on.clone();
        spawn_local(async move {
            while signals.recv().await.is_some() {
                if !ignored {
                    pass_on(Request::Signal(number as u32)).await;
                }
            }
        });
    }
    if let (Some(terminal), Ok(signals)) = (terminal, signal(SignalKind::window_change())) {
        spawn_local(follow_size(terminal, signals, pass_on));
    }
}

async fn follow_size<W: Future<Output = ()>>(
    terminal: OwnedFd,
    mut signals: Signal,
    pass_on: impl Fn(Request) -> W + 'static,
) {
    // The size may have changed while nobody listened.
    loop {
        let (rows, columns) = console::size(&terminal);
        if rows > 0 && columns > 0 {
            pass_on(Request::Resize { rows, columns }).await;
        }
        if signals.recv().await.is_none() {
            return;
        }
    }
}
