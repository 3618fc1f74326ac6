//! Network device (virtio 1.2, section 5.1): a tap of the host's is an interface of the guest's.
//!
//! ```text
//!  guest           virtqueues                worker                      host
//!  ─────           ──────────                ──────                      ────
//!  frames ───▶ transmitq ──chain──▶ writev, one per frame ─────────▶ ┌─────┐
//!                                     full: the chain stays, EPOLLOUT │ tap │ ◀─▶ network
//!         ◀─── receiveq ◀──chains── readv, one per frame ◀────────── └─────┘
//!                                     no room: not read, frames wait     ▲
//!                                                                        │ any time
//!                                            Plug::plug, Plug::unplug ───┘
//! ```
//!
//! Frames go between guest memory and the tap with no copy of ours, long ones whole: each has a header in which one
//! side leaves checksums and segmentation to the other, and the tap speaks the same. How long the next frame is, the
//! tap does not tell. So the room for the longest is reserved before it is read, from many small buffers if need be.
//!
//! Nothing is lost here while both sides keep up at their own pace: without buffers of the guest's the frames stay in
//! the tap's queue, and the host sees that. What the tap refuses is dropped and counted, as is all that the guest sends
//! while there is no tap. The link is always up: without interrupts for changed configurations, nobody would learn
//! that it is not.
//!
//! A device of several pairs has one more queue, by which the driver says how many it uses: one at first. The worker
//! serves the first pair and that queue, and has a worker for each other pair in use ([`lanes`]), with a queue of the
//! tap. So as many processors of the guest transmit at a time.
//!
//! # System calls
//!
//! For whoever writes the worker's filter: `readv`, `writev`, `ioctl` of `TUNSETOFFLOAD` and `TUNSETQUEUE`, `poll`,
//! `close`, and a thread's beginning. Those of the thread that plugs: `ioctl` of `TUNGETIFF`, `TUNSETVNETHDRSZ` and
//! `FIONBIO`.

mod control;
mod counters;
mod lane;
mod lanes;
mod pair;
mod plug;
mod tap;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, virtio_net_hdr_v1,
};

use super::queue::{Chain, Outcome, Ring};
use super::worker::Wiring;
use super::{Context, Device, Error, Event, Notification};
use control::Layout;
pub use counters::{Counters, Traffic};
use lanes::Lanes;
use pair::Pair;
use plug::Outlet;
pub use plug::Plug;

/// Bytes of the header before each frame.
const HEADER: usize = size_of::<virtio_net_hdr_v1>();
/// Bytes of an Ethernet header, the least frame.
const ETHERNET: usize = libc::ETH_HLEN as usize;
/// Bytes of a VLAN's tag.
const VLAN: usize = 4;
/// Most bytes of a header and a frame: behind those of Ethernet, the longest IP packet.
const LONGEST: usize = HEADER + ETHERNET + VLAN + 65_535;

/// What the guest's driver and the tap can leave to each other.
const FEATURES: [u32; 10] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_MRG_RXBUF,
];
/// What a device of several pairs offers besides.
const SEVERAL: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
/// The queues of the first pair: with frames for the guest, and from the guest.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// Size of the control queue.
const CONTROL_SIZE: u16 = 16;
/// Commands before the worker sees to the rest.
const COMMANDS: usize = 4;
/// Tokens of the eventfd and of the tap.
const WAKE: u64 = 0;
const TAP: u64 = 1;
/// Bytes of a hardware address.
const MAC: usize = 6;
/// Version of what [`Net::save`] writes.
const VERSION: u32 = 2;

/// The network device.
pub struct Net {
    mac: [u8; MAC],
    /// How many pairs it offers.
    pairs: u16,
    sizes: Vec<u16>,
    layout: Layout,
    pair: Pair,
    lanes: Lanes,
    /// There may be commands that there was no time for.
    commands_left: bool,
    outlet: Outlet,
    counters: Vec<Arc<Counters>>,
}

impl Net {
    /// A device of this hardware address and so many pairs of queues, at least one, and what plugs a tap into it. There
    /// is none at first.
    ///
    /// # Errors
    /// An address that is no interface's, or what `eventfd` gave.
    pub fn new(mac: [u8; MAC], pairs: u16) -> Result<(Self, Plug), Error> {
        check(mac)?;
        let (plug, outlet) = plug::pair()?;
        let first = Arc::new(Counters::default());
        let further: Vec<Arc<Counters>> = (1..pairs).map(|_| Arc::default()).collect();
        let (pairs, lanes) = (pairs.max(1), Lanes::new(&further));
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        sizes.extend((pairs > 1).then_some(CONTROL_SIZE));
        let (layout, pair) = (Layout::of(0, pairs), Pair::new((RX, TX), first.clone()));
        let counters = [vec![first], further].concat();
        Ok((Self { mac, pairs, sizes, layout, pair, lanes, commands_left: false, outlet, counters }, plug))
    }

    /// What went through each pair of the device, to be read while it is in use.
    pub fn counters(&self) -> Vec<Arc<Counters>> {
        self.counters.clone()
    }

    /// Does what others asked for, and what there was no time for.
    fn woken(&mut self, context: &mut Context) -> Result<(), Error> {
        self.lanes.check()?;
        for mut wish in self.outlet.woken() {
            let tap = std::mem::take(&mut wish.tap);
            let result = self.replace(tap, context);
            if !wish.done(result) {
                // Whoever asked has given up, and will not pull it out.
                self.replace(Vec::new(), context)?;
            }
            self.lanes.check()?;
        }
        if self.commands_left {
            self.obey(context)?;
        }
        self.transmit(context)
    }

    fn replace(&mut self, mut tap: Vec<tap::Tap>, context: &mut Context) -> Result<(), Error> {
        let further = tap.split_off(tap.len().min(1));
        if !tap.is_empty() && further.len() < self.lanes.used() {
            return Err(Error::Protocol("a tap of fewer queues than are in use"));
        }
        self.pair.replace(tap.pop(), context)?;
        self.lanes.replace(further, context.rings)
    }

    fn transmit(&mut self, context: &mut Context) -> Result<(), Error> {
        self.pair.transmit(context)?;
        if self.pair.has_more() { self.outlet.wake() } else { Ok(()) }
    }

    /// Does what the driver commands, until there is nothing or the others have their turn.
    fn obey(&mut self, context: &mut Context) -> Result<(), Error> {
        self.commands_left = false;
        let Some((rings, rest)) = self.layout.control.and_then(|at| context.rings.split_at_mut_checked(at)) else {
            return Ok(());
        };
        let Some(control) = rest.first_mut() else { return Ok(()) };
        let mut left = COMMANDS;
        control.serve(context.memory, |chain| {
            if left == 0 {
                self.commands_left = true;
                return Ok(Outcome::Later);
            }
            left -= 1;
            let answer = self.command(chain, rings);
            match chain.writable.write(&[answer]) {
                0 => Err(Error::Protocol("a command without room for the answer")),
                written => Ok(Outcome::Used(written as u32)),
            }
        })?;
        self.lanes.check()?;
        if self.commands_left { self.outlet.wake() } else { Ok(()) }
    }

    fn command(&mut self, chain: &mut Chain, rings: &mut [Ring]) -> u8 {
        let wanted = control::pairs_wanted(&mut chain.readable, self.layout.pairs);
        let Some(further) = wanted.map(|pairs| usize::from(pairs - 1)) else { return control::ERR };
        if self.pair.has_tap() && !self.lanes.have_taps(further) {
            return control::ERR;
        }
        if self.lanes.resize(further, rings).is_ok() { control::OK } else { control::ERR }
    }
}

/// Refuses what is nobody's or a group's address: a driver would take another one.
fn check(mac: [u8; MAC]) -> Result<(), Error> {
    let [first, ..] = mac;
    if first & 1 != 0 || mac == [0; MAC] {
        return Err(Error::Protocol("the address of a network device is that of one interface"));
    }
    Ok(())
}

impl Device for Net {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let several = if self.pairs > 1 { SEVERAL } else { 0 };
        FEATURES.iter().fold(several, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// Drivers have the control queue ready, and some of them further pairs, without ever using more than the first.
    fn notification(&self, queue: usize) -> Notification {
        match queue {
            RX | TX => Notification::AtOnce,
            _ if queue + 1 == self.sizes.len() => Notification::ByExit,
            _ => Notification::OnUse,
        }
    }

    /// `struct virtio_net_config`: the address and, with several pairs, a status that nobody looks at and their number.
    fn config(&self) -> Vec<u8> {
        let pairs = self.pairs.to_le_bytes();
        let rest: &[&[u8]] = if self.pairs > 1 { &[&[0; 2], &pairs] } else { &[] };
        [&self.mac[..], &rest.concat()].concat()
    }

    fn split(&mut self, features: u64, wiring: &Wiring) -> Range<usize> {
        match Layout::of(features, self.pairs) {
            Layout { pairs: 1, .. } => 0..0,
            _ => self.lanes.wire(wiring, self.outlet.waker()),
        }
    }

    fn activate(&mut self, features: u64, context: &mut Context) -> Result<(), Error> {
        self.layout = Layout::of(features, self.pairs);
        let watched = context.watcher.add(self.outlet.as_raw_fd(), WAKE, libc::EPOLLIN as u32);
        watched.map_err(|error| Error::Host("watch for taps", error))?;
        let mut tap = self.outlet.open();
        let further = tap.split_off(tap.len().min(1));
        let entered = self.pair.enter(features, tap.pop(), context);
        let entered = entered.and_then(|()| self.lanes.enter(features, further, context.rings));
        if entered.is_err() {
            self.deactivate(context);
        }
        entered
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        match event {
            Event::Queue(RX) => self.pair.on_room(context),
            Event::Queue(TX) => self.transmit(context),
            Event::Queue(queue) if Some(queue) == self.layout.control => self.obey(context),
            // Of nobody, or of a lane.
            Event::Queue(_) => Ok(()),
            Event::Fd(WAKE, _) => self.woken(context),
            Event::Fd(_, events) => {
                self.pair.on_tap(events, context)?;
                if self.pair.has_more() { self.outlet.wake() } else { Ok(()) }
            }
        }
    }

    fn deactivate(&mut self, context: &mut Context) {
        let tap = self.pair.leave(context).into_iter();
        self.outlet.close(tap.chain(self.lanes.leave(context.rings)).collect());
        // Not watched where activation failed.
        let _ = context.watcher.remove(self.outlet.as_raw_fd());
    }

    fn reset(&mut self) {
        self.lanes.set_used(0);
    }

    /// Fourteen bytes: version, little-endian, the address, and of pairs how many there are and are in use. The tap
    /// stays where it is.
    fn save(&self) -> Result<Vec<u8>, Error> {
        let used = u16::try_from(self.lanes.used() + 1).unwrap_or(self.pairs);
        Ok([&VERSION.to_le_bytes()[..], &self.mac, &self.pairs.to_le_bytes(), &used.to_le_bytes()].concat())
    }

    /// The address becomes the one that was saved: the guest goes by what it knew.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        const MALFORMED: Error = Error::Protocol("malformed state of a network device");
        let (version, rest) = state.split_first_chunk().ok_or(MALFORMED)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::Protocol("a network device's state of another version"));
        }
        let (mac, pairs) = rest.split_first_chunk().ok_or(MALFORMED)?;
        let pairs: [u8; 4] = pairs.try_into().map_err(|_| MALFORMED)?;
        let [offered, used] = [[pairs[0], pairs[1]], [pairs[2], pairs[3]]].map(u16::from_le_bytes);
        if offered != self.pairs || !(1..=offered).contains(&used) {
            return Err(MALFORMED);
        }
        check(*mac)?;
        self.mac = *mac;
        self.lanes.set_used(usize::from(used) - 1);
        Ok(())
    }
}
