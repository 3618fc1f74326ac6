//! Opening, accepting, refusing; half-close and close.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::lab::{Lab, data, from_guest, shutdown};
use crate::virtio::vsock::packet::{Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const HOST: Ports = Ports { host: 1024, guest: 5000 };

/// A connection that the host opened.
fn connected(lab: &mut Lab) -> (UnixStream, Ports) {
    let stream = lab.handle.connect(52).unwrap();
    lab.run();
    let (request, _) = lab.packet();
    assert_eq!(request.op(), Some(Op::Request));
    let ports = Ports { host: request.src_port.get(), guest: request.dst_port.get() };
    assert_eq!(ports.guest, 52);
    lab.send(&from_guest(Op::Response, ports), &[]);
    assert_eq!(lab.ops(), []);
    (stream, ports)
}

/// A connection that the guest opened.
fn accepted(lab: &mut Lab) -> UnixStream {
    let listener = lab.handle.listen(HOST.host).unwrap();
    lab.send(&from_guest(Op::Request, HOST), &[]);
    assert_eq!(lab.ops(), [Op::Response]);
    listener.accept().unwrap()
}

fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn host_connects_and_both_talk() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    stream.write_all(b"ping").unwrap();
    lab.run();
    let (header, bytes) = lab.packet();
    assert_eq!((header.op(), bytes.as_slice()), (Some(Op::Data), b"ping".as_slice()));
    lab.send(&data(ports, 4), b"pong");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
    // Nothing was said that need not be.
    assert_eq!(lab.ops(), []);
}

#[test]
fn what_was_written_early_arrives_even_if_the_host_closed() {
    let mut lab = Lab::new();
    let mut stream = lab.handle.connect(52).unwrap();
    stream.write_all(b"early").unwrap();
    drop(stream);
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 52 };
    lab.send(&from_guest(Op::Response, ports), &[]);
    assert_eq!(lab.inbox.pop_front().unwrap().1, b"early");
    let (end, _) = lab.packet();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_BOTH));
}

#[test]
fn a_stream_of_the_hosts_is_joined_and_let_go() {
    let mut lab = Lab::new();
    let (ours, mut server) = UnixStream::pair().unwrap();
    let ours = Arc::new(ours);
    let held = Arc::downgrade(&ours);
    lab.handle.join(52, ours, b"id").unwrap();
    server.write_all(b"first").unwrap();
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 52 };
    lab.send(&from_guest(Op::Response, ports), &[]);
    let said: Vec<u8> = std::iter::from_fn(|| lab.inbox.pop_front()).flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(said, b"idfirst");
    // The guest's half-close is the server's end of file; the other direction goes on.
    lab.send(&data(ports, 4), b"text");
    lab.send(&shutdown(ports, SHUTDOWN_SEND), &[]);
    assert_eq!(rest(&mut server), b"text");
    server.write_all(b"last").unwrap();
    lab.run();
    assert_eq!(lab.packet().1, b"last");
    assert!(held.upgrade().is_some());
    lab.send(&from_guest(Op::Reset, ports), &[]);
    assert!(held.upgrade().is_none());
    assert_eq!(server.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_joined_stream_can_be_ended_from_outside() {
    let mut lab = Lab::new();
    let (ours, mut server) = UnixStream::pair().unwrap();
    let ours = Arc::new(ours);
    let held = Arc::downgrade(&ours);
    lab.handle.join(52, ours, b"").unwrap();
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 52 };
    lab.send(&from_guest(Op::Response, ports), &[]);
    held.upgrade().unwrap().shutdown(Shutdown::Both).unwrap();
    lab.run();
    let (end, _) = lab.packet();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_BOTH));
    assert_eq!(rest(&mut server), b"");
    assert!(held.upgrade().is_none());
}

#[test]
fn refusal_is_an_end_and_not_a_reset() {
    let mut lab = Lab::new();
    let mut stream = lab.handle.connect(52).unwrap();
    stream.write_all(b"unheard").unwrap();
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 52 };
    lab.send(&from_guest(Op::Reset, ports), &[]);
    assert_eq!(rest(&mut stream), b"");
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(lab.ops(), []);
}

#[test]
fn guest_connects_and_both_talk() {
    let mut lab = Lab::new();
    let mut stream = accepted(&mut lab);
    lab.send(&data(HOST, 2), b"hi");
    stream.write_all(b"ho").unwrap();
    lab.run();
    let (header, bytes) = lab.packet();
    assert_eq!((header.ports().guest, header.fwd_cnt.get(), bytes), (HOST.host, 2, b"ho".to_vec()));
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hi");
}

#[test]
fn nobody_listens() {
    let mut lab = Lab::new();
    drop(lab.handle.listen(HOST.host).unwrap());
    lab.send(&from_guest(Op::Request, HOST), &[]);
    let (reset, _) = lab.packet();
    assert_eq!((reset.op(), reset.src_port.get(), reset.dst_port.get()), (Some(Op::Reset), 1024, 5000));
}

#[test]
fn ports_to_listen_on() {
    let lab = Lab::new();
    let listener = lab.handle.listen(7).unwrap();
    assert_eq!(lab.handle.listen(7).err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
    drop(listener);
    lab.handle.listen(7).unwrap();
    assert_eq!(lab.handle.listen(u32::MAX).err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
    assert_eq!(lab.handle.connect(u32::MAX).err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
}

#[test]
fn full_listener_refuses() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    for guest in 0..129 {
        lab.send(&from_guest(Op::Request, Ports { host: 1024, guest }), &[]);
        assert_eq!(lab.ops(), [if guest < 128 { Op::Response } else { Op::Reset }]);
    }
    let streams: Vec<_> = (0..128).map(|_| listener.accept().unwrap()).collect();
    lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: 129 }), &[]);
    assert_eq!(lab.ops(), [Op::Response]);
    drop(streams);
    lab.run();
    assert_eq!(lab.ops(), [Op::Shutdown; 128]);
}

#[test]
fn listener_ends_with_the_device() {
    let lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    let thread = std::thread::spawn(move || [(); 2].map(|()| listener.accept().unwrap_err().kind()));
    let handle = lab.handle.clone();
    drop(lab);
    assert_eq!(thread.join().unwrap(), [ErrorKind::NotConnected; 2]);
    assert_eq!(handle.connect(1).unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn host_stops_sending_and_goes_on_receiving() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    lab.run();
    assert_eq!(lab.inbox.pop_front().unwrap().1, b"last");
    let (end, _) = lab.packet();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_SEND));
    lab.send(&data(ports, 3), b"yes");
    lab.send(&shutdown(ports, SHUTDOWN_SEND), &[]);
    assert_eq!(rest(&mut stream), b"yes");
    drop(stream);
    lab.run();
    assert_eq!(lab.packet().0.flags.get(), SHUTDOWN_BOTH);
    lab.send(&from_guest(Op::Reset, ports), &[]);
    assert_eq!(lab.ops(), []);
}

#[test]
fn guest_stops_sending_and_goes_on_receiving() {
    let mut lab = Lab::new();
    let mut stream = accepted(&mut lab);
    lab.send(&data(HOST, 4), b"last");
    lab.send(&shutdown(HOST, SHUTDOWN_SEND), &[]);
    assert_eq!(rest(&mut stream), b"last");
    stream.write_all(b"yes").unwrap();
    lab.run();
    assert_eq!(lab.packet().1, b"yes");
    // Data after the guest said that there is none.
    lab.send(&data(HOST, 1), b"!");
    assert_eq!(lab.ops(), [Op::Reset]);
}

#[test]
fn host_stops_receiving_and_goes_on_sending() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    stream.shutdown(Shutdown::Read).unwrap();
    lab.send(&data(ports, 3), b"no?");
    let (end, _) = lab.packet();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_RECEIVE));
    stream.write_all(b"still here").unwrap();
    lab.run();
    assert_eq!(lab.packet().1, b"still here");
}

#[test]
fn guest_stops_receiving_and_goes_on_sending() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    lab.send(&shutdown(ports, SHUTDOWN_RECEIVE), &[]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    lab.send(&data(ports, 3), b"yes");
    lab.send(&shutdown(ports, SHUTDOWN_SEND), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    assert_eq!(rest(&mut stream), b"yes");
}

#[test]
fn guest_closes() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    stream.write_all(b"unread").unwrap();
    lab.offer(&data(ports, 3), b"bye");
    lab.offer(&shutdown(ports, SHUTDOWN_BOTH), &[]);
    lab.run();
    assert_eq!(lab.ops().last(), Some(&Op::Reset));
    assert_eq!(rest(&mut stream), b"bye");
    lab.send(&data(ports, 1), b"x");
    assert_eq!(lab.ops(), [Op::Reset]);
}

#[test]
fn guest_resets() {
    let mut lab = Lab::new();
    let (mut stream, ports) = connected(&mut lab);
    lab.send(&data(ports, 3), b"bye");
    lab.send(&from_guest(Op::Reset, ports), &[]);
    assert_eq!(lab.ops(), []);
    assert_eq!(rest(&mut stream), b"bye");
}

#[test]
fn what_the_guest_sent_outlives_it() {
    let mut lab = Lab::new();
    let mut stream = accepted(&mut lab);
    let sent = vec![7u8; 60 << 10];
    // More than a socket buffers: the rest waits in the device.
    for _ in 0..7 {
        lab.send(&data(HOST, sent.len()), &sent);
    }
    lab.ops();
    lab.send(&shutdown(HOST, SHUTDOWN_BOTH), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    lab.send(&from_guest(Op::Reset, HOST), &[]);
    lab.send(&from_guest(Op::Request, HOST), &[]);
    assert_eq!(lab.ops(), [Op::Reset], "the ports are taken until the host has read");
    let reader = std::thread::spawn(move || rest(&mut stream).len());
    while !reader.is_finished() {
        lab.turn(1);
    }
    assert_eq!(reader.join().unwrap(), 7 * sent.len());
    let _stream = accepted(&mut lab);
}

#[test]
fn host_closes_with_the_guests_data_unread() {
    let mut lab = Lab::new();
    let stream = accepted(&mut lab);
    for _ in 0..7 {
        lab.send(&data(HOST, 60 << 10), &[7u8; 60 << 10]);
    }
    lab.ops();
    drop(stream);
    lab.run();
    let (end, _) = lab.packet();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_BOTH));
    // What crossed it is not answered; then the guest's own answer ends it.
    lab.send(&data(HOST, 1), b"x");
    lab.send(&from_guest(Op::CreditUpdate, HOST), &[]);
    assert_eq!(lab.ops(), []);
    lab.send(&from_guest(Op::Reset, HOST), &[]);
    lab.send(&from_guest(Op::CreditUpdate, HOST), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
}
