//! A pair of queues and the tap that they share: frames one way and the other.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

use super::counters::Counters;
use super::frame::{ETHERNET, HEADER, LONGEST};
use super::tap::Tap;
use crate::virtio::queue::{Buffers, Fill, Outcome, Room, Wanted};
use crate::virtio::{Context, Error};

/// Index of the queue with buffers for frames to the guest.
pub const RX: usize = 0;
/// Index of the queue with frames from the guest.
pub const TX: usize = 1;
/// Token of the tap.
pub(super) const TAP: u64 = 1;
/// Frames of one direction before the worker sees to everything else: a flood must not keep it busy. Few enough that the
/// guest hears of the first while the last are read.
pub(super) const BATCH: usize = 64;
/// Offsets of `flags` and `num_buffers` in the header.
const FLAGS: usize = 0;
const NUM_BUFFERS: usize = 10;

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;

/// The pair of queues of a device, and its tap.
pub struct Pair {
    tap: Option<Tap>,
    /// Events that the tap is watched for.
    watched: u32,
    features: u64,
    /// Whether the driver has too few buffers. It notifies when it adds some; the tap keeps its frames until then.
    rx_short: bool,
    /// Whether the tap takes no more for now: the driver's frames stay in the ring until it does.
    tx_full: bool,
    /// Whether there may be frames in the ring that there was no time for.
    tx_left: bool,
    counters: Arc<Counters>,
}

impl Pair {
    /// The pair without a tap.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { tap: None, watched: 0, features: 0, rx_short: false, tx_full: false, tx_left: false, counters }
    }

    /// Begins to serve a driver that took these features, with the tap that was attached before, if any.
    pub fn enter(&mut self, features: u64, tap: Option<Tap>, context: &mut Context) -> Result<(), Error> {
        self.features = features;
        // A tap whose interface was removed meanwhile counts as none; whoever removed it attaches another.
        self.replace(tap, context).or_else(|_| self.replace(None, context))
    }

    /// Stops serving the driver and gives the tap back.
    pub fn leave(&mut self, context: &mut Context) -> Option<Tap> {
        let tap = self.tap.take()?;
        // Fails only where it is not watched.
        let _ = context.watcher.remove(tap.as_raw_fd());
        Some(tap)
    }

    /// Replaces the tap by another one or none, and closes it. On an error nothing has changed.
    pub fn replace(&mut self, tap: Option<Tap>, context: &mut Context) -> Result<(), Error> {
        if let Some(tap) = &tap {
            tap.set_offloads(self.features).map_err(|error| Error::Host("set a tap's offloads", error))?;
            context.watcher.add(tap.as_raw_fd(), TAP, IN).map_err(|error| Error::Host("watch a tap", error))?;
        }
        drop(self.leave(context));
        (self.tap, self.watched) = (tap, IN);
        (self.rx_short, self.tx_full) = (false, false);
        Ok(())
    }

    /// Serves a tap that has these events.
    pub fn on_tap(&mut self, events: u32, context: &mut Context) -> Result<(), Error> {
        if events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0 && self.tap.as_ref().is_some_and(Tap::is_gone) {
            self.replace(None, context)?;
            return self.transmit(context);
        }
        if events & IN != 0 {
            self.receive(context)?;
        }
        if events & OUT != 0 {
            self.tx_full = false;
            self.transmit(context)?;
        }
        Ok(())
    }

    /// Serves a driver that added buffers to be filled. Frames may have waited for them; if not, the tap has an event later.
    pub fn on_room(&mut self, context: &mut Context) -> Result<(), Error> {
        if self.rx_short { self.receive(context) } else { Ok(()) }
    }

    /// Whether [`Pair::transmit`] is to be called again.
    pub fn has_more(&self) -> bool {
        self.tx_left
    }

    /// Fills the driver's buffers until the tap has no frame, the driver no room, or [`BATCH`] is reached.
    fn receive(&mut self, context: &mut Context) -> Result<(), Error> {
        let (Some(tap), Some(ring)) = (&self.tap, context.rings.get_mut(RX)) else { return Ok(()) };
        let (features, counters) = (self.features, &self.counters.received);
        let (mut left, mut iovecs) = (BATCH, Vec::new());
        self.rx_short = ring.fill(context.memory, &wanted(features), |room| {
            if left == 0 {
                return Ok(Fill::Later);
            }
            left -= 1;
            match tap.receive(room, &mut iovecs) {
                Ok(bytes) if (HEADER + ETHERNET..=room.len()).contains(&bytes) => {
                    finish_header(room, bytes, features);
                    counters.pass(bytes - HEADER);
                    return Ok(Fill::Used(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Fill::Later),
                Ok(_) | Err(_) => counters.drop_one(),
            }
            Ok(Fill::Unused)
        })?;
        self.watch(context)
    }

    /// Gives the driver's frames to the tap until there is none, the tap is full, or [`BATCH`] is reached.
    pub fn transmit(&mut self, context: &mut Context) -> Result<(), Error> {
        self.tx_left = false;
        let Some(ring) = context.rings.get_mut(TX) else { return Ok(()) };
        if self.tx_full {
            return Ok(());
        }
        let (mut left, mut iovecs) = (BATCH, Vec::new());
        ring.serve(context.memory, |chain| {
            if left == 0 {
                self.tx_left = true;
                return Ok(Outcome::Later);
            }
            left -= 1;
            self.tx_full = !self.send(&chain.readable, &mut iovecs);
            Ok(if self.tx_full { Outcome::Later } else { Outcome::Used(0) })
        })?;
        self.watch(context)
    }

    /// Sends a frame or drops it; false when the tap is full. What the driver may write to stays as it is.
    fn send(&self, frame: &Buffers, iovecs: &mut Vec<libc::iovec>) -> bool {
        let counters = &self.counters.transmitted;
        match &self.tap {
            Some(tap) if (HEADER + ETHERNET..=LONGEST).contains(&frame.len()) => match tap.send(frame, iovecs) {
                Ok(()) => counters.pass(frame.len() - HEADER),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Also when the host has no memory for it: nobody would say when there is some again.
                Err(_) => counters.drop_one(),
            },
            _ => counters.drop_one(),
        }
        true
    }

    /// Has the tap watched for what the pair waits for. A tap watched for nothing still reports that it is gone.
    fn watch(&mut self, context: &mut Context) -> Result<(), Error> {
        let Some(tap) = &self.tap else { return Ok(()) };
        let wanted = if self.rx_short { 0 } else { IN } | if self.tx_full { OUT } else { 0 };
        if wanted != self.watched {
            let changed = context.watcher.modify(tap.as_raw_fd(), TAP, wanted);
            changed.map_err(|error| Error::Host("watch a tap", error))?;
            self.watched = wanted;
        }
        Ok(())
    }
}

/// The room wanted for a frame: for the longest one, in as many chains as that takes or, when the driver does not merge
/// chains, in one, whose length is the driver's choice.
fn wanted(features: u64) -> Wanted {
    let merging = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
    Wanted { bytes: LONGEST, chains: if merging { usize::MAX } else { 1 }, least: HEADER }
}

/// Writes into the header how many chains the frame is in, which the tap leaves out. A driver that did not take the feature
/// for checksums need not know what the flags mean, so they are cleared.
fn finish_header(room: &Room, bytes: usize, features: u64) {
    let chains = u16::try_from(room.chains(bytes)).unwrap_or(u16::MAX);
    room.write_at(NUM_BUFFERS, &chains.to_le_bytes());
    if features & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
        room.write_at(FLAGS, &[0]);
    }
}
