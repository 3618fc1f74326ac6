//! A connection: phases, credit both ways and two directions, each closed on its own
//! (virtio 1.2, sections 5.10.6.3 to 5.10.6.6). All I/O is done by its [`Stream`].

use std::io::ErrorKind;
use std::net::Shutdown;
use std::num::Wrapping;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::credit::Credit;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::stream::Stream;
use crate::virtio::queue::Buffers;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked for the connection; the guest has not answered.
    Requested,
    /// Data flows.
    Open,
    /// The guest has ended the connection; what it sent before is still on its way to the host.
    Draining,
    /// The host has ended the connection and the guest heard of it at this time; the guest's answer is missing.
    Lingering(Instant),
}

/// What a packet from the guest did to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection goes on.
    Keep,
    /// The guest ended the connection.
    End,
    /// The connection is over, and the guest has to hear so by `RST`.
    Reset,
}

/// A connection over a stream `S` of the host.
pub struct Connection<S> {
    /// The host's stream; `None` once the host is done.
    stream: Option<S>,
    phase: Phase,
    /// `REQUEST` or `RESPONSE` that was not sent yet.
    hello: Option<Op>,
    /// Directions that the guest closed, as flags of `SHUTDOWN`.
    guest_closed: u32,
    /// Directions that the host closed, and those of them that the guest has heard of.
    host_closed: u32,
    reported: u32,
    /// Whether the stream may have bytes for the guest, and whether its other end is gone: then it is not watched.
    readable: bool,
    hung_up: bool,
    credit: Credit,
    /// Data from the guest: all of it so far, what still waits, how much may wait.
    received: Wrapping<u32>,
    backlog: Backlog,
    capacity: u32,
    /// `fwd_cnt` as the guest knows it, and whether it wants to hear it again.
    advertised: Wrapping<u32>,
    update_wanted: bool,
}

impl<S: Stream> Connection<S> {
    /// A connection that the host asks for, with room for `capacity` bytes from the guest.
    pub fn request(stream: S, capacity: u32) -> Self {
        Self {
            stream: Some(stream),
            phase: Phase::Requested,
            hello: Some(Op::Request),
            guest_closed: 0,
            host_closed: 0,
            reported: 0,
            readable: false,
            hung_up: false,
            credit: Credit::default(),
            received: Wrapping(0),
            backlog: Backlog::default(),
            capacity,
            advertised: Wrapping(0),
            update_wanted: false,
        }
    }

    /// A connection that the guest asked for with `request` and the host took.
    pub fn accept(stream: S, capacity: u32, request: &Header) -> Self {
        let mut connection = Self::request(stream, capacity);
        connection.phase = Phase::Open;
        connection.hello = Some(Op::Response);
        connection.credit.update(request);
        connection
    }

    /// The stream, until [`Connection::release`].
    pub fn stream(&self) -> Option<&S> {
        self.stream.as_ref()
    }

    /// The stream, to act on it from outside.
    #[cfg(test)]
    pub fn stream_mut(&mut self) -> Option<&mut S> {
        self.stream.as_mut()
    }

    /// Closes the stream if the host is done with it. Don't watch it any more by then.
    pub fn release(&mut self) {
        if matches!(self.phase, Phase::Lingering(_)) {
            self.stream = None;
        }
    }

    /// Whether nothing went out to the guest yet, so that it need not know if the device is reset.
    pub fn is_unsent(&self) -> bool {
        self.hello == Some(Op::Request)
    }

    /// Whether the guest has heard of this connection and not of its end.
    pub fn is_known_to_guest(&self) -> bool {
        !self.is_unsent() && self.phase != Phase::Draining
    }

    /// Whether nothing is left to do: forget the connection.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Draining && self.backlog.is_empty()
    }

    /// Whether the guest had this time to answer the end of the connection.
    pub fn is_expired(&self, time: Duration) -> bool {
        matches!(self.phase, Phase::Lingering(since) if since.elapsed() >= time)
    }

    /// What the stream is to be watched for: whether for input and for output, or `None` for not at
    /// all. A stream whose other end is gone would report that for ever.
    pub fn interest(&self) -> Option<(bool, bool)> {
        let watched = matches!(self.phase, Phase::Open | Phase::Draining) && !self.hung_up && !self.is_over();
        let input = self.phase == Phase::Open && !self.readable && !self.no_more_input();
        watched.then_some((input, !self.backlog.is_empty()))
    }

    /// Notes that the stream has input or room for output, or that its other end is gone.
    pub fn on_stream(&mut self, input: bool, output: bool, hung_up: bool) {
        self.readable |= (input || hung_up) && !self.no_more_input();
        self.hung_up |= hung_up;
        if hung_up && self.phase == Phase::Draining {
            self.flush();
            // Were it not gone after all, then watching it again says so.
            self.hung_up = false;
        } else if hung_up && !self.readable {
            self.end_of_input();
        } else if output && !(hung_up && self.can_read()) {
            // If it is gone and can be read, reading finds the end of both directions: one packet.
            self.flush();
        }
    }

    /// Takes a packet of the guest and its data.
    pub fn on_packet(&mut self, packet: &Header, data: &mut Buffers) -> Verdict {
        self.credit.update(packet);
        match (self.phase, packet.op()) {
            (Phase::Draining, Some(Op::Reset)) => Verdict::Keep,
            (_, Some(Op::Reset)) => Verdict::End,
            (Phase::Requested, Some(Op::Response)) if self.hello.is_none() => self.open(),
            (Phase::Open, Some(Op::Data)) => self.take_data(data),
            (Phase::Open, Some(Op::Shutdown)) => self.take_shutdown(packet.flags.get()),
            (Phase::Open, Some(Op::CreditUpdate)) => Verdict::Keep,
            (Phase::Open, Some(Op::CreditRequest)) => {
                self.update_wanted = true;
                Verdict::Keep
            }
            // What the guest sent before it heard of the end.
            (Phase::Lingering(_), Some(Op::Data | Op::CreditUpdate | Op::CreditRequest)) => Verdict::Keep,
            (Phase::Lingering(_), Some(Op::Shutdown)) => self.take_shutdown(packet.flags.get()),
            _ => self.violation(),
        }
    }

    /// Notes that the guest ended the connection: what it sent before still goes to the host.
    pub fn end(&mut self) {
        self.phase = Phase::Draining;
        self.hello = None;
        if let (false, Some(stream)) = (self.backlog.is_empty(), self.stream.as_mut()) {
            stream.shutdown(Shutdown::Read);
        }
    }

    /// Whether [`Connection::output`] has something, given room.
    pub fn has_output(&self) -> bool {
        self.hello.is_some()
            || self.phase == Phase::Open && (self.untold() || self.can_read() || self.update_due() || self.must_ask())
    }

    /// The next packet for the guest, if there is one: `header` with everything filled in, and its data
    /// at the front of `room`, straight from the stream.
    pub fn output(&mut self, mut header: Header, room: &mut Buffers) -> Option<Header> {
        let (op, len) = self.next_packet(room)?;
        header.op.set(op as u16);
        header.len.set(len);
        header.buf_alloc.set(self.capacity);
        header.fwd_cnt.set(self.forwarded().0);
        self.advertised = self.forwarded();
        self.update_wanted = false;
        if op == Op::Shutdown {
            header.flags.set(self.host_closed);
            self.shutdown_sent();
        }
        Some(header)
    }

    fn next_packet(&mut self, room: &mut Buffers) -> Option<(Op, u32)> {
        if let Some(hello) = self.hello.take() {
            return Some((hello, 0));
        }
        if self.phase != Phase::Open {
            return None;
        }
        if let Some(len) = self.read(room) {
            return Some((Op::Data, len));
        }
        if self.untold() {
            return Some((Op::Shutdown, 0));
        }
        if self.update_due() {
            return Some((Op::CreditUpdate, 0));
        }
        self.must_ask().then(|| {
            self.credit.ask();
            (Op::CreditRequest, 0)
        })
    }

    /// Reads from the stream as much as fits and the guest's credit allows, unless something else is to
    /// be said first.
    fn read(&mut self, room: &mut Buffers) -> Option<u32> {
        if self.untold() || !self.can_read() {
            return None;
        }
        let limit = room.len().min(self.credit.free() as usize);
        let result = self.stream.as_mut()?.read(room, limit);
        match result {
            Ok(0) => self.end_of_input(),
            Ok(len) => {
                self.credit.spend(len as u32);
                // A short read emptied the socket; but one that is not watched says nothing of its end.
                self.readable = len == limit || self.hung_up;
                return Some(len as u32);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Should it have hung up after all, then watching it again says so.
                self.readable = false;
                self.hung_up = false;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                self.hung_up = true;
                self.end_of_input();
            }
        }
        None
    }

    fn end_of_input(&mut self) {
        self.readable = false;
        self.host_closed |= SHUTDOWN_SEND;
        if self.hung_up {
            self.end_of_output();
        }
    }

    /// Notes that a `SHUTDOWN` went out: when it closed both directions, the host's side is done.
    fn shutdown_sent(&mut self) {
        self.reported = self.host_closed;
        if self.reported == SHUTDOWN_BOTH {
            self.phase = Phase::Lingering(Instant::now());
            self.backlog = Backlog::default();
        }
    }

    /// Notes that the guest accepted. The host may have written long since, so the stream is read without waiting for an event.
    fn open(&mut self) -> Verdict {
        self.phase = Phase::Open;
        self.readable = true;
        Verdict::Keep
    }

    fn take_data(&mut self, data: &mut Buffers) -> Verdict {
        let room = (self.capacity as usize).saturating_sub(self.backlog.len());
        if data.len() > room || self.guest_closed & SHUTDOWN_SEND != 0 {
            return self.violation();
        }
        self.received += data.len() as u32;
        if self.backlog.is_empty() && self.host_closed & SHUTDOWN_RECEIVE == 0 {
            self.write(data);
        }
        if self.host_closed & SHUTDOWN_RECEIVE == 0 && !data.is_empty() {
            self.backlog.push(data, self.capacity as usize);
        }
        Verdict::Keep
    }

    /// Writes data straight from the guest's buffers until the stream takes no more.
    fn write(&mut self, data: &mut Buffers) {
        let Some(stream) = self.stream.as_mut() else { return };
        while !data.is_empty() {
            match stream.write(data) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.end_of_output(),
            }
        }
    }

    /// Writes the backlog until the stream takes no more.
    fn flush(&mut self) {
        while let (false, Some(stream)) = (self.backlog.is_empty(), self.stream.as_mut()) {
            match stream.write_pieces(self.backlog.pieces()) {
                Ok(0) => return,
                Ok(count) => self.backlog.skip(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.end_of_output(),
            }
        }
        if let (true, Some(stream)) = (self.guest_closed & SHUTDOWN_SEND != 0, self.stream.as_mut()) {
            stream.shutdown(Shutdown::Write);
        }
    }

    /// Notes that the host reads no more: what waits for it counts as taken.
    fn end_of_output(&mut self) {
        self.host_closed |= SHUTDOWN_RECEIVE;
        self.backlog = Backlog::default();
    }

    fn take_shutdown(&mut self, flags: u32) -> Verdict {
        let new = flags & SHUTDOWN_BOTH & !self.guest_closed;
        self.guest_closed |= new;
        if self.guest_closed == SHUTDOWN_BOTH {
            return Verdict::Reset;
        }
        if let Some(stream) = self.stream.as_mut() {
            if new & SHUTDOWN_RECEIVE != 0 {
                stream.shutdown(Shutdown::Read);
                self.readable = false;
            }
            if new & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
                stream.shutdown(Shutdown::Write);
            }
        }
        Verdict::Keep
    }

    /// Ends the connection because the guest broke the rules.
    fn violation(&mut self) -> Verdict {
        if self.phase != Phase::Draining {
            self.backlog = Backlog::default();
        }
        Verdict::Reset
    }

    fn forwarded(&self) -> Wrapping<u32> {
        self.received - Wrapping(self.backlog.len() as u32)
    }

    fn no_more_input(&self) -> bool {
        self.host_closed & SHUTDOWN_SEND != 0 || self.guest_closed & SHUTDOWN_RECEIVE != 0
    }

    fn can_read(&self) -> bool {
        self.readable && !self.no_more_input() && !self.credit.is_empty()
    }

    fn untold(&self) -> bool {
        self.host_closed & !self.reported != 0
    }

    /// Whether the guest believes that less than half of our buffer is free, and is wrong.
    fn update_due(&self) -> bool {
        let believed = self.capacity.saturating_sub((self.received - self.advertised).0);
        self.update_wanted || believed < self.capacity / 2 && self.forwarded() != self.advertised
    }

    fn must_ask(&self) -> bool {
        self.readable && !self.no_more_input() && self.credit.must_ask()
    }
}
