//! The state machine alone, over a stream in memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::time::Duration;

use super::lab::{GUEST_CID, Lab, data, from_guest, shutdown};
use crate::virtio::queue::{Buffers, Outcome, Ring};
use crate::virtio::vsock::connection::{Connection, Verdict};
use crate::virtio::vsock::packet::{Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use crate::virtio::vsock::stream::Stream;

const PORTS: Ports = Ports { host: 1, guest: 2 };
const CAPACITY: u32 = 1000;

/// A stream that takes `room` bytes and has `input`, then its end or, unless closed, nothing yet.
#[derive(Default)]
struct Fake {
    room: usize,
    output: Vec<u8>,
    input: VecDeque<u8>,
    closed: bool,
    broken: bool,
    ended: Vec<Shutdown>,
}

impl Fake {
    fn take(&mut self, len: usize) -> io::Result<usize> {
        if self.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let len = len.min(self.room);
        self.room -= len;
        if len == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(len) }
    }
}

impl Stream for Fake {
    fn read(&mut self, into: &mut Buffers, limit: usize) -> io::Result<usize> {
        let bytes: Vec<u8> = self.input.drain(..limit.min(self.input.len())).collect();
        match bytes.len() {
            0 if !self.closed => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(into.write(&bytes)),
        }
    }

    fn write(&mut self, from: &mut Buffers) -> io::Result<usize> {
        let mut bytes = vec![0; self.take(from.len())?];
        from.read(&mut bytes);
        self.output.extend(&bytes);
        Ok(bytes.len())
    }

    fn write_pieces(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize> {
        let bytes = pieces.concat();
        let len = self.take(bytes.len())?;
        self.output.extend(&bytes[..len]);
        Ok(len)
    }

    fn shutdown(&mut self, how: Shutdown) {
        self.ended.push(how);
    }
}

/// A connection, and rings to make buffers with.
struct Machine {
    connection: Connection<Fake>,
    lab: Lab,
}

impl Machine {
    fn open() -> Self {
        let request = from_guest(Op::Request, PORTS);
        let fake = Fake { room: 100, ..Fake::default() };
        let mut machine = Self { connection: Connection::accept(fake, CAPACITY, &request), lab: Lab::inactive() };
        assert_eq!(machine.output(100).map(|(op, _)| op), Some(Op::Response));
        machine
    }

    fn packet(&mut self, header: &Header, bytes: &[u8]) -> Verdict {
        assert!(self.lab.offer(header, bytes));
        let mut verdict = None;
        let connection = &mut self.connection;
        let mut serve = |ring: &mut Ring, lab: &vm_memory::GuestMemoryMmap| {
            ring.serve(lab, |chain| {
                let header = Header::read(&mut chain.readable).unwrap();
                verdict = Some(connection.on_packet(&header, &mut chain.readable));
                Ok(Outcome::Used(0))
            })
        };
        self.lab.call(|_, context| serve(&mut context.rings[1], context.memory)).unwrap();
        verdict.unwrap()
    }

    /// The next packet, given room for `room` bytes.
    fn output(&mut self, room: usize) -> Option<(Op, Header)> {
        self.lab.post();
        let mut packet = None;
        let connection = &mut self.connection;
        let header = Header::to_guest(GUEST_CID, PORTS, Op::Data);
        let mut serve = |ring: &mut Ring, lab: &vm_memory::GuestMemoryMmap| {
            ring.serve(lab, |chain| {
                chain.writable.split_off(room);
                packet = connection.output(header, &mut chain.writable);
                Ok(Outcome::Later)
            })
        };
        self.lab.call(|_, context| serve(&mut context.rings[0], context.memory)).unwrap();
        packet.map(|header| (header.op().unwrap(), header))
    }
}

#[test]
fn credit_is_told_at_half_and_with_data_but_no_more() {
    let mut machine = Machine::open();
    assert_eq!(machine.packet(&data(PORTS, 600), &[1; 600]), Verdict::Keep);
    // 100 taken, 500 wait; the guest believes in 400.
    let (op, header) = machine.output(100).unwrap();
    assert_eq!((op, header.fwd_cnt.get(), header.buf_alloc.get()), (Op::CreditUpdate, 100, CAPACITY));
    assert!(!machine.connection.has_output());
    assert_eq!(machine.connection.interest(), Some((true, true)));
    assert_eq!(machine.packet(&from_guest(Op::CreditRequest, PORTS), &[]), Verdict::Keep);
    assert_eq!(machine.output(100).map(|(op, _)| op), Some(Op::CreditUpdate));
    assert_eq!(machine.output(100).map(|(op, _)| op), None);
}

#[test]
fn every_byte_of_credit_and_not_one_more() {
    let mut machine = Machine::open();
    assert_eq!(machine.packet(&data(PORTS, 1100), &[1; 1100]), Verdict::Reset);
    let mut machine = Machine::open();
    assert_eq!(machine.packet(&data(PORTS, 100), &[1; 100]), Verdict::Keep);
    assert_eq!(machine.packet(&data(PORTS, 1000), &[1; 1000]), Verdict::Keep);
    assert_eq!(machine.packet(&data(PORTS, 1), &[1]), Verdict::Reset);
}

#[test]
fn the_end_waits_for_what_was_sent_before() {
    let mut machine = Machine::open();
    machine.packet(&data(PORTS, 300), &[1; 300]);
    assert_eq!(machine.packet(&shutdown(PORTS, SHUTDOWN_SEND), &[]), Verdict::Keep);
    assert_eq!(machine.connection.stream().unwrap().ended, []);
    assert_eq!(machine.packet(&shutdown(PORTS, SHUTDOWN_BOTH), &[]), Verdict::Reset);
    machine.connection.end();
    assert!(!machine.connection.is_over());
    assert_eq!(machine.connection.interest(), Some((false, true)));
    machine.connection = refill(machine.connection, 200);
    machine.connection.on_stream(false, true, false);
    assert!(machine.connection.is_over());
    assert_eq!(machine.connection.stream().unwrap().output, [1; 300]);
}

/// The same connection with more room in its stream.
fn refill(connection: Connection<Fake>, room: usize) -> Connection<Fake> {
    let mut connection = connection;
    connection.stream_mut().unwrap().room = room;
    connection
}

#[test]
fn reads_wait_for_credit() {
    let mut machine = Machine::open();
    let mut credit = from_guest(Op::CreditUpdate, PORTS);
    credit.buf_alloc.set(10);
    machine.packet(&credit, &[]);
    machine.connection.stream_mut().unwrap().input = (0..25).collect();
    machine.connection.on_stream(true, false, false);
    assert_eq!(machine.output(100).map(|(op, header)| (op, header.len.get())), Some((Op::Data, 10)));
    assert_eq!(machine.output(100).map(|(op, _)| op), Some(Op::CreditRequest));
    assert_eq!(machine.output(100).map(|(op, _)| op), None);
    assert_eq!(machine.connection.interest(), Some((false, false)));
    // An answer that says nothing new is no reason to ask again.
    machine.packet(&credit, &[]);
    assert!(!machine.connection.has_output());
    credit.fwd_cnt.set(10);
    machine.packet(&credit, &[]);
    assert_eq!(machine.output(7).map(|(op, header)| (op, header.len.get())), Some((Op::Data, 7)));
    credit.fwd_cnt.set(25);
    credit.buf_alloc.set(1000);
    machine.packet(&credit, &[]);
    // A guest that claims to have taken more than it got has no credit.
    assert_eq!(machine.output(100).map(|(op, _)| op), Some(Op::CreditRequest));
    credit.fwd_cnt.set(17);
    machine.packet(&credit, &[]);
    assert_eq!(machine.output(100).map(|(op, header)| (op, header.len.get())), Some((Op::Data, 8)));
    assert_eq!(machine.connection.interest(), Some((true, false)));
}

#[test]
fn a_reader_that_is_gone_counts_as_one_that_read() {
    let mut machine = Machine::open();
    machine.packet(&data(PORTS, 300), &[1; 300]);
    machine.connection.stream_mut().unwrap().broken = true;
    machine.connection.on_stream(false, true, false);
    let (op, header) = machine.output(100).unwrap();
    assert_eq!((op, header.fwd_cnt.get(), header.flags.get()), (Op::Shutdown, 300, 1));
    assert_eq!(machine.packet(&data(PORTS, 900), &[1; 900]), Verdict::Keep);
    machine.connection.stream_mut().unwrap().closed = true;
    machine.connection.on_stream(true, false, true);
    let (op, header) = machine.output(100).unwrap();
    assert_eq!((op, header.flags.get()), (Op::Shutdown, SHUTDOWN_BOTH));
    assert_eq!(machine.connection.interest(), None);
    assert!(!machine.connection.is_expired(Duration::from_secs(10)));
}

#[test]
fn false_alarm() {
    let mut machine = Machine::open();
    machine.connection.on_stream(false, false, true);
    assert_eq!(machine.connection.interest(), None);
    assert_eq!(machine.output(100).map(|(op, _)| op), None);
    assert_eq!(machine.connection.interest(), Some((true, false)));
}
