//! Questions of a container's processes to the resolver of its network, by UDP.
//!
//! The guest sends the questions down one stream, each with a tag. The monitor asks them with sockets of the namespace in
//! whose loopback the resolver listens, which the network helper gives it. Each question has a socket of its own for as long
//! as it may be answered, so nobody can answer another's.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, Notify, Semaphore};
use vmm::virtio::vsock::Handle;

use super::datagrams::Tagged;
use super::helper::NetworkHelper;
use crate::log::{self, Level};
use crate::monitor::streams::connections::open;
use crate::network::messages::Transport;

/// How long to wait for an answer: longer than the process that asked does.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most questions without an answer; the next one is dropped, as networks do.
const WAITING: usize = 128;
/// How long the resolver may take to accept a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Whether the container's network has a resolver, and what serves questions to it.
pub struct Announcement {
    /// Where the resolver is; none for a container with another one's network.
    helper: Option<NetworkHelper>,
    there: Cell<bool>,
    made: Notify,
    /// Admits one stream at a time.
    stream: Semaphore,
    waiting: Arc<Semaphore>,
}

impl Announcement {
    /// Announces nothing yet; the resolver may come up in the namespace of this helper.
    pub fn new(helper: Option<NetworkHelper>) -> Self {
        let (there, made) = (Cell::new(false), Notify::new());
        Self { helper, there, made, stream: Semaphore::new(1), waiting: Arc::new(Semaphore::new(WAITING)) }
    }

    /// From now on there is a resolver.
    pub fn announce(&self) {
        self.there.set(true);
        self.made.notify_one();
    }

    /// Whether there is a resolver.
    pub fn is_there(&self) -> bool {
        self.there.get()
    }

    /// Waits until there is a resolver. For one task only.
    pub async fn made(&self) {
        self.made.notified().await;
    }

    /// Connects to the resolver.
    ///
    /// # Errors
    /// It does not accept the connection, or there is no helper to ask.
    pub async fn connect(&self) -> anyhow::Result<OwnedFd> {
        let helper = self.helper.as_ref().ok_or_else(|| anyhow!("the container has another one's network"))?;
        let stream = TcpStream::from_std(helper.dial(Transport::Tcp).await?.into())?;
        tokio::time::timeout(CONNECT_PATIENCE, stream.writable())
            .await
            .context("the resolver accepts no connection")??;
        match stream.take_error()? {
            Some(error) => Err(error).context("connect to the resolver of the container's network"),
            None => Ok(blocking(stream)?),
        }
    }

    /// Opens the stream that the guest waits for by this id, and serves it to its end.
    pub async fn serve(self: Rc<Self>, vsock: Handle, id: u64) {
        let (Ok(_stream), Some(helper)) = (self.stream.try_acquire(), &self.helper) else {
            return log::repeated(Level::Debug, "the guest asks for a second stream to the resolver");
        };
        match open(&vsock, id) {
            Ok(stream) => {
                let (questions, answers) = stream.into_split();
                let (waiting, helper) = (Arc::clone(&self.waiting), helper.clone());
                let questioning = Questions { waiting, helper, answers: Rc::new(Mutex::new(answers)) };
                // The guest closes it when the container ends.
                if let Err(error) = questioning.ask(questions).await {
                    log::repeated(
                        Level::Debug,
                        &format!("relay questions to the resolver of the container's network: {error}"),
                    );
                }
            }
            Err(error) => log::repeated(Level::Debug, &format!("open a stream to the guest: {error}")),
        }
    }
}

struct Questions {
    waiting: Arc<Semaphore>,
    helper: NetworkHelper,
    answers: Rc<Mutex<OwnedWriteHalf>>,
}

impl Questions {
    async fn ask(&self, mut stream: OwnedReadHalf) -> std::io::Result<()> {
        loop {
            let Tagged { tag, datagram: question } = Tagged::read(&mut stream).await?;
            let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else { continue };
            let (answers, resolver) = (Rc::clone(&self.answers), self.helper.clone());
            tokio::task::spawn_local(async move {
                let _place = place;
                // Without an answer the process asks again.
                if let Ok(Ok(datagram)) = tokio::time::timeout(PATIENCE, answer(resolver, &question)).await {
                    let answer = Tagged { tag, datagram }.to_bytes();
                    let _ = answers.lock().await.write_all(&answer).await;
                }
            });
        }
    }
}

async fn answer(resolver: NetworkHelper, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(resolver.dial(Transport::Udp).await?.into())?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

/// A connection as the vsock device takes it.
fn blocking(stream: TcpStream) -> std::io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}
