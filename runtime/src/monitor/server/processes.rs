//! Processes of the container and their proxies on the host.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::net::UnixStream;

use super::{DRAIN_PATIENCE, KILLED, Server};
use crate::control::{Exec, Reply, Request};
use crate::ipc::{self, Descriptor};
use crate::log::{self, Level};
use crate::monitor::host_process;
use crate::monitor::lifecycle::{self, Signal};
use crate::monitor::node_maker::Loan;
use crate::monitor::streams::stdio::Stdio;
use crate::monitor::vm::request_gate::InFlight;

/// SIGKILL, as requests have it.
const KILL: u32 = libc::SIGKILL as u32;

impl Server {
    /// Runs another process, to its end. Its start is what is in flight.
    pub(super) async fn exec(&self, stream: &UnixStream, exec: Exec, pass: Option<InFlight>) -> anyhow::Result<Reply> {
        let Exec { mut process, streams, nodes } = exec;
        self.take_on(nodes)?;
        let number = self.execs.replace(self.execs.get() + 1);
        let exec_id = format!("exec{number}");
        let mut stdio = Stdio::attach(&self.pod.vm.vsock, streams, &mut process)?;
        self.files.admit(&self.pod.vm, &process).await?;
        self.alive(self.agent.exec(&exec_id, process)).await?;
        drop(pass);
        // The exec proxy may be gone already; then the first read below says so.
        let _ = ipc::send_async(stream, &Reply::Started).await;
        // The guest answers this once, so one wait is for the whole life.
        let wait = self.alive(self.agent.wait(&exec_id));
        let end = tokio::select! {
            end = wait => end?,
            () = self.overdue(self.attend(stream, &exec_id)) => {
                let id = self.agent.container_id();
                log::warning(&format!("the guest did not report the end of a killed process of container {id}"));
                return Ok(Reply::Exited(KILLED));
            }
        };
        // The container's end is the end of its other processes too: they are not waited for longer.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, stdio.drained()).await;
        Ok(Reply::Exited(end.code))
    }

    /// Takes on a process that makes device nodes, unless the container has got one by an exec before.
    fn take_on(&self, process: Option<Descriptor>) -> anyhow::Result<()> {
        let mut nodes = self.nodes.borrow_mut();
        if let (Some(process), false) = (process, nodes.as_ref().is_some_and(Loan::lives)) {
            *nodes = Some(self.pod.nodes.take_on(process.into_owned()?));
        }
        Ok(())
    }

    /// Waits until a process must have ended: a while after it is `killed`, or after the container's end.
    async fn overdue(&self, killed: impl Future<Output = ()>) {
        tokio::select! {
            () = killed => {}
            _ = self.ending() => {}
        }
        self.kill_patience().await;
    }

    /// Passes on what the proxy sends; when the proxy is gone, kills the process. Returns when it has sent SIGKILL.
    pub async fn attend(&self, stream: &UnixStream, exec_id: &str) {
        loop {
            let done = match ipc::receive_async(stream).await {
                Ok(Some(Request::Signal(KILL))) | Ok(None) | Err(_) => {
                    let _ = self.signal_process(exec_id, KILL).await;
                    return;
                }
                Ok(Some(Request::Signal(number))) => self.signal_process(exec_id, number).await,
                Ok(Some(Request::Resize { rows, columns })) => {
                    self.ask(self.agent.resize(exec_id, rows, columns)).await
                }
                Ok(Some(_)) => Err(anyhow::anyhow!("not a request for a process")),
            };
            if let Err(error) = done {
                log::repeated(Level::Debug, &format!("{exec_id}: {error:#}"));
            }
        }
    }

    /// Passes on what is sent to the monitor's own pid.
    pub fn follow_signals(self: &Rc<Self>, terminal: Option<OwnedFd>) {
        let server = Rc::clone(self);
        host_process::follow_signals(terminal, move |request| {
            let server = Rc::clone(&server);
            async move {
                match request {
                    Request::Signal(number) => server.inbox.signal(Signal { number, all: false }),
                    Request::Resize { rows, columns } => {
                        let _ = server.ask(server.agent.resize("", rows, columns)).await;
                    }
                    _ => {}
                }
            }
        });
    }

    /// Sends a signal to a process, which is the container's own if it has no name.
    async fn signal_process(&self, exec_id: &str, number: u32) -> anyhow::Result<()> {
        match exec_id {
            "" => self.inbox.ask(lifecycle::Request::Signal(Signal { number, all: false })).await.map(drop),
            _ => self.ask(self.agent.signal(exec_id, number, false)).await,
        }
    }
}
