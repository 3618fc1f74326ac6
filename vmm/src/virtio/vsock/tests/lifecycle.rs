//! Use before activation, stop and start in the midst of traffic, reset by the driver, snapshots; and
//! what all that costs.

use std::io::{Read, Write};

use super::lab::{GUEST_CID, Lab, data, from_guest};
use crate::virtio::vsock::new;
use crate::virtio::vsock::packet::{Op, Ports};
use crate::virtio::{Device, Error};

const PORTS: Ports = Ports { host: 1024, guest: 5000 };

#[test]
fn handle_before_activation() {
    let mut lab = Lab::inactive();
    let listener = lab.handle.listen(1024).unwrap();
    let mut streams: Vec<_> = (0..20).map(|port| lab.handle.connect(port).unwrap()).collect();
    for stream in &mut streams {
        stream.write_all(b"early").unwrap();
    }
    lab.offer(&from_guest(Op::Request, PORTS), &[]);
    // The driver is ready before it has offered buffers.
    lab.activate();
    lab.run();
    let mut ops = Vec::new();
    for (header, _) in std::mem::take(&mut lab.inbox) {
        ops.extend(header.op());
        let ports = Ports { host: header.src_port.get(), guest: header.dst_port.get() };
        if header.op() == Some(Op::Request) {
            lab.send(&from_guest(Op::Response, ports), &[]);
        }
    }
    assert_eq!(ops.iter().filter(|op| **op == Op::Request).count(), 20);
    assert!(ops.contains(&Op::Response));
    assert_eq!(lab.inbox.iter().filter(|(_, bytes)| bytes == b"early").count(), 20);
    listener.accept().unwrap();
}

#[test]
fn stop_and_start_in_the_midst_of_traffic() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    let mut stream = listener.accept().unwrap();
    lab.ops();
    let block: Vec<u8> = (0..60 << 10).map(|at| (at % 251) as u8).collect();
    for _ in 0..7 {
        lab.send(&data(PORTS, block.len()), &block);
    }
    stream.write_all(b"before").unwrap();
    lab.stop();
    stream.write_all(b" and after").unwrap();
    lab.activate();
    lab.run();
    let received: Vec<u8> = lab.inbox.drain(..).flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(received, b"before and after");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 7 * block.len()];
        stream.read_exact(&mut all).unwrap();
        all.chunks(block.len()).all(|chunk| chunk == block)
    });
    while !reader.is_finished() {
        lab.turn(1);
        lab.stop();
        lab.activate();
    }
    assert!(reader.join().unwrap());
}

#[test]
fn reset_by_the_driver_ends_streams_but_no_wish() {
    let mut lab = Lab::inactive();
    let mut pending = lab.handle.connect(9).unwrap();
    lab.activate();
    lab.stop();
    lab.device.reset();
    lab.post();
    lab.activate();
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 9 };
    lab.send(&from_guest(Op::Response, ports), &[]);
    pending.write_all(b"unread").unwrap();
    lab.stop();
    lab.device.reset();
    assert_eq!(pending.read(&mut [0]).unwrap(), 0);
    lab.activate();
    lab.run();
    lab.send(&data(ports, 1), b"x");
    assert_eq!(lab.ops(), [Op::Reset]);
}

#[test]
fn restored_device_resets_what_the_guest_still_holds() {
    let mut lab = Lab::new();
    let _stream = lab.handle.connect(9).unwrap();
    lab.run();
    let ports = Ports { host: lab.packet().0.src_port.get(), guest: 9 };
    lab.send(&from_guest(Op::Response, ports), &[]);
    lab.stop();
    let state = lab.device.save().unwrap();

    let mut lab = Lab::inactive();
    lab.device.restore(&state).unwrap();
    let _stream = lab.handle.connect(9).unwrap();
    lab.post();
    lab.activate();
    lab.run();
    let (reset, _) = lab.inbox.pop_front().unwrap();
    assert_eq!((reset.op(), reset.src_port.get(), reset.dst_port.get()), (Some(Op::Reset), ports.host, 9));
    let (request, _) = lab.packet();
    assert_eq!(request.op(), Some(Op::Request));
    assert_ne!(request.src_port.get(), ports.host);
}

#[test]
fn malformed_state() {
    let (device, _handle) = new(GUEST_CID).unwrap();
    let state = device.save().unwrap();
    for len in 0..state.len() {
        assert!(new(GUEST_CID).unwrap().0.restore(&state[..len]).is_err());
    }
    assert!(new(GUEST_CID).unwrap().0.restore(&[&state[..], &[0; 4]].concat()).is_err());
    assert!(new(GUEST_CID).unwrap().0.restore(&[&state[..], &[0; 8 * 10_000]].concat()).is_err());
    assert!(matches!(new(GUEST_CID + 1).unwrap().0.restore(&state), Err(Error::Protocol(_))));
    assert!(new(2).is_err() && new(u64::from(u32::MAX)).is_err());
}

#[test]
fn costs_of_a_request_and_its_answer() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    let before = lab.watcher.calls;
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    let mut stream = listener.accept().unwrap();
    assert_eq!(lab.watcher.calls - before, 1, "epoll_ctl for a connection");
    let before = lab.watcher.calls;
    let _ = lab.interrupts.read();
    for _ in 0..100 {
        lab.send(&data(PORTS, 4), b"ping");
        stream.write_all(b"pong").unwrap();
        lab.run();
    }
    assert_eq!(lab.watcher.calls - before, 0, "epoll_ctl for an exchange");
    assert_eq!(lab.interrupts.read().unwrap(), 200, "interrupts: one as the packet is taken, one for the answer");
    drop(stream);
    lab.run();
    assert_eq!(lab.watcher.calls - before, 1, "epoll_ctl for the end");
}

#[test]
fn a_full_burst_is_one_interrupt() {
    let mut lab = Lab::new();
    let listener = lab.handle.listen(1024).unwrap();
    lab.send(&from_guest(Op::Request, PORTS), &[]);
    let mut stream = listener.accept().unwrap();
    lab.ops();
    let _ = lab.interrupts.read();
    stream.write_all(&[1; 100 << 10]).unwrap();
    assert!(lab.turn(0));
    assert_eq!(lab.interrupts.read().unwrap(), 1);
    assert!(lab.ops().len() > 20);
}
