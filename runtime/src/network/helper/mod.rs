//! The network helper: a small process in the container's network namespace that does what takes CAP_NET_ADMIN there.
//!
//! ```text
//!  command ──starts──▶ network helper                              monitor: no capability
//!                        netlink: links, filters    ◀── Look ────
//!                        /dev/net/tun: taps         ─── taps ──▶   NICs, passt relay
//!                        sockets of the namespace   ── sockets ▶   resolver
//! ```
//!
//! It never sees a byte of the guest's. What the monitor asks is hostile, too: the guest may own the monitor. So the helper attaches
//! only taps of its own to links that it has seen itself, and takes no path, name or descriptor from the monitor.
//! It ends with the monitor's end of their connection, and leaves the namespace as it was.

mod confine;

use std::net::{Ipv4Addr, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, anyhow};
use protocol::RESOLVER;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::attached_links::AttachedLinks;
use super::changes;
use super::files::Files;
use super::messages::{Reply, Request, Transport};
use super::user_network;
use crate::ipc::{self, Frame};
use crate::log;

/// Most bytes of a request: more than one with as many links as a VM has NICs.
const REQUEST: usize = 4 << 10;
/// Ports on the host that questions to the resolver are sent from.
const PORTS: RangeInclusive<u16> = 20_000..=28_000;
/// How many of these ports are tried for a question.
const TRIES: usize = 16;

/// What the command says to the helper that it starts.
pub struct Setup {
    /// Whether the namespace outlives the container, or the monitor does: then it is to be left as it was.
    pub stays: bool,
    /// Whether the container has a user-mode network.
    pub user_network: bool,
    /// Whether it filters its system calls.
    pub seccomp: bool,
}

/// Is the helper, until the connection to the monitor ends.
pub fn run(monitor: &UnixStream, setup: &Setup) {
    // A session of its own: what the user types at the terminal of `runvm run` is not for this process.
    let _ = rustix::process::setsid();
    Helper::new(setup).serve(monitor);
}

/// What requests work on.
pub(super) struct Helper {
    /// Why there are none is the answer to each request.
    pub(super) links: anyhow::Result<AttachedLinks>,
    pub(super) stays: bool,
    pub(super) user_network: bool,
    /// Counts questions to the resolver.
    pub(super) questions: u16,
}

impl Helper {
    fn new(setup: &Setup) -> Self {
        let links = prepare(setup.seccomp).context("prepare the network helper");
        Self { links, stays: setup.stays, user_network: setup.user_network, questions: 0 }
    }

    /// Answers requests until the connection's end.
    pub(super) fn serve(&mut self, monitor: &UnixStream) {
        loop {
            let request = match Frame::receive_at_most(monitor, REQUEST).map(|frame| frame.map(Frame::open)) {
                Ok(Some(Ok(request))) => request,
                Ok(None) => break,
                Ok(Some(Err(_))) | Err(_) => {
                    // Nothing of it is told: it may be a hostile guest's.
                    log::warning("the network helper ends: its monitor has sent something that is no request");
                    break;
                }
            };
            let ends = matches!(request, Request::End);
            let reply = self.answer(request).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
            // A monitor that is gone has nothing more to say either.
            let _ = ipc::send(monitor, &reply);
            if ends {
                return;
            }
        }
        if let Err(error) = self.leave() {
            log::warning(&format!("clean up the container's network: {error:#}"));
        }
    }

    fn answer(&mut self, request: Request) -> anyhow::Result<Reply> {
        match request {
            Request::Open => self.open(),
            Request::Look { attached, free } => self.links()?.look(&attached, free).map(Reply::Seen),
            Request::Dial(transport) => self.dial(transport),
            Request::End => self.leave().map(|()| Reply::Ended),
        }
    }

    fn links(&mut self) -> anyhow::Result<&mut AttachedLinks> {
        self.links.as_mut().map_err(|error| anyhow!("{error:#}"))
    }

    fn open(&mut self) -> anyhow::Result<Reply> {
        let wanted = std::mem::take(&mut self.user_network);
        let files = &self.links()?.files;
        let user_network = wanted.then(|| user_network::make(files)).transpose()?.map(Into::into);
        let changes = changes::watch().context("watch the network")?.into();
        Ok(Reply::Opened { changes, user_network })
    }

    fn dial(&mut self, transport: Transport) -> anyhow::Result<Reply> {
        let socket = match transport {
            Transport::Udp => self.udp().context("ask the resolver of the container's network")?,
            Transport::Tcp => tcp().context("connect to the resolver of the container's network")?,
        };
        Ok(Reply::Dialed(socket.into()))
    }

    /// A socket at a port of our own choice: the ports that the kernel would choose are few in such a namespace, and the
    /// resolver needs them for questions to others.
    fn udp(&mut self) -> std::io::Result<OwnedFd> {
        let mut result = Err(std::io::ErrorKind::AddrInUse.into());
        for _ in 0..TRIES {
            let port = PORTS.start() + self.questions % (PORTS.end() - PORTS.start());
            self.questions = self.questions.wrapping_add(1);
            result = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
            if result.is_ok() {
                break;
            }
        }
        let socket = result?;
        socket.set_nonblocking(true)?;
        socket.connect(RESOLVER)?;
        Ok(socket.into())
    }

    /// Leaves a namespace that stays as it was.
    fn leave(&mut self) -> anyhow::Result<()> {
        match &mut self.links {
            Ok(links) if self.stays => links.detach_all(),
            _ => Ok(()),
        }
    }
}

fn tcp() -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &RESOLVER) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Opens what the helper needs, and gives up everything else.
fn prepare(seccomp: bool) -> anyhow::Result<AttachedLinks> {
    let files = Files::open()?;
    confine::enter(files.devices().ok(), seccomp)?;
    AttachedLinks::open(files)
}
