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
        if let Some(wanted) = wanted(&request) {
            self.inbox.ask(wanted).await?;
        }
        match request {
            Request::Start | Request::Pause | Request::Resume | Request::Kill { .. } => Ok(Reply::Done),
            Request::Status => Ok(Reply::Status(self.state.borrow().status())),
            Request::Update(files) => self.ask(self.agent.update(files)).await.map(|()| Reply::Done),
            Request::Processes => self.ask(self.agent.processes()).await,
            Request::ReadCgroup(files) => self.ask(self.agent.read_cgroup(files)).await,
            Request::WaitOom(seen) => self.wait_oom(stream, seen).await,
            Request::Exec { process, streams } => {
                let process = protocol::Process::parse_from_bytes(&process).context("decode the process")?;
                self.exec(stream, process, arrange(fds, streams)?).await
            }
            Request::Join(join) => joined::join(&self.pod, &self.agent, stream, (join, fds)).await,
            Request::Left(id) => {
                self.pod.detached(&id).await;
                Ok(Reply::Done)
            }
            Request::Signal(_) | Request::Resize { .. } => bail!("this connection has no process"),
        }
    }

    /// Answers when the count has grown.
    async fn wait_oom(&self, stream: &UnixStream, seen: u64) -> anyhow::Result<Reply> {
        let mut kills = self.oom_kills.subscribe();
        tokio::select! {
            more = kills.wait_for(|kills| *kills > seen) => Ok(Reply::OomKills(*more?)),
            _ = receive(stream) => bail!("nobody waits any more"),
        }
    }
}

/// What the lifecycle is asked first: to do what a request wants, or whether it is possible now.
fn wanted(request: &Request) -> Option<lifecycle::Request> {
    match request {
        Request::Start => Some(lifecycle::Request::Start),
        Request::Pause => Some(lifecycle::Request::Pause),
        Request::Resume => Some(lifecycle::Request::Resume),
        Request::Kill { signal, all } => Some(lifecycle::Request::Signal(Signal { number: *signal, all: *all })),
        Request::Update(_) => Some(lifecycle::Request::Update),
        Request::Processes | Request::ReadCgroup(_) => Some(lifecycle::Request::Query),
        Request::WaitOom(_) => Some(lifecycle::Request::WatchOom),
        Request::Exec { .. } => Some(lifecycle::Request::Exec),
        _ => None,
    }
}
