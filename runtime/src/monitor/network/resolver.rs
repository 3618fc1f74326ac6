//! Questions of a container's processes to the resolver of its network, by UDP.
//!
//! The guest sends the questions down one stream, each with a tag. The monitor asks them from the namespace in whose
//! loopback the resolver listens. Each question has a socket of its own for as long as it may be answered, so nobody can
//! answer another's.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use protocol::RESOLVER;
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Notify, Semaphore};
use vmm::virtio::vsock::Handle;

use super::datagrams::Tagged;
use crate::log::{self, Level};
use crate::monitor::streams::connections::open;
use crate::network::NetworkNamespace;

/// How long to wait for an answer: longer than the process that asked does.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most questions without an answer; the next one is dropped, as networks do.
const WAITING: usize = 128;
/// Ports on the host that questions are sent from.
const PORTS: RangeInclusive<u16> = 20_000..=28_000;
/// How many of these ports are tried for a question.
const TRIES: usize = 16;

/// Whether the container's network has a resolver, and what serves questions to it.
pub struct Announcement {
    place: NetworkNamespace,
    there: Cell<bool>,
    made: Notify,
    /// Admits one stream at a time.
    stream: Semaphore,
    waiting: Arc<Semaphore>,
}

impl Announcement {
    /// Announces nothing yet; the resolver may come up in this namespace.
    pub fn new(place: NetworkNamespace) -> Self {
        let (there, made) = (Cell::new(false), Notify::new());
        Self { place, there, made, stream: Semaphore::new(1), waiting: Arc::new(Semaphore::new(WAITING)) }
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

    /// Opens the stream that the guest waits for by this id, and serves it to its end.
    pub async fn serve(self: Rc<Self>, vsock: Handle, id: u64) {
        let Ok(_stream) = self.stream.try_acquire() else {
            return log::repeated(Level::Debug, "the guest asks for a second stream to the resolver");
        };
        match open(&vsock, id) {
            Ok(stream) => {
                let (questions, answers) = stream.into_split();
                let (waiting, place) = (Arc::clone(&self.waiting), self.place.clone());
                let questioning = Questions { waiting, place, answers: Rc::new(Mutex::new(answers)) };
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
    place: NetworkNamespace,
    answers: Rc<Mutex<OwnedWriteHalf>>,
}

impl Questions {
    async fn ask(&self, mut stream: OwnedReadHalf) -> std::io::Result<()> {
        loop {
            let Tagged { tag, datagram: question } = Tagged::read(&mut stream).await?;
            let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else { continue };
            let (answers, resolver) = (Rc::clone(&self.answers), self.place.clone());
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

async fn answer(place: NetworkNamespace, question: &[u8]) -> anyhow::Result<Vec<u8>> {
    let socket = tokio::task::spawn_blocking(move || place.run(|| Ok(bind()?))).await??;
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(RESOLVER).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

/// A socket at a port of our own choice: the ports that the kernel would choose are few in such a namespace, and the
/// resolver needs them for questions to others.
fn bind() -> std::io::Result<std::net::UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut result = Err(std::io::ErrorKind::AddrInUse.into());
    for _ in 0..TRIES {
        let port = PORTS.start() + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end() - PORTS.start());
        result = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
        if result.is_ok() {
            break;
        }
    }
    let socket = result?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
