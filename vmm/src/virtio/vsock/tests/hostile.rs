//! A guest that breaks every rule: the worst that happens is `RST` or an error of this device.

use std::io::{Read, Write};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

use super::lab::{GUEST_CID, Lab, data, from_guest, shutdown};
use crate::virtio::vsock::muxer::{MAX_CONNECTIONS, MAX_RESETS};
use crate::virtio::vsock::packet::{HEADER_SIZE, Header, Op, Ports};
use crate::virtio::{Error, Event};

const PORTS: Ports = Ports { host: 1024, guest: 5000 };

#[test]
fn beyond_its_credit() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    let mut stream = listener.accept().unwrap();
    let alloc = lab.packet().0.buf_alloc.get() as usize;
    lab.tx_shape = vec![1 << 20];
    // The host reads nothing: sooner or later the device holds all that it promised to.
    let block = vec![0; 50_000];
    for _ in 0..(alloc + (1 << 20)) / block.len() {
        lab.send(&data(PORTS, block.len()), &block);
    }
    assert!(lab.ops().contains(&Op::Reset));
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert!(stream.write(b"x").is_err());
}

#[test]
fn not_for_the_host_or_not_from_the_guest() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    let request = from_guest(Op::Request, PORTS);
    let mut seqpacket = request;
    seqpacket.kind.set(2);
    lab.send(&seqpacket, &[]);
    assert_eq!(lab.packet().0.kind.get(), 2);
    let mut from_another = request;
    from_another.src_cid.set(GUEST_CID + 1);
    lab.send(&from_another, &[]);
    assert_eq!(lab.ops(), []);
    lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: u32::MAX }), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    lab.send(&request, &[]);
    assert_eq!(lab.ops(), [Op::Response]);
    let _stream = listener.accept().unwrap();
    // The same ports again, and a packet of another type on them.
    lab.send(&seqpacket, &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    lab.send(&data(PORTS, 1), b"x");
    assert_eq!(lab.ops(), []);
    lab.send(&request, &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
}

#[test]
fn out_of_turn() {
    let unasked = [Op::Request, Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
    for op in unasked {
        let mut lab = Lab::new();
        lab.send(&from_guest(op, PORTS), &[]);
        assert_eq!(lab.ops(), [Op::Reset], "{op:?} for no connection");
        let mut stream = lab.handle.connect(52).unwrap();
        lab.run();
        let ports = Ports { host: lab.packet().0.src_port.get(), guest: 52 };
        lab.send(&from_guest(op, ports), &[]);
        assert_eq!(lab.ops() == [Op::Reset], op != Op::Response, "{op:?} for a request");
        if op != Op::Response {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    }
}

#[test]
fn length_beyond_the_chain() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    let mut stream = listener.accept().unwrap();
    lab.ops();
    let mut header = data(PORTS, 4);
    lab.send(&header, b"data and more");
    header.len.set(u32::MAX);
    lab.send(&header, b"data");
    assert_eq!(lab.ops(), [Op::Reset]);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"data");
}

#[test]
fn chains_too_short() {
    let mut lab = Lab::new();
    lab.tx.add(&lab.memory, &[(0x80_0000, 43, false)]).unwrap();
    let result = lab.call(|device, context| crate::virtio::Device::handle(device, Event::Queue(1), context));
    assert!(matches!(result, Err(Error::Protocol(_))));
    let mut lab = Lab::inactive();
    lab.rx.add(&lab.memory, &[(0x80_0000, 44, true)]).unwrap();
    lab.activate();
    lab.offer(&from_guest(Op::Data, PORTS), &[]);
    let result = lab.call(|device, context| crate::virtio::Device::handle(device, Event::Queue(1), context));
    assert!(matches!(result, Err(Error::Protocol(_))));
}

#[test]
fn full_table() {
    let mut lab = Lab::new();
    let mut first = None;
    // Few descriptors at a time: what the host closed stays until the guest answers.
    for _ in 0..MAX_CONNECTIONS / 256 {
        let streams: Vec<_> = (0..256).map(|_| lab.handle.connect(1).unwrap()).collect();
        lab.run();
        for (request, _) in std::mem::take(&mut lab.inbox) {
            let ports = Ports { host: request.src_port.get(), guest: 1 };
            first.get_or_insert(ports);
            lab.send(&from_guest(Op::Response, ports), &[]);
        }
        drop(streams);
        lab.run();
        assert_eq!(lab.ops(), [Op::Shutdown; 256]);
    }
    let mut refused = lab.handle.connect(1).unwrap();
    lab.run();
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    let listener = lab.handle.listen(1024).unwrap();
    lab.ops();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    lab.send(&from_guest(Op::Reset, first.unwrap()), &[]);
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    assert_eq!(lab.ops(), [Op::Response]);
    // Full again; who did not answer in time makes room.
    lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: 1 }), &[]);
    assert_eq!(lab.ops(), [Op::Reset]);
    lab.device.muxer().set_linger(Duration::ZERO);
    lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: 1 }), &[]);
    assert_eq!(lab.ops(), [Op::Reset, Op::Response]);
    listener.accept().unwrap();
}

#[test]
fn answers_without_room_are_bounded_and_nothing_is_lost() {
    let mut lab = Lab::inactive();
    lab.activate();
    let mut sent = 0;
    let mut stalled = 0;
    while stalled < 3 {
        if lab.offer(&from_guest(Op::Data, PORTS), &[]) {
            sent += 1;
            stalled = 0;
        } else {
            stalled += 1;
        }
        lab.turn(0);
    }
    assert!((MAX_RESETS..MAX_RESETS + 64).contains(&sent), "{sent}");
    lab.run();
    assert_eq!(lab.ops().len(), sent);
}

#[test]
fn one_bulk_stream_does_not_starve_another() {
    let mut lab = Lab::inactive();
    let listener = lab.handle.listen(1024).unwrap();
    lab.post();
    lab.activate();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: 1 }), &[]);
    let (mut bulk, mut control) = (listener.accept().unwrap(), listener.accept().unwrap());
    lab.ops();
    // Let only few buffers be there, all used by the bulk stream.
    bulk.write_all(&[0; 200_000]).unwrap();
    lab.turn(0);
    lab.ops();
    control.write_all(b"now").unwrap();
    lab.turn(0);
    lab.post();
    lab.turn(0);
    let at = lab.inbox.iter().position(|(_, bytes)| bytes == b"now");
    assert!(at.is_some_and(|at| at < 2), "{at:?}");
}

/// Any 44 bytes, with a liking for those that mean something.
fn header() -> impl Strategy<Value = Header> {
    let odd = any::<[u8; HEADER_SIZE]>().prop_map(|bytes| Header::read_from_bytes(&bytes).unwrap());
    let good = (0u16..9, 0u32..3, 0u32..4, any::<u32>(), 0u32..5000, any::<u32>());
    let good = good.prop_map(|(op, ports, flags, alloc, len, forwarded)| {
        let host = [1024, 0xC000_0000, 7][ports as usize];
        let guest = if ports == 1 { 52 } else { 5000 };
        let mut header = shutdown(Ports { host, guest }, flags);
        header.op.set(op);
        header.len.set(len);
        header.buf_alloc.set(alloc >> (alloc % 32));
        header.fwd_cnt.set(forwarded >> (forwarded % 32));
        header
    });
    prop_oneof![1 => odd, 9 => good]
}

/// One thing that guest, host or monitor does.
#[derive(Clone, Debug)]
enum Step {
    Packet(Box<Header>, usize, Vec<u32>),
    Chain(Vec<(u64, u32, bool)>, bool),
    Connect,
    Write(usize),
    Drop,
    Post,
    Turn,
    Restart,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let shape = prop::collection::vec(prop_oneof![0u32..100, 0u32..5000], 1..4);
    let buffer = (prop_oneof![0u64..0x300_0000, any::<u64>()], prop_oneof![0u32..100, any::<u32>()], any::<bool>());
    prop_oneof![
        20 => (header(), 0usize..6000, shape).prop_map(|(header, len, shape)| Step::Packet(Box::new(header), len, shape)),
        1 => (prop::collection::vec(buffer, 1..4), any::<bool>()).prop_map(|(chain, rx)| Step::Chain(chain, rx)),
        2 => Just(Step::Connect),
        3 => (0usize..100_000).prop_map(Step::Write),
        1 => Just(Step::Drop),
        5 => Just(Step::Post),
        5 => Just(Step::Turn),
        1 => Just(Step::Restart),
        1 => Just(Step::Reset),
    ]
}

/// Does one step; false when the device stopped with an error, as it may when chains are bad.
fn perform(lab: &mut Lab, streams: &mut Vec<std::os::unix::net::UnixStream>, step: &Step) -> bool {
    match step {
        Step::Packet(header, len, shape) => {
            lab.tx_shape.clone_from(shape);
            lab.tx_shape.iter_mut().for_each(|len| *len = (*len).max(1 + *len / 2));
            lab.offer(header, &vec![1; *len]);
        }
        Step::Chain(chain, rx) => {
            // Both rings read and write what they should not; used entries are not looked at any more.
            let queue = if *rx { &mut lab.rx } else { &mut lab.tx };
            queue.add(&lab.memory, chain);
            for index in [0, 1] {
                let event = Event::Queue(index);
                let _ = lab.call(|device, context| crate::virtio::Device::handle(device, event, context));
            }
            return false;
        }
        Step::Connect => streams.push(lab.handle.connect(52).unwrap()),
        Step::Write(len) => streams.iter_mut().for_each(|stream| {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(&vec![2; *len]);
        }),
        Step::Drop => drop(streams.pop()),
        Step::Post => lab.post(),
        Step::Turn => drop(lab.turn(0)),
        Step::Restart => {
            lab.stop();
            lab.activate();
        }
        Step::Reset => {
            lab.stop();
            crate::virtio::Device::reset(&mut lab.device);
            lab.activate();
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, nothing panics or spins, and a device that did not fail still serves.
    #[test]
    fn anything(steps in prop::collection::vec(step(), 1..80)) {
        let mut lab = Lab::new();
        let listener = lab.handle.listen(1024).unwrap();
        let mut streams = Vec::new();
        for step in &steps {
            if !perform(&mut lab, &mut streams, step) {
                return Ok(());
            }
        }
        lab.run();
        lab.inbox.clear();
        lab.tx_shape = vec![100];
        lab.send(&from_guest(Op::Request, Ports { host: 1024, guest: 99_999 }), &[]);
        prop_assert_eq!(lab.ops(), [Op::Response]);
        drop(listener);
    }

    /// Chains of random memory.
    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1u32..200) {
        let mut lab = Lab::new();
        lab.memory.write_slice(&bytes, GuestAddress(0x80_0000)).unwrap();
        let len = bytes.len() as u32;
        let first = cut.min(len);
        let buffers = [(0x80_0000, first, false), (0x80_0000 + u64::from(first), len - first, false)];
        lab.tx.add(&lab.memory, &buffers).unwrap();
        let result = lab.call(|device, context| crate::virtio::Device::handle(device, Event::Queue(1), context));
        prop_assert_eq!(result.is_err(), bytes.len() < HEADER_SIZE);
    }
}
