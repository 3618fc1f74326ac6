//! The resolver of the container's network, which only the host can reach.
//!
//! ```text
//!  process ── 127.0.0.11:53, udp ── datagrams ══ one stream for all of them ══ the host's 127.0.0.11:53
//!             127.0.0.11:53, tcp ── a stream for each connection, as to sockets of the host
//! ```
//!
//! The kernel translates the port to that of a socket of the agent's (see `nat`).

use crate::error::{Context, Result};
use crate::event::watch;
use crate::host::sockets::HostSocketClient;
use crate::network::nat;
use crate::network::netlink::Netlink;
use protocol::{DatagramHeader, RESOLVER, RESOLVER_DATAGRAMS, RESOLVER_STREAM};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::task::JoinHandle;

/// How many processes may wait for an answer; the oldest is forgotten for one more.
const WAITING: usize = 512;

/// Sockets at the resolver's address, in a container's network.
pub struct Bound {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Server of these sockets. Dropping this ends it.
pub struct Resolver {
    tasks: [JoinHandle<()>; 2],
}

impl Resolver {
    /// Makes the sockets in the caller's network namespace, and has what is for the resolver come to them.
    pub fn bind() -> std::result::Result<Bound, Errno> {
        let bind = || {
            let place = (*RESOLVER.ip(), 0);
            let (udp, tcp) = (UdpSocket::bind(place)?, TcpListener::bind(place)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp.local_addr()?.port(), tcp.local_addr()?.port(), Bound { udp, tcp }))
        };
        let bound = bind().map_err(|error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let (udp, tcp, bound) = bound?;
        let rules = [(libc::IPPROTO_UDP as u8, udp), (libc::IPPROTO_TCP as u8, tcp)];
        Netlink::open_netfilter()?.execute(&nat::translate(RESOLVER, &rules))?;
        Ok(bound)
    }

    /// Serves the sockets by streams that this client asks the host for.
    pub fn serve(bound: Bound, client: &HostSocketClient) -> Result<Self> {
        let socket = tokio::net::UdpSocket::from_std(bound.udp).context(|| "event loop")?;
        let listener = watch(OwnedFd::from(bound.tcp), Interest::READABLE)?;
        let datagrams =
            Datagrams { socket, client: client.of(RESOLVER_DATAGRAMS), askers: vec![None; WAITING], next: 0 };
        let streams = client.of(RESOLVER_STREAM);
        Ok(Self { tasks: [tokio::spawn(datagrams.serve()), tokio::spawn(streams.serve(listener))] })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Datagrams {
    socket: tokio::net::UdpSocket,
    client: HostSocketClient,
    /// Addresses of those who asked, by tag.
    askers: Vec<Option<SocketAddr>>,
    next: usize,
}

impl Datagrams {
    /// The stream is made for the first question, and made again when it broke.
    async fn serve(mut self) {
        let mut question = vec![0; usize::from(u16::MAX)];
        loop {
            let Ok((length, asker)) = self.socket.recv_from(&mut question).await else { continue };
            let Some(stream) = self.client.stream().await else { continue };
            let stream = std::os::unix::net::UnixStream::from(stream);
            let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { continue };
            let first = self.framed(question.get(..length).unwrap_or_default(), asker);
            self.converse(stream, first).await;
        }
    }

    /// Relays questions and answers until the stream ends.
    async fn converse(&mut self, stream: UnixStream, first: Vec<u8>) {
        let (mut answers, mut questions) = stream.into_split();
        if questions.write_all(&first).await.is_err() {
            return;
        }
        let (mut question, mut answer) = (vec![0; usize::from(u16::MAX)], Answer::default());
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut question) => {
                    let Ok((length, asker)) = received else { continue };
                    let framed = self.framed(question.get(..length).unwrap_or_default(), asker);
                    if questions.write_all(&framed).await.is_err() {
                        return;
                    }
                }
                whole = answer.read_on(&mut answers) => match whole {
                    Ok(Some((tag, bytes))) => self.deliver(tag, &bytes).await,
                    Ok(None) => {}
                    Err(_) => return,
                },
            }
        }
    }

    fn framed(&mut self, question: &[u8], asker: SocketAddr) -> Vec<u8> {
        let tag = self.next;
        self.next = (tag + 1) % WAITING;
        if let Some(place) = self.askers.get_mut(tag) {
            *place = Some(asker);
        }
        let header = DatagramHeader { length: question.len() as u16, tag: tag as u16 };
        [&header.to_bytes(), question].concat()
    }

    /// Sends an answer to whoever asked; one who does not listen any more misses it.
    async fn deliver(&mut self, tag: u16, answer: &[u8]) {
        if let Some(asker) = self.askers.get_mut(usize::from(tag)).and_then(Option::take) {
            let _ = self.socket.send_to(answer, asker).await;
        }
    }
}

/// The part of an answer that has come so far. Nothing of it is lost when somebody stops waiting for the rest.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
}

impl Answer {
    /// Reads some more; gives tag and content once the answer is whole.
    async fn read_on(&mut self, stream: &mut OwnedReadHalf) -> std::io::Result<Option<(u16, Vec<u8>)>> {
        let mut wanted = DatagramHeader::SIZE;
        let header = self.bytes.first_chunk().map(|bytes| DatagramHeader::from_bytes(*bytes));
        if let Some(header) = header {
            wanted += usize::from(header.length);
        }
        let missing = wanted.saturating_sub(self.bytes.len());
        if missing > 0 && (&mut *stream).take(missing as u64).read_buf(&mut self.bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        match header {
            Some(header) if self.bytes.len() >= wanted => {
                let bytes = std::mem::take(&mut self.bytes);
                Ok(Some((header.tag, bytes.get(DatagramHeader::SIZE..).unwrap_or_default().to_vec())))
            }
            _ => Ok(None),
        }
    }
}
