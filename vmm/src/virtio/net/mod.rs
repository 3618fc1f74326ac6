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
//!                                    TapHandle::attach, TapHandle::detach ┘
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
//! A device has one pair of queues, whatever number of CPUs the guest has (docs/decisions/0010-one-queue-pair.md).
//!
//! # System calls
//!
//! The worker makes these: `readv`, `writev`, `ioctl(TUNSETOFFLOAD)`, `poll`, `close`. The thread that attaches a tap
//! makes `ioctl` of `TUNGETIFF`, `TUNSETVNETHDRSZ` and `FIONBIO`.

mod counters;
mod frame;
mod pair;
mod tap;
mod tap_handle;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF,
};

use super::{Context, Device, Error, Event};
pub use counters::{Counters, Traffic};
use pair::{Pair, RX};
pub use tap_handle::TapHandle;
use tap_handle::TapReceiver;

/// Features offered: what the guest's driver and the tap can leave to each other.
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
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Token of the receiver's eventfd.
const WAKE: u64 = 0;
/// Bytes of a hardware address.
const MAC: usize = 6;
/// Version of what [`Net::save`] writes.
const VERSION: u32 = 3;

/// The network device.
pub struct Net {
    mac: [u8; MAC],
    pair: Pair,
    receiver: TapReceiver,
    counters: Arc<Counters>,
}

impl Net {
    /// A device of this hardware address without a tap, and the handle that attaches one.
    ///
    /// # Errors
    /// An address that is no interface's, or what `eventfd` gave.
    pub fn new(mac: [u8; MAC]) -> Result<(Self, TapHandle), Error> {
        check(mac)?;
        let (handle, receiver) = tap_handle::channel()?;
        let counters = Arc::new(Counters::default());
        let pair = Pair::new(counters.clone());
        Ok((Self { mac, pair, receiver, counters }, handle))
    }

    /// Counters of the device's traffic, to be read while the device is in use.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves requests of the tap handle, and frames that there was no time for.
    fn woken(&mut self, context: &mut Context) -> Result<(), Error> {
        for mut request in self.receiver.take_requests() {
            let tap = request.tap.take();
            let result = self.pair.replace(tap, context);
            if !request.answer(result) {
                // The caller has given up, and will not detach it.
                self.pair.replace(None, context)?;
            }
        }
        self.transmit(context)
    }

    fn transmit(&mut self, context: &mut Context) -> Result<(), Error> {
        self.pair.transmit(context)?;
        if self.pair.has_more() { self.receiver.wake() } else { Ok(()) }
    }
}

/// Refuses an address that is nobody's or a group's: a driver would take another one.
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
        FEATURES.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_net_config`, up to the address.
    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn activate(&mut self, features: u64, context: &mut Context) -> Result<(), Error> {
        let watched = context.watcher.add(self.receiver.as_raw_fd(), WAKE, libc::EPOLLIN as u32);
        watched.map_err(|error| Error::Host("watch for taps", error))?;
        let entered = self.pair.enter(features, self.receiver.open(), context);
        if entered.is_err() {
            self.deactivate(context);
        }
        entered
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        match event {
            Event::Queue(RX) => self.pair.on_room(context),
            Event::Queue(_) => self.transmit(context),
            Event::Fd(WAKE, _) => self.woken(context),
            Event::Fd(_, events) => {
                self.pair.on_tap(events, context)?;
                if self.pair.has_more() { self.receiver.wake() } else { Ok(()) }
            }
        }
    }

    fn deactivate(&mut self, context: &mut Context) {
        self.receiver.close(self.pair.leave(context));
        // Not watched where activation failed.
        let _ = context.watcher.remove(self.receiver.as_raw_fd());
    }

    /// Ten bytes: version, little-endian, and the address. The tap stays where it is.
    fn save(&self) -> Result<Vec<u8>, Error> {
        Ok([&VERSION.to_le_bytes()[..], &self.mac].concat())
    }

    /// Takes the saved address over: the guest goes by what it knew.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        match state.split_first_chunk() {
            Some((&version, mac)) if u32::from_le_bytes(version) == VERSION => {
                let mac = mac.try_into().map_err(|_| Error::Protocol("malformed state of a network device"))?;
                check(mac)?;
                self.mac = mac;
                Ok(())
            }
            _ => Err(Error::Protocol("a network device's state of another version")),
        }
    }
}
