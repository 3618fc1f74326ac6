//! Table of a device's connections: finds the connection of each packet and says which one sends next.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::connection::{Connection, Verdict};
use super::handle::{Connect, FIRST_OWN_PORT, Listeners};
use super::packet::{HEADER_SIZE, HOST_CID, Header, Op, PORT_ANY, Ports, TYPE_STREAM};
use super::stream::Socket;
use crate::event_loop::Watcher;
use crate::virtio::Error;
use crate::virtio::queue::{Buffers, Chain, Outcome};

/// Most connections at a time.
pub const MAX_CONNECTIONS: usize = 4096;
/// `RST`s that wait for room in the rx ring before no more packets are taken from the guest (virtio
/// 1.2, section 5.10.6.1.1).
pub const MAX_RESETS: usize = 256;
/// Connections that get a large buffer for data from the guest. Others get a small one, so that a guest
/// that opens many can't hold much of the host's memory: 80 MiB, with every buffer full.
const LARGE_BUFFERS: usize = 64;
const LARGE_BUFFER: u32 = 256 << 10;
const SMALL_BUFFER: u32 = 16 << 10;

/// How long the guest may take to answer the end of a connection before its place may be used again.
const LINGER: Duration = Duration::from_secs(10);

struct Entry {
    connection: Connection<Socket>,
    /// Whether the connection is in `Muxer::sending`, and in `Muxer::changed`.
    sending: bool,
    changed: bool,
    /// Events that the socket is watched for, if any.
    watched: Option<u32>,
}

/// The table of connections.
pub struct Muxer {
    guest_cid: u64,
    listeners: Arc<Listeners>,
    entries: HashMap<u64, Entry>,
    /// Connections with something for the guest, each once: served in turn, one packet each.
    sending: VecDeque<u64>,
    /// Connections whose watching may have to change.
    changed: Vec<u64>,
    /// Removed connections that are still watched.
    removed: Vec<Entry>,
    /// `RST`s for connections that are not in the table (any more).
    resets: VecDeque<Header>,
    next_port: u32,
    linger: Duration,
}

impl Muxer {
    /// An empty table for a guest of this context identifier.
    pub fn new(guest_cid: u64, listeners: Arc<Listeners>) -> Self {
        Self {
            guest_cid,
            listeners,
            entries: HashMap::new(),
            sending: VecDeque::new(),
            changed: Vec::new(),
            removed: Vec::new(),
            resets: VecDeque::new(),
            next_port: FIRST_OWN_PORT,
            linger: LINGER,
        }
    }

    /// Changes how long the guest may take to answer the end of a connection.
    #[cfg(test)]
    pub fn set_linger(&mut self, linger: Duration) {
        self.linger = linger;
    }

    /// Whether so many answers wait for room in the rx ring that no packet should be taken.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether there may be something for the guest.
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.sending.is_empty()
    }

    /// Starts a connection from the host. Without room in the table the stream is closed, as if refused.
    pub fn connect(&mut self, connect: Connect) {
        if !self.make_room() {
            return;
        }
        let ports = Ports { host: self.own_port(connect.port), guest: connect.port };
        let connection = Connection::request(connect.socket, self.buffer());
        self.insert(ports.token(), connection);
    }

    /// Takes a packet of the guest from a chain of the tx ring.
    pub fn receive(&mut self, chain: &mut Chain) -> Result<Outcome, Error> {
        let data = &mut chain.readable;
        let packet = Header::read(data).ok_or(Error::Protocol("a packet shorter than its header"))?;
        if packet.src_cid.get() != self.guest_cid {
            return Ok(Outcome::Used(0));
        }
        let len = packet.len.get() as usize;
        let complete = len <= data.len();
        data.split_off(len);
        let ports = packet.ports();
        let valid = packet.dst_cid.get() == HOST_CID && packet.kind.get() == TYPE_STREAM;
        let verdict = match self.entries.get_mut(&ports.token()).filter(|_| valid) {
            Some(entry) if complete => entry.connection.on_packet(&packet, data),
            Some(_) => Verdict::Reset,
            None if valid && packet.op() == Some(Op::Request) => self.accept(&packet),
            None => Verdict::Reset,
        };
        if verdict == Verdict::Reset && packet.op() != Some(Op::Reset) {
            self.resets.push_back(packet.reset());
        }
        if valid && verdict != Verdict::Keep {
            self.end(ports.token());
        }
        self.settle(ports.token());
        Ok(Outcome::Used(0))
    }

    /// Puts the next packet for the guest into a chain of the rx ring.
    pub fn send(&mut self, chain: &mut Chain) -> Result<Outcome, Error> {
        let mut room = chain.writable.split_off(HEADER_SIZE);
        if room.is_empty() {
            return Err(Error::Protocol("a buffer without room for data"));
        }
        let Some(packet) = self.next(&mut room) else { return Ok(Outcome::Later) };
        chain.writable.write(packet.as_bytes());
        Ok(Outcome::Used((HEADER_SIZE as u32).saturating_add(packet.len.get())))
    }

    /// Serves the connection of this token, whose socket is ready.
    pub fn on_socket(&mut self, token: u64, events: u32) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let has = |bits: i32| events & bits as u32 != 0;
        let hung_up = has(libc::EPOLLHUP | libc::EPOLLERR);
        entry.connection.on_stream(has(libc::EPOLLIN), has(libc::EPOLLOUT), hung_up);
        self.settle(token);
    }

    /// Has every socket watched for what its connection waits for, and no other.
    pub fn watch(&mut self, watcher: &mut dyn Watcher) {
        for mut entry in std::mem::take(&mut self.removed) {
            entry.unwatch(watcher);
        }
        for token in std::mem::take(&mut self.changed) {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.changed = false;
            if entry.watch(token, watcher).is_err() {
                entry.unwatch(watcher);
                let packet = Header::to_guest(self.guest_cid, Ports::from_token(token), Op::Reset);
                self.resets.push_back(packet);
                self.entries.remove(&token);
            }
        }
    }

    /// Has no socket watched, until [`Muxer::watch`].
    pub fn unwatch(&mut self, watcher: &mut dyn Watcher) {
        for mut entry in std::mem::take(&mut self.removed) {
            entry.unwatch(watcher);
        }
        for (token, entry) in &mut self.entries {
            entry.unwatch(watcher);
            if !std::mem::replace(&mut entry.changed, true) {
                self.changed.push(*token);
            }
        }
    }

    /// Forgets what the guest knew. Connections that it never heard of stay, and what it sent before
    /// still goes to the host.
    pub fn reset(&mut self) {
        self.resets.clear();
        self.entries.retain(|_, entry| {
            if !entry.connection.is_unsent() {
                entry.connection.end();
            }
            !entry.connection.is_over()
        });
        self.sending.retain(|token| self.entries.contains_key(token));
    }

    /// Ports of all connections that the guest may still hold, as tokens, and where own ports go on.
    pub fn state(&self) -> (Vec<u64>, u32) {
        let live = self.entries.iter().filter(|(_, entry)| entry.connection.is_known_to_guest());
        let resets = self.resets.iter().filter(|reset| reset.src_cid.get() == HOST_CID);
        let resets = resets.map(|reset| Ports { host: reset.src_port.get(), guest: reset.dst_port.get() }.token());
        (live.map(|(token, _)| *token).chain(resets).collect(), self.next_port)
    }

    /// Resets, before anything else is sent, the connections that a guest of another life held.
    pub fn set_state(&mut self, tokens: impl Iterator<Item = u64>, next_port: u32) {
        let reset = |token| Header::to_guest(self.guest_cid, Ports::from_token(token), Op::Reset);
        self.resets.extend(tokens.map(reset));
        self.next_port = next_port.clamp(FIRST_OWN_PORT, PORT_ANY - 1);
    }

    fn next(&mut self, room: &mut Buffers) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.sending.pop_front() {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            entry.sending = false;
            let header = Header::to_guest(self.guest_cid, Ports::from_token(token), Op::Data);
            let packet = entry.connection.output(header, room);
            self.settle(token);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    fn accept(&mut self, request: &Header) -> Verdict {
        let ports = request.ports();
        let named = ports.host != PORT_ANY && ports.guest != PORT_ANY;
        if !named || !self.make_room() {
            return Verdict::Reset;
        }
        let Ok(socket) = self.listeners.offer(ports.host) else { return Verdict::Reset };
        let connection = Connection::accept(socket, self.buffer(), request);
        self.insert(ports.token(), connection);
        Verdict::Keep
    }

    fn insert(&mut self, token: u64, connection: Connection<Socket>) {
        let entry = Entry { connection, sending: false, changed: false, watched: None };
        self.entries.insert(token, entry);
        self.settle(token);
    }

    fn end(&mut self, token: u64) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.connection.end();
        }
    }

    /// Queues, marks or removes a connection to which something happened.
    fn settle(&mut self, token: u64) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if entry.connection.is_over() {
            if let Some(entry) = self.entries.remove(&token).filter(|entry| entry.watched.is_some()) {
                self.removed.push(entry);
            }
            return;
        }
        if entry.connection.has_output() && !std::mem::replace(&mut entry.sending, true) {
            self.sending.push_back(token);
        }
        if !std::mem::replace(&mut entry.changed, true) {
            self.changed.push(token);
        }
    }

    /// Makes room for one more connection, if need be in place of one whose end the guest did not
    /// answer in time. No timer is needed: until the room is, such a connection costs nothing.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < MAX_CONNECTIONS {
            return true;
        }
        let expired = self.entries.iter().find(|(_, entry)| entry.connection.is_expired(self.linger));
        let Some(token) = expired.map(|(token, _)| *token) else { return false };
        let packet = Header::to_guest(self.guest_cid, Ports::from_token(token), Op::Reset);
        self.resets.push_back(packet);
        self.entries.remove(&token).is_some()
    }

    /// A port of the host that no connection to this port of the guest uses.
    fn own_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host >= PORT_ANY - 1 { FIRST_OWN_PORT } else { host + 1 };
            // Ends, for there are more ports than connections.
            if !self.entries.contains_key(&Ports { host, guest }.token()) {
                return host;
            }
        }
    }

    fn buffer(&self) -> u32 {
        if self.entries.len() < LARGE_BUFFERS { LARGE_BUFFER } else { SMALL_BUFFER }
    }
}

impl Entry {
    fn watch(&mut self, token: u64, watcher: &mut dyn Watcher) -> std::io::Result<()> {
        let Some((input, output)) = self.connection.interest() else {
            self.unwatch(watcher);
            return Ok(());
        };
        let bit = |wanted: bool, bit: i32| if wanted { bit as u32 } else { 0 };
        let events = bit(input, libc::EPOLLIN) | bit(output, libc::EPOLLOUT);
        let Some(fd) = self.connection.stream().map(AsRawFd::as_raw_fd) else { return Ok(()) };
        match self.watched {
            None => watcher.add(fd, token, events)?,
            Some(before) if before != events => watcher.modify(fd, token, events)?,
            Some(_) => {}
        }
        self.watched = Some(events);
        Ok(())
    }

    fn unwatch(&mut self, watcher: &mut dyn Watcher) {
        if let (Some(_), Some(socket)) = (self.watched.take(), self.connection.stream()) {
            let _ = watcher.remove(socket.as_raw_fd());
        }
        self.connection.release();
    }
}
