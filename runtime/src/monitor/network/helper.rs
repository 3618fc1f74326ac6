//! The monitor's side of the connection to the network helper, which works where the monitor may not.
//!
//! One exchange at a time, by a task of its own: whoever no longer waits for an answer leaves the connection in order.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ipc::{self, Descriptor};
use crate::network::messages::{Reply, Request, Sight, Transport};

/// What is told of a helper that is not there any more.
pub const ENDED: &str = "the network helper of the container has ended";

/// What is told of a helper that does not answer, as when somebody stopped it (SIGSTOP).
const SILENT: &str = "the network helper of the container does not answer";

/// How long the helper may take for an answer: nothing in it waits for anybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connection to the network helper of a container.
#[derive(Clone)]
pub struct NetworkHelper {
    exchanges: mpsc::UnboundedSender<Exchange>,
    ended: watch::Receiver<bool>,
}

/// A request and whoever waits for its answer. One without a request was asked before.
struct Exchange {
    request: Option<Request>,
    answer: oneshot::Sender<anyhow::Result<Reply>>,
}

/// Answers to what was asked first.
pub struct Beginning {
    opened: oneshot::Receiver<anyhow::Result<Reply>>,
    seen: oneshot::Receiver<anyhow::Result<Reply>>,
}

/// What [`Request::Open`] gives.
pub struct Opened {
    /// Says when the namespace changes.
    pub changes: OwnedFd,
    /// The tap that leads to passt(1).
    pub user_network: Option<OwnedFd>,
}

impl NetworkHelper {
    /// Has the helper begin: it works while the caller does something else. `free` is the number of NICs for the links that are
    /// there. Needs a running tokio runtime.
    ///
    /// # Errors
    /// The helper is gone.
    pub fn begin(socket: Descriptor, free: usize) -> anyhow::Result<(Self, Beginning)> {
        let stream = std::os::unix::net::UnixStream::from(socket.into_owned()?);
        // Two short messages, for which a new connection has room.
        ipc::send(&stream, &Request::Open).context(ENDED)?;
        ipc::send(&stream, &Request::Look { attached: Vec::new(), free }).context(ENDED)?;
        stream.set_nonblocking(true)?;
        let ((open, opened), (look, seen)) = (oneshot::channel(), oneshot::channel());
        let asked = [open, look].map(|answer| Exchange { request: None, answer });
        let (exchanges, queue) = mpsc::unbounded_channel();
        let (ends, ended) = watch::channel(false);
        tokio::task::spawn_local(exchange(UnixStream::from_std(stream)?, asked.into(), queue, ends));
        Ok((Self { exchanges, ended }, Beginning { opened, seen }))
    }

    /// Looks at the namespace: see [`Request::Look`].
    ///
    /// # Errors
    /// The helper's, or it is gone.
    pub async fn look(&self, attached: Vec<u32>, free: usize) -> anyhow::Result<Sight> {
        sight(self.ask(Request::Look { attached, free }).await?)
    }

    /// A socket that is being connected to the resolver in the namespace.
    ///
    /// # Errors
    /// The helper's, or it is gone.
    pub async fn dial(&self, transport: Transport) -> anyhow::Result<OwnedFd> {
        match self.ask(Request::Dial(transport)).await? {
            Reply::Dialed(socket) => Ok(socket.into_owned()?),
            other => unexpected(other),
        }
    }

    /// Ends the helper; returns when nothing of it is left in a namespace that stays.
    ///
    /// # Errors
    /// Something stays, or the helper is gone.
    pub async fn end(&self) -> anyhow::Result<()> {
        match self.ask(Request::End).await? {
            Reply::Ended => Ok(()),
            other => unexpected(other),
        }
    }

    /// Ends the helper, without waiting for that.
    pub fn dismiss(&self) {
        let (answer, _) = oneshot::channel();
        let _ = self.exchanges.send(Exchange { request: Some(Request::End), answer });
    }

    /// Whether the helper has ended.
    pub fn is_gone(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits for the helper's end.
    pub async fn ended(&self) {
        // A sender that is dropped says the same.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    async fn ask(&self, request: Request) -> anyhow::Result<Reply> {
        let (answer, answered) = oneshot::channel();
        // Where nobody takes it, nobody answers.
        let _ = self.exchanges.send(Exchange { request: Some(request), answer });
        answered.await.map_err(|_| anyhow!(ENDED))?
    }
}

impl Beginning {
    /// The answer to [`Request::Open`].
    ///
    /// # Errors
    /// The helper's, or it is gone.
    pub async fn opened(&mut self) -> anyhow::Result<Opened> {
        match (&mut self.opened).await.map_err(|_| anyhow!(ENDED))?? {
            Reply::Opened { changes, user_network } => {
                let user_network = user_network.map(Descriptor::into_owned).transpose()?;
                Ok(Opened { changes: changes.into_owned()?, user_network })
            }
            other => unexpected(other),
        }
    }

    /// The first sight of the namespace.
    ///
    /// # Errors
    /// The helper's, or it is gone.
    pub async fn seen(self) -> anyhow::Result<Sight> {
        sight(self.seen.await.map_err(|_| anyhow!(ENDED))??)
    }
}

fn sight(reply: Reply) -> anyhow::Result<Sight> {
    match reply {
        Reply::Seen(sight) => Ok(sight),
        other => unexpected(other),
    }
}

fn unexpected<T>(reply: Reply) -> anyhow::Result<T> {
    match reply {
        Reply::Failed(why) => bail!("{why}"),
        _ => bail!("the network helper answered something else"),
    }
}

/// Passes requests on and answers back, until the helper is gone or nobody can ask any more.
async fn exchange(
    stream: UnixStream,
    mut asked: VecDeque<Exchange>,
    mut queue: mpsc::UnboundedReceiver<Exchange>,
    ends: watch::Sender<bool>,
) {
    loop {
        let next = match asked.pop_front() {
            Some(next) => Some(next),
            None => tokio::select! {
                next = queue.recv() => next,
                () = closed(&stream) => None,
            },
        };
        let Some(Exchange { request, answer }) = next else { break };
        let reply = match tokio::time::timeout(PATIENCE, converse(&stream, request)).await {
            Ok(Ok(Some(reply))) => Ok(reply),
            // The connection is out of order then: an answer that comes late would be taken for the next one.
            Err(_) => Err(anyhow!(SILENT)),
            Ok(_) => break,
        };
        let silent = reply.is_err();
        let _ = answer.send(reply);
        if silent {
            break;
        }
    }
    ends.send_replace(true);
}

/// Waits for the connection's end: the helper says nothing by itself.
async fn closed(stream: &UnixStream) {
    let mut byte = [0; 1];
    let mut look = || Ok(rustix::net::recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?);
    // Whatever is there, or went wrong, ends it.
    let _ = stream.async_io(Interest::READABLE, || look().map(drop)).await;
}

async fn converse(stream: &UnixStream, request: Option<Request>) -> anyhow::Result<Option<Reply>> {
    if let Some(request) = request {
        ipc::send_async(stream, &request).await?;
    }
    ipc::receive_async(stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_is_stopped_is_not_waited_for_without_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (ours, _theirs) = ipc::pair().unwrap();
            let (helper, beginning) = NetworkHelper::begin(ours.into(), 1).unwrap();
            assert_eq!(beginning.seen().await.err().unwrap().to_string(), ENDED);
            assert_eq!(helper.look(Vec::new(), 1).await.err().unwrap().to_string(), ENDED);
            helper.ended().await;
        });
    }

    #[test]
    fn whoever_waits_for_one_that_is_stopped_is_told_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (ours, _theirs) = ipc::pair().unwrap();
            let (_helper, mut beginning) = NetworkHelper::begin(ours.into(), 1).unwrap();
            assert_eq!(beginning.opened().await.err().unwrap().to_string(), SILENT);
        });
    }
}
