//! Several pairs of queues, and the control queue.

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use vm_memory::{Bytes, GuestAddress};

use super::super::control::{ERR, Layout, OK};
use super::super::{Net, RX, TX};
use super::lab::*;
use super::several::*;
use crate::virtio::{Device, Notification};

const CTRL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const MQ: u64 = 1 << VIRTIO_NET_F_MQ;

#[test]
fn one_pair_is_all_that_there_was_before() {
    let (device, _plug) = Net::new(MAC, 1).unwrap();
    assert_eq!((device.features() & (CTRL | MQ), device.queue_sizes()), (0, &[256, 256][..]));
    assert_eq!(device.config(), MAC);
    assert!((0..2).all(|queue| device.notification(queue) == Notification::AtOnce));
}

#[test]
fn several_pairs_are_offered_and_cost_no_event_at_once() {
    let (device, _plug) = Net::new(MAC, 2).unwrap();
    assert_eq!((device.features() & (CTRL | MQ), device.queue_sizes()), (CTRL | MQ, &[256, 256, 256, 256, 16][..]));
    assert_eq!(device.config(), [&MAC[..], &[0, 0, 2, 0]].concat());
    use Notification::{AtOnce, ByExit, OnUse};
    let notified: Vec<_> = (0..5).map(|queue| device.notification(queue)).collect();
    assert_eq!(notified, [AtOnce, AtOnce, OnUse, OnUse, ByExit]);
}

#[test]
fn the_control_queue_follows_the_pairs_that_the_driver_has() {
    let of = |features| {
        let layout = Layout::of(features, 4);
        (layout.pairs, layout.control)
    };
    assert_eq!(of(CTRL | MQ), (4, Some(8)));
    assert_eq!(of(CTRL), (1, Some(2)));
    assert_eq!(of(MQ), (1, None));
    assert_eq!(of(0), (1, None));
}

#[test]
fn frames_go_by_as_many_pairs_as_the_driver_uses() {
    let (mut several, hosts) = Several::with(2);
    several.sends(TX, &hosts[0], 60);
    // The second is not served until it is asked for.
    several.offer(TX1, 61);
    several.sends(TX, &hosts[0], 62);
    hosts[1].set_nonblocking(true).unwrap();
    assert!(heard(&hosts[1]).is_none());
    hosts[1].set_nonblocking(false).unwrap();
    assert_eq!(several.use_pairs(2), OK);
    assert_eq!(heard(&hosts[1]).unwrap(), framed(&frame(61)));
    for bytes in 70..90 {
        several.receives(RX, &hosts[0], bytes);
        several.receives(RX1, &hosts[1], bytes);
        several.sends(TX, &hosts[0], bytes);
    }
    assert_eq!(several.use_pairs(2), OK, "once more is as good as once");
    assert_eq!(several.use_pairs(1), OK);
    several.sends(TX, &hosts[0], 63);
    several.receives(RX, &hosts[0], 64);
    assert_eq!(several.use_pairs(2), OK);
    several.offer(TX1, 65);
    assert_eq!(heard(&hosts[1]).unwrap(), framed(&frame(65)));
    assert!(several.faults.lock().unwrap().is_empty() && several.interrupts.read().unwrap() > 0);
}

#[test]
fn what_a_pair_has_left_is_sent_before_it_stops() {
    let (mut several, hosts) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    for round in 0..20 {
        several.offer(TX1, 60 + round);
        assert_eq!(several.use_pairs(1), OK);
        hosts[1].set_nonblocking(true).unwrap();
        assert_eq!(heard(&hosts[1]).unwrap(), framed(&frame(60 + round)));
        hosts[1].set_nonblocking(false).unwrap();
        assert_eq!(several.use_pairs(2), OK);
    }
}

#[test]
fn other_commands_are_errors() {
    let (mut several, hosts) = Several::with(2);
    let commands: [&[u8]; 14] = [
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 2, 1],
        &[4, 0, 0xff, 0xff],
        &[4, 0, 2],
        &[4, 0],
        &[4],
        &[],
        &[4, 0, 2, 0, 0],
        &[4, 1, 2, 0],
        &[0, 0, 1],
        &[1, 1, 2, 0, 0, 0, 0, 1],
        &[3, 0, 2, 0],
        &[4; 1000],
    ];
    for command in commands {
        assert_eq!(several.command(command), ERR, "{command:?}");
        several.sends(TX, &hosts[0], 60);
    }
    assert_eq!(several.use_pairs(2), OK);
    for command in commands {
        assert_eq!(several.command(command), ERR, "{command:?}");
    }
    several.sends(TX1, &hosts[1], 60);
}

#[test]
fn a_command_without_room_for_the_answer_stops_the_device() {
    let (mut several, _hosts) = Several::with(2);
    several.memory.write_slice(&[4, 0, 2, 0], GuestAddress(0x30_0000)).unwrap();
    let memory = several.memory.clone();
    several.queues[CONTROL].add(&memory, &[(0x30_0000, 4, false)]).unwrap();
    several.kick(CONTROL);
    assert_eq!(several.fault().len(), 1);
}

#[test]
fn many_commands_at_once_are_all_answered() {
    let (mut several, hosts) = Several::with(2);
    let memory = several.memory.clone();
    for round in 0..10u64 {
        for at in 0..8 {
            let pairs = if (round + at) % 2 == 0 { 1u16 } else { 2 };
            let place = 0x30_0000 + 16 * at;
            memory.write_slice(&[4, 0, pairs as u8, 0], GuestAddress(place)).unwrap();
            several.queues[CONTROL].add(&memory, &[(place, 4, false), (place + 8, 1, true)]).unwrap();
        }
        several.kick(CONTROL);
        for _ in 0..8 {
            crate::virtio::worker::tests::wait("an answer", || several.queues[CONTROL].take(&memory).is_some());
        }
    }
    assert_eq!(several.use_pairs(2), OK);
    several.sends(TX1, &hosts[1], 60);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third_and_refuses() {
    let mut several = Several::inactive();
    let (tap, hosts) = taps(2);
    several.plug.change(tap).unwrap();
    several.start(!MQ);
    assert_eq!(several.command_by(2, &[4, 0, 1, 0]), ERR);
    assert_eq!(several.command_by(2, &[4, 0, 2, 0]), ERR);
    several.sends(TX, &hosts[0], 60);
    several.reset();
    several.start(!CTRL);
    several.offer(TX1, 60);
    several.kick(CONTROL);
    several.sends(TX, &hosts[0], 61);
}

#[test]
fn a_device_that_is_stopped_and_started_keeps_its_pairs_and_loses_no_frame() {
    const FRAMES: usize = 3000;
    let (mut several, hosts) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listening = hosts
            .iter()
            .map(|host| scope.spawn(|| (0..FRAMES).all(|at| heard(host).unwrap() == framed(&frame(60 + at % 100)))));
        let listening: Vec<_> = listening.collect();
        for at in 0..FRAMES {
            for queue in [TX, TX1] {
                let memory = several.memory.clone();
                crate::virtio::worker::tests::wait("room", || {
                    while several.queues[queue].take(&memory).is_some() {}
                    several.offer_apart(queue, at, 60 + at % 100)
                });
            }
            if at % 100 == 99 {
                several.stop();
                several.start(ALL);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(listening.into_iter().all(|host| host.join().unwrap()));
    });
    assert!(several.faults.lock().unwrap().is_empty());
}

#[test]
fn after_a_reset_the_driver_has_one_pair() {
    let (mut several, hosts) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    several.sends(TX1, &hosts[1], 60);
    several.reset();
    several.start(ALL);
    several.offer(TX1, 61);
    several.sends(TX, &hosts[0], 62);
    assert_eq!(several.use_pairs(2), OK);
    assert_eq!(heard(&hosts[1]).unwrap(), framed(&frame(61)));
}

#[test]
fn a_restored_device_uses_the_pairs_that_were_saved() {
    for used in [1, 2] {
        let (mut several, _) = Several::with(2);
        assert_eq!(several.use_pairs(used), OK);
        several.stop();
        let (device, plug) = Net::new(OTHER, 2).unwrap();
        several.exchange(device, plug);
        assert_eq!(several.stop().device.config()[..6], MAC);
        let (tap, hosts) = taps(2);
        several.plug.change(tap).unwrap();
        several.start(ALL);
        several.sends(TX, &hosts[0], 60);
        if used == 2 {
            several.sends(TX1, &hosts[1], 61);
            several.receives(RX1, &hosts[1], 62);
        } else {
            several.offer(TX1, 61);
            several.sends(TX, &hosts[0], 62);
        }
    }
}

/// Some other card's address.
const OTHER: [u8; 6] = [6, 5, 4, 3, 2, 1];

#[test]
fn a_fault_in_one_pair_stops_all_of_them_and_a_reset_helps() {
    let (mut several, hosts) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    let memory = several.memory.clone();
    several.queues[TX1].add(&memory, &[(u64::MAX - 3, 40, false)]).unwrap();
    several.kick(TX1);
    let faults = several.fault();
    assert!(faults.len() == 1 && faults[0].contains(".1: "), "{faults:?}");
    // The first pair's worker hears of it and stops: nothing is served any more.
    std::thread::sleep(std::time::Duration::from_millis(200));
    several.offer(TX, 60);
    std::thread::sleep(std::time::Duration::from_millis(100));
    hosts[0].set_nonblocking(true).unwrap();
    assert!(heard(&hosts[0]).is_none());
    hosts[0].set_nonblocking(false).unwrap();
    several.reset();
    several.start(ALL);
    several.sends(TX, &hosts[0], 61);
    assert_eq!(several.use_pairs(2), OK);
    several.sends(TX1, &hosts[1], 62);
    assert_eq!(several.faults.lock().unwrap().len(), 1);
}

#[test]
fn the_first_pairs_fault_stops_the_others() {
    let (mut several, hosts) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    let memory = several.memory.clone();
    several.queues[TX].add(&memory, &[(u64::MAX - 3, 40, false)]).unwrap();
    several.kick(TX);
    assert_eq!(several.fault().len(), 1);
    std::thread::sleep(std::time::Duration::from_millis(200));
    several.offer(TX1, 60);
    std::thread::sleep(std::time::Duration::from_millis(100));
    hosts[1].set_nonblocking(true).unwrap();
    assert!(heard(&hosts[1]).is_none());
}

#[test]
fn taps_come_and_go_while_two_pairs_are_used() {
    let (mut several, old) = Several::with(2);
    assert_eq!(several.use_pairs(2), OK);
    let (tap, hosts) = taps(2);
    several.plug.change(tap).unwrap();
    assert!(old.iter().all(|host| host.send(&[0; 60]).is_err()), "the old one is still open");
    several.sends(TX, &hosts[0], 60);
    several.sends(TX1, &hosts[1], 61);
    several.plug.unplug().unwrap();
    assert!(hosts.iter().all(|host| host.send(&[0; 60]).is_err()));
    // What is sent now is dropped, by both.
    for queue in [TX, TX1] {
        several.offer(queue, 62);
        let memory = several.memory.clone();
        crate::virtio::worker::tests::wait("its chain", || several.queues[queue].take(&memory).is_some());
    }
    assert_eq!(several.use_pairs(1), OK);
    assert_eq!(several.use_pairs(2), OK);
    let (tap, hosts) = taps(2);
    several.plug.change(tap).unwrap();
    several.receives(RX1, &hosts[1], 63);
    several.receives(RX, &hosts[0], 64);
}

#[test]
fn a_tap_of_one_queue_serves_one_pair() {
    let (mut several, hosts) = Several::with(1);
    assert_eq!(several.use_pairs(2), ERR);
    assert_eq!(several.use_pairs(1), OK);
    several.sends(TX, &hosts[0], 60);
    let (tap, hosts) = taps(2);
    several.plug.change(tap).unwrap();
    assert_eq!(several.use_pairs(2), OK);
    assert!(several.plug.change(taps(1).0).is_err());
    several.sends(TX1, &hosts[1], 60);
    several.receives(RX, &hosts[0], 60);
}

/// What a guest without manners does to five queues.
#[derive(Clone, Debug)]
enum Step {
    Command(Vec<u8>),
    Pairs(u16),
    Chain(usize, Vec<(u64, u32, bool)>),
    Index(usize, u16),
    Scribble(u64, u64),
    Plug(usize),
    Pause,
    Reset(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let buffer = (prop_oneof![0u64..0x100_0000, any::<u64>()], prop_oneof![0u32..5000, any::<u32>()], any::<bool>());
    prop_oneof![
        2 => prop::collection::vec(0u8..6, 0..8).prop_map(Step::Command),
        6 => (0u16..4).prop_map(Step::Pairs),
        4 => (0usize..5, prop::collection::vec(buffer, 1..4)).prop_map(|(queue, chain)| Step::Chain(queue, chain)),
        1 => (0usize..5, any::<u16>()).prop_map(|(queue, index)| Step::Index(queue, index)),
        1 => (0x2_0000u64..0xc_0000, any::<u64>()).prop_map(|(at, word)| Step::Scribble(at, word)),
        2 => (0usize..4).prop_map(Step::Plug),
        2 => Just(Step::Pause),
        2 => prop_oneof![Just(ALL), any::<u64>()].prop_map(Step::Reset),
    ]
}

fn perform(several: &mut Several, step: &Step) {
    let memory = several.memory.clone();
    match step {
        Step::Command(bytes) => {
            memory.write_slice(bytes, GuestAddress(0x30_0000)).unwrap();
            let chain = [(0x30_0000, bytes.len() as u32, false), (0x30_0100, 1, true)];
            several.queues[CONTROL].add(&memory, &chain);
            several.kick(CONTROL);
        }
        Step::Pairs(pairs) => perform(several, &Step::Command(vec![4, 0, *pairs as u8, 0])),
        Step::Chain(queue, chain) => {
            several.queues[*queue].add(&memory, chain);
            several.kick(*queue);
        }
        Step::Index(queue, index) => {
            several.queues[*queue].set_available(&memory, *index);
            several.kick(*queue);
        }
        Step::Scribble(at, word) => memory.write_obj(*word, GuestAddress(*at)).unwrap(),
        // A device that has stopped does not answer in time.
        Step::Plug(_) if several.wiring.interrupt.is_broken() => {}
        Step::Plug(count) => {
            several.stop();
            let _ = several.plug.change(taps(*count).0);
            several.start(ALL);
        }
        Step::Pause => {
            several.stop();
            several.start(ALL);
        }
        Step::Reset(features) => {
            several.reset();
            several.start(*features);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a driver does to the queues, nothing panics or hangs, and after a reset all of them serve.
    #[test]
    fn anything(steps in prop::collection::vec(step(), 1..60)) {
        let (mut several, _hosts) = Several::with(2);
        for step in &steps {
            perform(&mut several, step);
        }
        several.reset();
        let (tap, hosts) = taps(2);
        several.plug.change(tap).unwrap();
        several.faults.lock().unwrap().clear();
        several.start(ALL);
        prop_assert_eq!(several.use_pairs(2), OK);
        several.sends(TX, &hosts[0], 60);
        several.sends(TX1, &hosts[1], 61);
        several.receives(RX1, &hosts[1], 62);
        prop_assert!(several.faults.lock().unwrap().is_empty());
    }
}
