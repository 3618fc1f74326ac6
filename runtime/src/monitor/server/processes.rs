//! Processes of the container that others stand for on the host: those of execs, and its own.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use super::{DRAIN_PATIENCE, Server};
use crate::control::{Exec, Reply, Request};
use crate::monitor::FORWARDED;
use crate::monitor::lifecycle::{self, Signal};
use crate::monitor::streams::stdio::Stdio;
use crate::{console, ipc, log};

impl Server {
    /// The whole life of an exec'd process.
    pub(super) async fn exec(&self, stream: &UnixStream, exec: Exec) -> anyhow::Result<Reply> {
        let Exec { mut process, streams } = exec;
        let number = self.execs.replace(self.execs.get() + 1);
        let exec_id = format!("exec{number}");
        let mut stdio = Stdio::attach(self.pod.vm.vsock(), streams, &mut process)?;
        self.ask(self.agent.exec(&exec_id, process)).await?;
        // The exec proxy may be gone already; then the first read below says so.
        let _ = ipc::send_async(stream, &Reply::Started).await;
        // One wait for the whole life: its answer is given once.
        let mut wait = std::pin::pin!(self.alive(self.agent.wait(&exec_id)));
        let end = tokio::select! {
            end = &mut wait => end?,
            () = self.attend(stream, &exec_id) => wait.await?,
        };
        // The container's end is the end of its other processes too: they are not waited for longer.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await;
        Ok(Reply::Exited(end.code))
    }

    /// Passes on what the proxy sends; when the proxy is gone, kills the process.
    pub async fn attend(&self, stream: &UnixStream, exec_id: &str) {
        loop {
            let done = match ipc::receive_async(stream).await {
                Ok(Some(Request::Signal(number))) => self.signal_process(exec_id, number).await,
                Ok(Some(Request::Resize { rows, columns })) => {
                    self.ask(self.agent.resize(exec_id, rows, columns)).await
                }
                Ok(Some(_)) => Err(anyhow::anyhow!("not a request for a process")),
                Ok(None) | Err(_) => {
                    let _ = self.signal_process(exec_id, libc::SIGKILL as u32).await;
                    return;
                }
            };
            if let Err(error) = done {
                log::debug(&format!("{exec_id}: {error:#}"));
            }
        }
    }

    /// Sends a signal to a process, which is the container's own if it has no name.
    async fn signal_process(&self, exec_id: &str, number: u32) -> anyhow::Result<()> {
        match exec_id {
            "" => self.inbox.ask(lifecycle::Request::Signal(Signal { number, all: false })).await,
            _ => self.ask(self.agent.signal(exec_id, number, false)).await,
        }
    }
}

/// Passes on to the container what is sent to the monitor's own pid, as if the pid were the process.
pub fn follow_signals(server: &Rc<Server>, terminal: Option<OwnedFd>) {
    for number in FORWARDED {
        let Ok(mut signals) = signal(SignalKind::from_raw(number)) else { continue };
        // The terminal's hang-up reaches the process through its own terminal.
        let ignored = number == libc::SIGHUP && terminal.is_some();
        let server = Rc::clone(server);
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                if !ignored {
                    server.inbox.signal(Signal { number: number as u32, all: false });
                }
            }
        });
    }
    if let (Some(terminal), Ok(mut signals)) = (terminal, signal(SignalKind::window_change())) {
        let server = Rc::clone(server);
        tokio::task::spawn_local(async move {
            // The size may have changed while nobody listened.
            loop {
                let (rows, columns) = console::size(&terminal);
                if rows > 0 && columns > 0 {
                    let _ = server.ask(server.agent.resize("", rows, columns)).await;
                }
                if signals.recv().await.is_none() {
                    return;
                }
            }
        });
    }
}
