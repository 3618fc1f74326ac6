//! What commands ask on the control socket.

use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;
use tokio::net::{UnixListener, UnixStream};

use super::Server;
use crate::control::{Reply, Request};
use crate::ipc;
use crate::log::{self, Level};
use crate::monitor::lifecycle::{self, Signal};
use crate::monitor::pod::joined;

/// How long to wait when there are no descriptors for a connection.
const PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Takes commands' connections, for ever.
    pub(super) async fn accept(self: Rc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::task::spawn_local(Rc::clone(&self).converse(stream))),
                Err(error) => {
                    log::repeated(Level::Warning, &format!("take a command: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn converse(self: Rc<Self>, stream: UnixStream) {
        let stream = Rc::new(stream);
        let reply = match ipc::receive_async(&stream).await {
            Ok(Some(request)) => self.answer(&stream, request).await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        // A command that did not wait for the answer does not want it.
        let _ = ipc::send_async(&stream, &reply).await;
    }

    async fn answer(self: &Rc<Self>, stream: &Rc<UnixStream>, request: Request) -> anyhow::Result<Reply> {
        let pass = match wanted(&request) {
            Some(wanted) => Some(self.inbox.ask(wanted).await?),
            None => None,
        };
        match request {
            Request::Start | Request::Pause | Request::Resume | Request::Kill { .. } => Ok(Reply::Done),
            Request::Status => Ok(Reply::Status(self.state.borrow().status())),
            Request::Update(files) => self.alive(self.agent.update(files)).await.map(|()| Reply::Done),
            Request::Processes => self.alive(self.agent.processes()).await,
            Request::ReadCgroup(files) => self.alive(self.agent.read_cgroup(files)).await,
            Request::WaitOom(seen) => {
                drop(pass);
                self.wait_oom(stream, seen).await
            }
            Request::Exec(exec) => self.exec(stream, *exec, pass).await,
            Request::Join(nodes) => joined::join(&self.pod, &self.agent, stream, nodes).await,
            Request::WaitDetached(id) => {
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
            _ = ipc::receive_async::<Request>(stream) => bail!("nobody waits any more"),
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
        Request::Exec(_) => Some(lifecycle::Request::Exec),
        _ => None,
    }
}
