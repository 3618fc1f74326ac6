//! A pair of queues behind the first: a device to its own worker, whose only queues they are.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::pair::{BATCH, Pair};
use super::tap::Tap;
use super::{Counters, QUEUE_SIZE, RX, TAP, TX, WAKE};
use crate::virtio::{Context, Device, Error, Event};

/// How often a ring full of frames can be transmitted from.
const LEFT: usize = QUEUE_SIZE as usize / BATCH;

/// A further pair, and its queue of the tap.
pub struct Lane {
    /// While no worker has it.
    pub tap: Option<Tap>,
    pair: Pair,
    /// Has it called again.
    wake: EventFd,
    /// Whether all went well since the worker began.
    sound: bool,
}

impl Lane {
    /// One without a tap.
    ///
    /// # Errors
    /// What `eventfd` gave.
    pub fn new(counters: Arc<Counters>) -> Result<Self, Error> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let wake = wake.map_err(|error| Error::Host("make an eventfd", error))?;
        Ok(Self { tap: None, pair: Pair::new((RX, TX), counters), wake, sound: true })
    }

    fn serve(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        match event {
            Event::Queue(RX) => self.pair.on_room(context)?,
            Event::Queue(_) => self.pair.transmit(context)?,
            Event::Fd(TAP, events) => self.pair.on_tap(events, context)?,
            Event::Fd(..) => {
                // Fails only when there is nothing to take back.
                let _ = self.wake.read();
                self.pair.transmit(context)?;
            }
        }
        if !self.pair.has_more() {
            return Ok(());
        }
        self.wake.write(1).map_err(|error| Error::Host("wake a network device", error))
    }
}

impl Device for Lane {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn activate(&mut self, features: u64, context: &mut Context) -> Result<(), Error> {
        let watched = context.watcher.add(self.wake.as_raw_fd(), WAKE, libc::EPOLLIN as u32);
        watched.map_err(|error| Error::Host("watch an eventfd", error))?;
        self.pair.enter(features, self.tap.take(), context)
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        let served = self.serve(event, context);
        self.sound = served.is_ok();
        served
    }

    /// A driver that stops using a pair does not look after the frames in it any more: they are sent before.
    fn deactivate(&mut self, context: &mut Context) {
        for _ in 0..LEFT {
            self.sound = self.sound && self.pair.transmit(context).is_ok() && self.pair.has_more();
        }
        self.tap = self.pair.leave(context);
        // Fails only where it is not watched.
        let _ = context.watcher.remove(self.wake.as_raw_fd());
    }
}
