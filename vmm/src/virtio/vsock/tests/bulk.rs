//! Megabytes both ways under small credits and odd buffers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::lab::{Lab, from_guest};
use crate::virtio::vsock::packet::{Header, Op, Ports, SHUTDOWN_BOTH};

const PORTS: Ports = Ports { host: 9, guest: 77 };
const TOTAL: usize = 2 << 20;

/// Bytes that tell their place.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|place| (place.wrapping_mul(2654435761) >> 13) as u8).collect()
}

/// A guest that keeps the rules of credit, with little room.
struct Peer {
    alloc: u32,
    got: usize,
    reported: usize,
    sent: usize,
    host_alloc: u32,
    host_forwarded: u32,
    chunk: usize,
}

impl Peer {
    fn header(&mut self, op: Op, len: usize) -> Header {
        let mut header = from_guest(op, PORTS);
        header.buf_alloc.set(self.alloc);
        header.fwd_cnt.set(self.got as u32);
        header.len.set(len as u32);
        self.reported = self.got;
        header
    }

    fn take(&mut self, header: &Header, data: &[u8]) {
        self.host_alloc = header.buf_alloc.get();
        self.host_forwarded = header.fwd_cnt.get();
        if header.op() == Some(Op::Data) {
            assert!(self.got + data.len() - self.reported <= self.alloc as usize, "the device broke our credit");
            assert_eq!(data, pattern(self.got, data.len()), "at {}", self.got);
            self.got += data.len();
        }
    }

    /// The next packet with data, as much as credit allows.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let free = self.host_alloc as usize - (self.sent - self.host_forwarded as usize);
        let len = free.min(self.chunk).min(TOTAL - self.sent);
        if len == 0 {
            return None;
        }
        let data = pattern(self.sent, len);
        Some((self.header(Op::Data, len), data))
    }
}

fn writer(mut stream: UnixStream) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut at = 0;
        while at < TOTAL {
            let len = (1 + at % 70_000).min(TOTAL - at);
            stream.write_all(&pattern(at, len)).unwrap();
            at += len;
        }
    })
}

fn reader(mut stream: UnixStream, slow: bool) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut at, mut bytes) = (0, vec![0; 50_000]);
        while at < TOTAL {
            let len = stream.read(&mut bytes).unwrap();
            assert!(len > 0, "an early end");
            assert_eq!(bytes[..len], pattern(at, len), "at {at}");
            at += len;
            if slow && at % 7 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    })
}

/// Runs `TOTAL` bytes each way through one connection.
fn exchange(rx_shape: &[u32], tx_shape: &[u32], alloc: u32, chunk: usize) {
    let mut lab = Lab::inactive();
    (lab.rx_shape, lab.tx_shape) = (rx_shape.to_vec(), tx_shape.to_vec());
    lab.post();
    lab.activate();
    let listener = lab.handle.listen(PORTS.host).unwrap();
    let mut peer = Peer { alloc, got: 0, reported: 0, sent: 0, host_alloc: 0, host_forwarded: 0, chunk };
    let request = peer.header(Op::Request, 0);
    lab.send(&request, &[]);
    let stream = listener.accept().unwrap();
    let threads = [writer(stream.try_clone().unwrap()), reader(stream.try_clone().unwrap(), alloc % 2 == 1)];
    let deadline = Instant::now() + Duration::from_secs(60);
    while peer.got < TOTAL || !threads.iter().all(thread::JoinHandle::is_finished) {
        assert!(Instant::now() < deadline, "stuck at {} received, {} sent", peer.got, peer.sent);
        step(&mut lab, &mut peer);
    }
    assert_eq!((peer.got, peer.sent), (TOTAL, TOTAL));
    for thread in threads {
        thread.join().unwrap();
    }
    drop(stream);
    lab.run();
    let (end, _) = lab.inbox.pop_back().unwrap();
    assert_eq!((end.op(), end.flags.get()), (Some(Op::Shutdown), SHUTDOWN_BOTH));
}

fn step(lab: &mut Lab, peer: &mut Peer) {
    lab.turn(1);
    lab.post();
    let mut asked = false;
    for (header, bytes) in std::mem::take(&mut lab.inbox) {
        peer.take(&header, &bytes);
        asked |= header.op() == Some(Op::CreditRequest);
    }
    // The space is known to the device only when told: at half, when asked, or along with data.
    if asked || peer.got - peer.reported > peer.alloc as usize / 2 {
        let header = peer.header(Op::CreditUpdate, 0);
        assert!(lab.offer(&header, &[]));
    }
    while let Some((header, bytes)) = peer.next() {
        if !lab.offer(&header, &bytes) {
            break;
        }
        peer.sent += bytes.len();
    }
}

#[test]
fn plain() {
    exchange(&[4140], &[1 << 17], 256 << 10, 64 << 10);
}

#[test]
fn fragments_of_linux_6_17() {
    exchange(&[4096], &[44, 32 << 10], 64 << 10, 64 << 10);
}

#[test]
fn odd_pieces_and_little_credit() {
    exchange(&[1, 42, 2, 1000, 3], &[13, 30, 5, 7001], 4097, 33_333);
}

#[test]
fn tiny_credit_with_a_slow_host() {
    exchange(&[44, 8000], &[44, 4096], 601, 100_000);
}
