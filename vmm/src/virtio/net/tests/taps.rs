//! Taps that come and go.

use std::os::unix::net::UnixDatagram;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::super::Net;
use super::super::pair::TX;
use super::super::tap::offloads;
use super::lab::*;
use crate::virtio::Device;

const CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
const TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
const ECN: u64 = 1 << VIRTIO_NET_F_GUEST_ECN;

/// Whether nothing has the other end any more.
fn is_closed(host: &UnixDatagram) -> bool {
    host.send(&framed(&frame(60))).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

#[test]
fn a_tap_that_was_there_first_is_used_at_activation() {
    let mut lab = Lab::inactive();
    let (tap, host) = UnixDatagram::pair().unwrap();
    let (tap, offloads_noted) = fake_tap(tap.into());
    lab.tap_handle.replace(Some(tap)).unwrap();
    assert_eq!(noted(&offloads_noted), u32::MAX, "told before the features were known");
    host.send(&framed(&frame(60))).unwrap();
    lab.post(4096, 20);
    lab.activate(CSUM | TSO4);
    assert_eq!(noted(&offloads_noted), libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    lab.run();
    // Merging was not negotiated here.
    assert_eq!(lab.frames(), [frame(60)]);
    lab.send(&framed(&frame(70)));
    assert_eq!(heard(&host).unwrap(), framed(&frame(70)));
}

#[test]
fn an_inactive_device_takes_the_newest_and_closes_the_others() {
    let mut lab = Lab::inactive();
    let (first, first_host) = UnixDatagram::pair().unwrap();
    let (second, second_host) = UnixDatagram::pair().unwrap();
    lab.tap_handle.replace(Some(fake_tap(first.into()).0)).unwrap();
    lab.tap_handle.replace(Some(fake_tap(second.into()).0)).unwrap();
    assert!(is_closed(&first_host) && !is_closed(&second_host));
    lab.tap_handle.detach().unwrap();
    assert!(is_closed(&second_host));
    lab.activate(ALL);
    lab.send(&framed(&frame(60)));
    assert_eq!(lab.transmitted(), (0, 0, 1));
}

#[test]
fn a_tap_takes_the_place_of_another_while_in_use() {
    let (mut lab, _) = Lab::with(ALL);
    let first = lab.attach_narrow_tap();
    lab.post(4096, 20);
    // Whatever state the first was in: full, and waiting for the guest.
    for _ in 0..30 {
        lab.offer(&framed(&frame(60)), &[]);
    }
    lab.run();
    let stuck = lab.sent;
    assert!(stuck < 30);
    let (tap, second) = UnixDatagram::pair().unwrap();
    second.set_nonblocking(true).unwrap();
    let (tap, offloads_noted) = fake_tap(tap.into());
    lab.change(Some(tap)).unwrap();
    assert!(is_closed(&first));
    assert_eq!(noted(&offloads_noted), 0b1111, "all that a host has, as all was negotiated");
    for _ in stuck..30 {
        assert_eq!(heard(&second).unwrap(), framed(&frame(60)));
        lab.run();
    }
    second.send(&framed(&frame(61))).unwrap();
    lab.run();
    assert_eq!(lab.frames(), [frame(61)]);
}

#[test]
fn what_waited_for_a_tap_that_is_pulled_out_is_dropped() {
    let (mut lab, _) = Lab::with(ALL);
    let host = lab.attach_narrow_tap();
    for _ in 0..100 {
        lab.offer(&framed(&frame(60)), &[]);
    }
    lab.run();
    let arrived = lab.sent as u64;
    lab.change(None).unwrap();
    lab.run();
    assert_eq!((lab.sent, lab.transmitted()), (100, (arrived, arrived * 60, 100 - arrived)));
    assert!(is_closed(&host));
    // Once more does no harm.
    lab.change(None).unwrap();
}

#[test]
fn the_tap_stays_when_the_device_stops_and_starts() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(4096, 20);
    for round in 0..3 {
        lab.deactivate();
        host.send(&framed(&frame(60 + round))).unwrap();
        lab.offer(&framed(&frame(80 + round)), &[]);
        lab.device.reset();
        lab.activate(ALL);
        lab.run();
        assert_eq!(lab.frames(), [frame(60 + round)]);
        assert_eq!(heard(&host).unwrap(), framed(&frame(80 + round)));
        assert!(heard(&host).is_none());
    }
    lab.deactivate();
    lab.tap_handle.detach().unwrap();
    assert!(is_closed(&host));
}

/// A request that the worker had no time for before it ended is carried out all the same.
#[test]
fn a_request_outlives_the_worker() {
    let (mut lab, first) = Lab::with(ALL);
    let (tap, second) = UnixDatagram::pair().unwrap();
    let tap_handle = lab.tap_handle.clone();
    let asking = std::thread::spawn(move || tap_handle.replace(Some(fake_tap(tap.into()).0)));
    while lab.watcher.wait(0).is_empty() {
        std::thread::yield_now();
    }
    lab.deactivate();
    asking.join().unwrap().unwrap();
    assert!(is_closed(&first));
    lab.activate(ALL);
    lab.send(&framed(&frame(60)));
    assert_eq!(heard(&second).unwrap(), framed(&frame(60)));
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let (device, tap_handle) = Net::new(MAC).unwrap();
    drop(device);
    assert!(tap_handle.detach().unwrap_err().to_string().contains("gone"));
    // Also for whoever waits just then.
    let (lab, _host) = Lab::with(ALL);
    let tap_handle = lab.tap_handle.clone();
    let asking = std::thread::spawn(move || tap_handle.detach());
    while lab.watcher.wait(0).is_empty() {
        std::thread::yield_now();
    }
    drop(lab);
    assert!(asking.join().unwrap().unwrap_err().to_string().contains("gone"));
}

#[test]
fn only_taps_are_taken() {
    let (_device, tap_handle) = Net::new(MAC).unwrap();
    let (socket, _) = UnixDatagram::pair().unwrap();
    assert!(tap_handle.attach(socket.into()).is_err());
    let closed = std::fs::File::open("/dev/net/tun").unwrap();
    assert!(tap_handle.attach(closed.into()).is_err(), "a tap without an interface");
}

#[test]
fn the_host_leaves_to_the_guest_what_its_driver_took() {
    use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6};
    assert_eq!(offloads(0), 0);
    assert_eq!(offloads(CSUM), TUN_F_CSUM);
    assert_eq!(offloads(CSUM | TSO4), TUN_F_CSUM | TUN_F_TSO4);
    assert_eq!(offloads(CSUM | TSO6 | ECN), TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN);
    assert_eq!(offloads(u64::MAX), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN);
    // What a driver must not take without the other.
    assert_eq!(offloads(TSO4 | TSO6 | ECN), 0);
    assert_eq!(offloads(CSUM | ECN), TUN_F_CSUM);
    assert_eq!(offloads(!CSUM), 0);
}

#[test]
fn the_transmit_queue_is_the_second() {
    let (mut lab, host) = Lab::with(ALL);
    lab.offer(&framed(&frame(60)), &[]);
    lab.call(|device, context| device.handle(crate::virtio::Event::Queue(1 - TX), context)).unwrap();
    assert!(heard(&host).is_none());
    lab.run();
    assert!(heard(&host).is_some());
}
