//! What is saved, and what the driver reads.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use super::super::Net;
use super::lab::*;
use crate::event_loop::Watcher;
use crate::virtio::Device;
use crate::virtio::mmio::Transport;
use crate::virtio::worker::tests::wiring;

const OTHER: [u8; 6] = [6, 5, 4, 3, 2, 1];

fn net(mac: [u8; 6]) -> Net {
    Net::new(mac).unwrap().0
}

#[test]
fn the_address_is_that_of_one_interface() {
    assert!(Net::new([0; 6]).is_err() && Net::new([1, 0, 0, 0, 0, 1]).is_err() && Net::new([0xff; 6]).is_err());
    assert_eq!(net(MAC).config(), MAC);
}

#[test]
fn a_restored_device_has_the_address_that_was_saved() {
    let state = net(OTHER).save().unwrap();
    let mut device = net(MAC);
    device.restore(&state).unwrap();
    assert_eq!((device.config(), device.save().unwrap()), (OTHER.to_vec(), state));
}

#[test]
fn malformed_states_are_refused() {
    let state = net(OTHER).save().unwrap();
    let mut others: Vec<Vec<u8>> = (0..state.len()).map(|length| state[..length].to_vec()).collect();
    others.push([&state[..], &[0]].concat());
    // Versions before, and the next.
    for version in [1, 2, 4] {
        others.push([&[version, 0, 0, 0], &state[4..]].concat());
    }
    others.push([&state[..4], &[0xff; 6]].concat());
    for other in others {
        let mut device = net(MAC);
        assert!(device.restore(&other).is_err(), "{other:?}");
        assert_eq!(device.config(), MAC);
    }
}

#[test]
fn the_driver_reads_the_restored_address() {
    let read = |transport: &Transport, wiring: &crate::virtio::worker::Wiring| {
        assert!(transport.notified().len() == 2);
        let registers = wiring.interrupt.registers();
        [registers.load(0x100), registers.load(0x104)].map(u32::to_le_bytes).concat()[..6].to_vec()
    };
    let (saved_wiring, ..) = wiring(2);
    let saved = Transport::new(Box::new(net(OTHER)), saved_wiring.clone());
    assert_eq!(read(&saved, &saved_wiring), OTHER);
    let (wiring, ..) = wiring(2);
    let mut transport = Transport::new(Box::new(net(MAC)), wiring.clone());
    assert_eq!(read(&transport, &wiring), MAC);
    transport.restore(&saved.save().unwrap()).unwrap();
    assert_eq!(read(&transport, &wiring), OTHER);
}

/// What is reserved is the driver's again in what is saved, and lost to nobody.
#[test]
fn queues_are_saved_without_what_is_reserved() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(1536, 100);
    for round in 1..4 {
        host.send(&framed(&frame(60))).unwrap();
        lab.run();
        assert_eq!(lab.frames(), [frame(60)]);
        assert_eq!(lab.rings[0].state().next_avail, round, "as many as were used");
        lab.deactivate();
        lab.activate(ALL);
    }
}

#[test]
fn a_tap_that_cannot_be_used_any_more_is_none() {
    let mut lab = Lab::inactive();
    let (tap, _host) = UnixDatagram::pair().unwrap();
    // It is watched by somebody else already, so the device can't.
    lab.watcher.add(tap.as_raw_fd(), 7, 0).unwrap();
    lab.tap_handle.replace(Some(fake_tap(tap.into()).0)).unwrap();
    lab.activate(ALL);
    lab.send(&framed(&frame(60)));
    let host = lab.attach_tap();
    lab.send(&framed(&frame(60)));
    assert!(heard(&host).is_some());
}
