//! From the guest to the tap.

use std::os::unix::net::UnixDatagram;

use super::super::frame::LONGEST;
use super::super::pair::{BATCH, TX};
use super::lab::*;
use crate::virtio::{Device, Event};

#[test]
fn frames_arrive_whole_however_they_are_cut() {
    let (mut lab, host) = Lab::with(ALL);
    let long = framed(&frame(60_000));
    for sizes in [&[][..], &[12], &[1, 1, 9, 2], &[11, 30], &[12, 100, 4096, 30_000]] {
        lab.offer(&long, sizes);
        lab.run();
        assert!(heard(&host).unwrap() == long, "{sizes:?}");
    }
    lab.send(&framed(&frame(14)));
    assert_eq!(heard(&host).unwrap(), framed(&frame(14)));
    assert_eq!((lab.sent, lab.transmitted()), (6, (6, 300_014, 0)));
}

#[test]
fn what_is_no_frame_is_dropped_and_the_next_is_sent() {
    let (mut lab, host) = Lab::with(ALL);
    for bytes in [1, 11, 12, 25, LONGEST + 1, 90_000] {
        lab.send(&frame(bytes));
    }
    assert!(heard(&host).is_none());
    lab.send(&frame(26));
    lab.send(&frame(LONGEST));
    assert!(heard(&host).unwrap() == frame(26) && heard(&host).unwrap() == frame(LONGEST));
    assert_eq!((lab.sent, lab.transmitted().0, lab.transmitted().2), (8, 2, 6));
}

#[test]
fn without_a_tap_all_is_dropped() {
    let mut lab = Lab::inactive();
    lab.activate(ALL);
    lab.send(&framed(&frame(60)));
    assert_eq!((lab.sent, lab.transmitted()), (1, (0, 0, 1)));
}

/// A tap with room for few frames.
fn narrow() -> (Lab, UnixDatagram) {
    let mut lab = Lab::inactive();
    lab.activate(ALL);
    let host = lab.attach_narrow_tap();
    (lab, host)
}

#[test]
fn a_full_tap_makes_the_driver_wait() {
    let (mut lab, host) = narrow();
    for number in 0..100 {
        lab.offer(&framed(&frame(100 + number)), &[]);
    }
    lab.run();
    let room = lab.sent;
    assert!((1..100).contains(&room), "the socket took {room}");
    assert!(lab.watcher.wait(0).is_empty(), "a full tap keeps the worker busy");
    // What the driver adds meanwhile waits too.
    lab.send(&framed(&frame(200)));
    assert_eq!(lab.sent, room);
    for number in 0..101 {
        assert_eq!(heard(&host).unwrap(), framed(&frame(100 + number)), "in order, none lost");
        lab.run();
    }
    assert_eq!((lab.sent, lab.transmitted().0, lab.transmitted().2), (101, 101, 0));
    let calls = lab.watcher.calls;
    lab.send(&framed(&frame(60)));
    assert_eq!(lab.watcher.calls, calls, "nothing is waited for any more");
}

#[test]
fn a_full_tap_does_not_stop_the_other_direction() {
    let (mut lab, host) = narrow();
    lab.post(4096, 20);
    for _ in 0..100 {
        lab.offer(&framed(&frame(60)), &[]);
    }
    lab.run();
    host.send(&framed(&frame(99))).unwrap();
    lab.run();
    assert_eq!(lab.frames(), [frame(99)]);
}

#[test]
fn a_flood_leaves_the_worker_to_others_and_goes_on() {
    let mut lab = Lab::inactive();
    lab.activate(ALL);
    for _ in 0..3 * BATCH + 10 {
        lab.offer(&framed(&frame(60)), &[]);
    }
    lab.call(|device, context| device.handle(Event::Queue(TX), context)).unwrap();
    lab.collect();
    assert_eq!(lab.sent, BATCH);
    lab.run();
    assert_eq!(lab.sent, 3 * BATCH + 10);
}
