//! What commands ask on the control socket.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use protobuf::Message;
use tokio::net::{UnixListener, UnixStream};

use super::Server;
use crate::control::{Reply, Request};
use crate::log;
use crate::monitor::lifecycle::{self, Signal};
use crate::monitor::pod::joined;
use crate::monitor::wire::{arrange, receive, send};

/// How long to wait when there are no descriptors for a connection.
const PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Takes commands' connections, for ever.
    pub(super) async fn accept(self: Rc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::task::spawn_local(Rc::clone(&self).converse(stream))),
                Err(error) => {
                    log::warning(&format!("take a command: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse(self: Rc<Self>, stream: UnixStream) {
        let stream = Rc::new(stream);
        let reply = match receive(&stream).await {
            Ok(Some((request, fds))) => self.answer(&stream, request, fds).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        // A command that did not wait for the answer does not want it.
        let _ = send(&stream, &reply).await;
    }

    async fn answer(
        self: &Rc<Self>,
        stream: &Rc<UnixStream>,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<Reply> {
        let asked = match request {
            Request::Status => return Ok(Reply::Status(self.state.borrow().status())),
            Request::Start => self.inbox.ask(lifecycle::Request::Start).await,
            Request::Pause => self.inbox.ask(lifecycle::Request::Pause).await,
            Request::Resume => self.inbox.ask(lifecycle::Request::Resume).await,
            Request::Kill { signal: number, all } => {
                self.inbox.ask(lifecycle::Request::Signal(Signal { number, all })).await
            }
            Request::Update(files) => {
                self.inbox.ask(lifecycle::Request::Update).await?;
                self.ask(self.agent.update(files)).await
            }
            Request::Processes => {
                self.inbox.ask(lifecycle::Request::Query).await?;
                return self.ask(self.agent.processes()).await;
            }
            Request::ReadCgroup(files) => {
                self.inbox.ask(lifecycle::Request::Query).await?;
                return self.ask(self.agent.read_cgroup(files)).await;
            }
            Request::WaitOom(seen) => return self.wait_oom(stream, seen).await,
            Request::Exec { process, streams } => {
                self.inbox.ask(lifecycle::Request::Exec).await?;
                let process = protocol::Process::parse_from_bytes(&process).context("decode the process")?;
                return self.exec(stream, process, arrange(fds, streams)?).await;
            }
            Request::Join(join) => return joined::join(&self.pod, &self.agent, stream, (join, fds)).await,
            Request::Left(id) => {
                self.pod.detached(&id).await;
                Ok(())
            }
            Request::Signal(_) | Request::Resize { .. } => bail!("this connection has no process"),
        };
        asked.map(|()| Reply::Done)
    }

    /// Answers when the count has grown.
    async fn wait_oom(&self, stream: &UnixStream, seen: u64) -> anyhow::Result<Reply> {
        self.inbox.ask(lifecycle::Request::WatchOom).await?;
        let mut kills = self.oom_kills.subscribe();
        tokio::select! {
            more = kills.wait_for(|kills| *kills > seen) => Ok(Reply::OomKills(*more?)),
            _ = receive(stream) => bail!("nobody waits any more"),
        }
    }
}
