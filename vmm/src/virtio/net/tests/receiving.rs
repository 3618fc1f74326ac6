//! From the tap to the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_HDR_F_DATA_VALID};
use vm_memory::{Bytes, GuestAddress};

use super::super::frame::LONGEST;
use super::super::pair::{BATCH, RX, TAP};
use super::lab::*;
use crate::virtio::{Device, Event};

#[test]
fn a_small_frame_takes_one_buffer_and_one_interrupt() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(1536, 200);
    host.send(&framed(&frame(60))).unwrap();
    host.send(&framed(&frame(61))).unwrap();
    lab.run();
    assert_eq!(lab.inbox, [(num_buffers(&framed(&frame(60)), 1), 1), (num_buffers(&framed(&frame(61)), 1), 1)]);
    assert_eq!(lab.interrupted(), 1);
    assert_eq!(lab.received(), (2, 121, 0));
}

fn num_buffers(bytes: &[u8], chains: u16) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[10..12].copy_from_slice(&chains.to_le_bytes());
    bytes
}

#[test]
fn a_long_frame_is_in_many_small_buffers() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(1536, 100);
    let long = framed(&frame(60_000));
    host.send(&long).unwrap();
    host.send(&framed(&frame(100))).unwrap();
    lab.run();
    let chains = 60_012u16.div_ceil(1536);
    assert_eq!(lab.inbox, [(num_buffers(&long, chains), chains), (num_buffers(&framed(&frame(100)), 1), 1)]);
    assert_eq!(lab.received(), (2, 60_100, 0));
}

#[test]
fn a_frame_that_just_fills_its_buffers_takes_no_more() {
    let (mut lab, host) = Lab::with(ALL);
    for bytes in [1535, 1536, 1537, 3072, 3073] {
        lab.post(1536, 100 - lab.rx_waiting());
        host.send(&framed(&frame(bytes - 12))).unwrap();
        lab.run();
        let chains = bytes.div_ceil(1536) as u16;
        assert_eq!(lab.inbox.pop(), Some((num_buffers(&framed(&frame(bytes - 12)), chains), chains)));
    }
}

#[test]
fn a_header_may_be_cut_anywhere() {
    let (mut lab, host) = Lab::with(ALL);
    for cut in 1..12 {
        lab.post_cut(&[cut, 1, 70_000]);
        host.send(&framed(&frame(100))).unwrap();
        lab.run();
        assert_eq!(lab.inbox.pop(), Some((num_buffers(&framed(&frame(100)), 1), 1)), "after {cut} bytes");
    }
}

#[test]
fn without_merging_each_frame_has_one_chain() {
    let (mut lab, host) = Lab::with(NO_MERGING);
    lab.post(1526, 1);
    lab.post_cut(&[12, 65_550]);
    // The first is too long for its chain, which the next one gets.
    for bytes in [1515, 1514, 65_535 + 14] {
        host.send(&framed(&frame(bytes))).unwrap();
    }
    lab.run();
    let first = (num_buffers(&framed(&frame(1514)), 1), 1);
    assert_eq!(lab.inbox, [first, (num_buffers(&framed(&frame(65_549)), 1), 1)]);
    assert_eq!(lab.received(), (2, 1514 + 65_549, 1));
}

#[test]
fn what_is_longer_than_any_frame_is_dropped() {
    let (mut lab, host) = Lab::with(ALL);
    lab.careless = true;
    lab.post(4096, 40);
    host.send(&framed(&frame(LONGEST - 12))).unwrap();
    // As long as the chains that were reserved, and a byte more.
    host.send(&framed(&frame(17 * 4096 - 12 + 1))).unwrap();
    host.send(&framed(&frame(13))).unwrap();
    host.send(&[]).unwrap();
    host.send(&framed(&frame(14))).unwrap();
    lab.run();
    let frames = lab.frames();
    assert!(frames == [frame(LONGEST - 12), frame(14)], "{:?}", frames.iter().map(Vec::len).collect::<Vec<_>>());
    assert_eq!(lab.received().2, 3);
}

#[test]
fn frames_wait_in_the_tap_until_there_are_buffers() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(4096, 16);
    for number in 0..5 {
        host.send(&framed(&frame(100 + number))).unwrap();
    }
    lab.run();
    assert_eq!((lab.inbox.len(), lab.received()), (0, (0, 0, 0)), "there was no room for the longest");
    let calls = lab.watcher.calls;
    assert!(lab.watcher.wait(0).is_empty(), "a tap that has to wait keeps the worker busy");
    lab.post(4096, 1);
    lab.run();
    assert_eq!(lab.frames(), [frame(100)]);
    // Each frame takes a buffer, so each needs one more.
    lab.post(4096, 1);
    lab.run();
    lab.post(4096, 3);
    lab.run();
    assert_eq!(lab.frames(), [frame(101), frame(102), frame(103), frame(104)]);
    assert_eq!(lab.received(), (5, 510, 0));
    assert_eq!(lab.watcher.calls, calls, "there is no room yet for another one");
    lab.post(4096, 20);
    lab.run();
    host.send(&framed(&frame(105))).unwrap();
    lab.run();
    assert_eq!(lab.frames(), [frame(105)]);
}

/// The driver never offers more than half of its queue, or the queue is too short for the longest frame.
#[test]
fn half_a_queue_is_room_enough() {
    let (mut lab, host) = Lab::with(ALL);
    lab.careless = true;
    lab.post(256, 127);
    host.send(&framed(&frame(1000))).unwrap();
    host.send(&framed(&frame(40_000))).unwrap();
    host.send(&framed(&frame(500))).unwrap();
    lab.run();
    assert_eq!(lab.frames().len(), 0);
    lab.post(256, 20);
    lab.run();
    assert_eq!(lab.frames(), [frame(1000), frame(500)]);
    assert_eq!(lab.received().2, 1, "what had no room in it");
}

#[test]
fn a_flood_of_frames_leaves_the_worker_to_others() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(1536, 250);
    let stop = Arc::new(AtomicBool::new(false));
    let over = stop.clone();
    // More than can be received, without end.
    let flood = std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let _ = host.send(&framed(&frame(60)));
        }
    });
    while lab.received().0 < 20 * BATCH as u64 {
        let before = lab.received().0;
        lab.call(|device, context| device.handle(Event::Fd(TAP, libc::EPOLLIN as u32), context)).unwrap();
        assert!(lab.received().0 - before <= BATCH as u64, "more than its turn");
        lab.collect();
        lab.inbox.clear();
        lab.post(1536, 250 - lab.rx_waiting());
    }
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn flags_that_the_driver_does_not_know_are_not_shown() {
    for (features, shown) in [(ALL, 2), (!(1 << VIRTIO_NET_F_GUEST_CSUM), 0)] {
        let (mut lab, host) = Lab::with(features);
        lab.post(4096, 20);
        let mut bytes = framed(&frame(100));
        bytes[0] = VIRTIO_NET_HDR_F_DATA_VALID as u8;
        host.send(&bytes).unwrap();
        lab.run();
        assert_eq!(lab.inbox[0].0[0], shown);
    }
}

/// A driver that looks at the used ring at any moment finds whole frames.
#[test]
fn the_driver_sees_all_buffers_of_a_frame_at_once() {
    let (mut lab, host) = Lab::with(ALL);
    let (memory, stop) = (lab.memory.clone(), Arc::new(AtomicBool::new(false)));
    let seen = stop.clone();
    let index = GuestAddress(lab.rx.used_index());
    let driver = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            let used: u16 = memory.load(index, Ordering::Acquire).unwrap();
            assert!(used.is_multiple_of(16), "{used} buffers, which is part of a frame");
        }
    });
    // A multiple of 16 for every lap of the index.
    for _ in 0..3000 {
        lab.post(1000, 100 - lab.rx_waiting());
        host.send(&framed(&frame(15_900))).unwrap();
        lab.run();
        assert_eq!(lab.inbox.pop().unwrap().1, 16);
    }
    stop.store(true, Ordering::Relaxed);
    driver.join().unwrap();
}

#[test]
fn the_driver_is_interrupted_when_it_asked_for_one_of_many_buffers() {
    let (mut lab, host) = Lab::with(ALL);
    for wanted in [1, 2, 15, 16, 17] {
        lab.post(1000, 100 - lab.rx_waiting());
        lab.rx.interrupt_with(&lab.memory.clone(), wanted);
        host.send(&framed(&frame(15_900))).unwrap();
        // Without taking them, which sets what it asked for anew.
        lab.call(|device, context| device.handle(Event::Fd(TAP, libc::EPOLLIN as u32), context)).unwrap();
        assert_eq!(lab.interrupted(), u64::from(wanted <= 16), "for number {wanted} of 16");
        lab.collect();
        assert_eq!(lab.inbox.len(), 1);
        lab.inbox.clear();
    }
}

#[test]
fn a_queue_that_is_not_enabled_receives_nothing() {
    let mut lab = Lab::inactive();
    lab.rings[RX] = crate::virtio::queue::Ring::new(virtio_queue::QueueT::new(SIZE).unwrap(), lab.interrupt());
    lab.activate(ALL);
    let host = lab.attach_tap();
    host.send(&framed(&frame(60))).unwrap();
    lab.run();
    assert_eq!(lab.received(), (0, 0, 0));
}
