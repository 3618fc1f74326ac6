//! A guest that breaks every rule: the worst that happens is an error of this device.

use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::pair::{RX, TX};
use super::lab::*;
use crate::virtio::{Device, Error, Event};

/// Where buffers of no slot are.
const AWAY: u64 = 0x8_0000;

fn handle(lab: &mut Lab, event: Event) -> Result<(), Error> {
    lab.call(|device, context| device.handle(event, context))
}

fn transmit(chain: &[(u64, u32, bool)]) -> (Result<(), Error>, Lab, UnixDatagram) {
    let (mut lab, host) = Lab::with(ALL);
    lab.tx.add(&lab.memory, chain).unwrap();
    let result = handle(&mut lab, Event::Queue(TX));
    (result, lab, host)
}

/// Has the device receive into these chains.
fn receive(features: u64, chains: &[&[(u64, u32, bool)]]) -> (Result<(), Error>, Lab, UnixDatagram) {
    let (mut lab, host) = Lab::with(features);
    host.send(&framed(&frame(100))).unwrap();
    for chain in chains {
        lab.rx.add(&lab.memory, chain).unwrap();
    }
    let result = handle(&mut lab, Event::Fd(super::super::pair::TAP, libc::EPOLLIN as u32));
    (result, lab, host)
}

#[test]
fn what_may_be_written_to_is_no_part_of_a_frame() {
    let (result, mut lab, host) = transmit(&[(AWAY, 26, false), (AWAY + 0x1000, 100, true)]);
    result.unwrap();
    assert_eq!(heard(&host).unwrap(), [0; 26]);
    assert_eq!(lab.tx.take(&lab.memory).unwrap().1, 0, "nothing was written");
    let (result, lab, host) = transmit(&[(AWAY, 100, true)]);
    result.unwrap();
    assert!(heard(&host).is_none());
    assert_eq!(lab.transmitted().2, 1);
}

#[test]
fn a_frame_of_too_many_pieces_stops_the_device() {
    let pieces: Vec<_> = (0..256).map(|at| (AWAY + at, 1, false)).collect();
    let (result, _, host) = transmit(&pieces);
    result.unwrap();
    assert_eq!(heard(&host).unwrap().len(), 256);
    let (mut lab, host) = Lab::with(ALL);
    // A table with one more, reached by way of one descriptor.
    for at in 0..257u64 {
        let words = 1 | 1 << 32 | (at + 1) << 48;
        lab.memory.write_obj([AWAY, words], GuestAddress(0x9_0000 + 16 * at)).unwrap();
    }
    lab.tx.add(&lab.memory, &[(0x9_0000, 257 * 16, false)]).unwrap();
    lab.tx.make_indirect(&lab.memory.clone());
    assert!(matches!(handle(&mut lab, Event::Queue(TX)), Err(Error::Protocol(_))));
    assert!(heard(&host).is_none());
}

#[test]
fn memory_that_is_none_stops_the_device() {
    for (address, length) in [(MEMORY as u64 - 2, 40), (u64::MAX - 3, 40), (1 << 40, u32::MAX)] {
        assert!(transmit(&[(address, length, false)]).0.is_err());
        assert!(receive(ALL, &[&[(address, length, true)]]).0.is_err());
    }
}

#[test]
fn what_is_to_be_read_is_no_room_for_a_frame() {
    let (result, lab, _host) = receive(ALL, &[&[(AWAY, 100, false)]]);
    assert!(matches!(result, Err(Error::Protocol(_))));
    assert_eq!(lab.received().0, 0);
    // In front of the room it does no harm.
    let (result, mut lab, _host) = receive(ALL, &[&[(AWAY, 100, false), (AWAY + 0x1_0000, 70_000, true)]]);
    result.unwrap();
    assert_eq!(lab.rx.take(&lab.memory).unwrap().1, 112);
    assert_eq!(lab.memory.read_obj::<u64>(GuestAddress(AWAY)).unwrap(), 0);
}

#[test]
fn room_without_a_header_stops_the_device() {
    for features in [ALL, NO_MERGING] {
        let (result, lab, _host) = receive(features, &[&[(AWAY, 11, true)]]);
        assert!(matches!(result, Err(Error::Protocol(_))));
        assert_eq!(lab.received().0, 0);
    }
    let whole: [&[_]; 2] = [&[(AWAY, 40_000, true)], &[(AWAY, 0, true)]];
    assert!(receive(ALL, &whole).0.is_err());
}

/// More buffers than one system call takes are used as far as that goes.
#[test]
fn countless_buffers_are_room_enough() {
    let pieces: Vec<_> = (0..50).map(|at| (AWAY + at, 1, true)).collect();
    let chains: Vec<&[_]> = (0..5).map(|_| &pieces[..]).collect();
    let (result, mut lab, host) = receive(ALL, &chains);
    result.unwrap();
    assert_eq!(lab.received().0, 0, "room for the longest was waited for");
    let table = 0x9_0000;
    for at in 0..256u64 {
        let next = if at < 255 { 1 << 32 | (at + 1) << 48 } else { 0 };
        lab.memory.write_obj([AWAY + at, 1 | next | 2 << 32], GuestAddress(table + 16 * at)).unwrap();
    }
    for _ in 0..3 {
        lab.rx.add(&lab.memory, &[(table, 256 * 16, false)]).unwrap();
        lab.rx.make_indirect(&lab.memory.clone());
    }
    handle(&mut lab, Event::Queue(RX)).unwrap();
    assert_eq!(lab.received(), (1, 100, 0));
    // The next one may be longer than all of that.
    host.send(&framed(&frame(5000))).unwrap();
    handle(&mut lab, Event::Fd(super::super::pair::TAP, libc::EPOLLIN as u32)).unwrap();
    assert_eq!(lab.received().0, 1);
}

#[test]
fn an_index_out_of_range_stops_the_device() {
    let (mut lab, host) = Lab::with(ALL);
    lab.post(4096, 10);
    host.send(&framed(&frame(60))).unwrap();
    // Ten are reserved already.
    lab.run();
    lab.rx.set_available(&lab.memory.clone(), 10 + SIZE + 1);
    assert!(handle(&mut lab, Event::Queue(RX)).is_err());
}

/// One thing that guest, host or monitor does.
#[derive(Clone, Debug)]
enum Step {
    Offer(usize, Vec<u32>),
    Post(Vec<u32>),
    Chain(Vec<(u64, u32, bool)>, bool),
    Hear(usize),
    Index(u16, bool),
    Scribble(u64, u64),
    Attach,
    Detach,
    Turn,
    Restart(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop::collection::vec(prop_oneof![12u32..100, 12u32..5000, 60_000u32..70_000], 1..4);
    let buffer = (prop_oneof![0u64..0x500_0000, any::<u64>()], prop_oneof![0u32..100, any::<u32>()], any::<bool>());
    prop_oneof![
        10 => (0usize..6000, sizes.clone()).prop_map(|(bytes, sizes)| Step::Offer(bytes, sizes)),
        20 => sizes.prop_map(|mut sizes| {
            sizes.truncate(1);
            Step::Post(sizes)
        }),
        2 => (prop::collection::vec(buffer, 1..4), any::<bool>()).prop_map(|(chain, rx)| Step::Chain(chain, rx)),
        10 => (0usize..70_000).prop_map(Step::Hear),
        1 => (any::<u16>(), any::<bool>()).prop_map(|(index, rx)| Step::Index(index, rx)),
        2 => (0x2_0000u64..0x6_0000, any::<u64>()).prop_map(|(at, word)| Step::Scribble(at, word)),
        2 => Just(Step::Attach),
        1 => Just(Step::Detach),
        10 => Just(Step::Turn),
        2 => any::<u64>().prop_map(Step::Restart),
    ]
}

/// A guest without manners, and its host. What comes back is not looked at.
struct Chaos {
    lab: Lab,
    host: Option<UnixDatagram>,
    /// The device stopped with an error, as it may.
    broken: bool,
}

impl Chaos {
    fn perform(&mut self, step: &Step) {
        let lab = &mut self.lab;
        let memory = lab.memory.clone();
        match step {
            Step::Offer(bytes, sizes) => drop(lab.tx.add(&memory, &pieces(*bytes as u32, sizes))),
            Step::Post(sizes) => drop(lab.rx.add(&memory, &[(AWAY, sizes[0], true)])),
            Step::Chain(chain, rx) => drop(if *rx { &mut lab.rx } else { &mut lab.tx }.add(&memory, chain)),
            Step::Hear(bytes) => {
                let _ = self.host.as_ref().map(|host| host.send(&framed(&frame(*bytes))));
            }
            Step::Index(index, rx) => if *rx { &mut lab.rx } else { &mut lab.tx }.set_available(&memory, *index),
            Step::Scribble(at, word) => memory.write_obj(*word, GuestAddress(*at)).unwrap(),
            Step::Attach => self.attach(),
            Step::Detach => self.change(None),
            Step::Turn => self.turn(),
            Step::Restart(features) => self.restart(*features),
        }
    }

    fn attach(&mut self) {
        let (tap, host) = UnixDatagram::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        self.change(Some(fake_tap(tap.into()).0));
        self.host = Some(host);
    }

    fn change(&mut self, tap: Option<super::super::tap::Tap>) {
        let tap_handle = self.lab.tap_handle.clone();
        let asking = std::thread::spawn(move || tap_handle.replace(tap));
        while !asking.is_finished() {
            self.turn();
        }
        asking.join().unwrap().unwrap();
    }

    fn turn(&mut self) {
        let events = self.lab.watcher.wait(0).into_iter().map(|(token, events)| Event::Fd(token, events));
        for event in events.chain([Event::Queue(RX), Event::Queue(TX)]) {
            self.broken = self.broken || handle(&mut self.lab, event).is_err();
            if self.broken {
                // As the worker does. The device keeps the tap for the next start.
                return self.lab.deactivate();
            }
        }
        let _ = self.host.as_ref().and_then(heard);
    }

    fn restart(&mut self, features: u64) {
        if !self.broken {
            self.lab.deactivate();
        }
        self.lab.device.reset();
        let mut fresh = Lab::inactive();
        // A driver begins anew with clean rings.
        std::mem::swap(&mut fresh.device, &mut self.lab.device);
        std::mem::swap(&mut fresh.tap_handle, &mut self.lab.tap_handle);
        fresh.counters = fresh.device.counters();
        self.lab = fresh;
        self.lab.activate(features);
        self.broken = false;
    }
}

fn pieces(bytes: u32, sizes: &[u32]) -> Vec<(u64, u32, bool)> {
    let last = (AWAY, bytes, false);
    sizes.iter().map(|&size| (AWAY, size, false)).chain([last]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, nothing panics or hangs, and after a reset the device serves.
    #[test]
    fn anything(steps in prop::collection::vec(step(), 1..80)) {
        let (lab, host) = Lab::with(ALL);
        let mut chaos = Chaos { lab, host: Some(host), broken: false };
        for step in &steps {
            if chaos.broken && !matches!(step, Step::Restart(_)) {
                continue;
            }
            chaos.perform(step);
        }
        chaos.restart(ALL);
        let mut lab = chaos.lab;
        let host = lab.attach_tap();
        lab.post(4096, 20);
        host.send(&framed(&frame(3000))).unwrap();
        lab.send(&framed(&frame(70)));
        prop_assert!(lab.frames().last() == Some(&frame(3000)));
        prop_assert!(heard(&host).unwrap() == framed(&frame(70)));
    }
}
