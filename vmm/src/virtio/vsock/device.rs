//! The device proper: three rings, the worker's time between them, and the saved state.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use vmm_sys_util::eventfd::EventFd;

use super::handle::{Connect, Handle, Listeners};
use super::muxer::{MAX_CONNECTIONS, MAX_RESETS, Muxer};
use super::packet::HOST_CID;
use crate::virtio::queue::Outcome;
use crate::virtio::{Context, Device, Error, Event};

/// Index of the ring with packets for the guest.
const RX: usize = 0;
/// Index of the ring with packets from the guest.
const TX: usize = 1;
/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, section 5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Token of the wake-up descriptor: no connection's, for none has both ports 2³²−1.
const WAKE: u64 = u64::MAX;
/// Chains of one ring served before the other one has its turn, and how often both have theirs before
/// the worker has its own: a guest that never stops must not keep it.
const BATCH: usize = 256;
const ROUNDS: usize = 4;
/// First field of the saved state.
const STATE_VERSION: u32 = 1;

/// Creates the device for a guest of this context identifier (3 or more), and the handle by which the
/// host opens and accepts streams.
///
/// # Errors
/// `InvalidInput` for a reserved identifier, or what `eventfd` gave.
pub fn new(guest_cid: u64) -> io::Result<(Vsock, Handle)> {
    if guest_cid <= HOST_CID || guest_cid >= u64::from(u32::MAX) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let wake = Arc::new(EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?);
    let listeners = Arc::new(Listeners::default());
    let (sender, commands) = mpsc::channel();
    let handle = Handle::new(sender, wake.clone(), listeners.clone());
    let muxer = Muxer::new(guest_cid, listeners.clone());
    Ok((Vsock { guest_cid, muxer, commands, wake, listeners, tx_waiting: false }, handle))
}

/// The socket device. Connections survive a stop and a new activation, and end when the driver resets
/// the device or the device is dropped.
///
/// A snapshot holds no connection, only the ports of those that there were: a restored device sends `RST` for each before
/// any other packet. These arrive in order with what follows. A transport reset on the event ring would not: a driver may
/// see it after the first new connection and end that one too. So the event
/// ring is there, as it has to be, and stays silent; the context identifier can't change.
pub struct Vsock {
    guest_cid: u64,
    muxer: Muxer,
    commands: Receiver<Connect>,
    wake: Arc<EventFd>,
    listeners: Arc<Listeners>,
    /// Whether the tx ring may hold packets.
    tx_waiting: bool,
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256, 8]
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn activate(&mut self, _features: u64, context: &mut Context) -> Result<(), Error> {
        let add = context.watcher.add(self.wake.as_raw_fd(), WAKE, libc::EPOLLIN as u32);
        add.map_err(|error| Error::Host("watch the wake-up descriptor", error))?;
        self.tx_waiting = true;
        self.serve(context)
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        match event {
            Event::Queue(index) => self.tx_waiting |= index == TX,
            Event::Fd(WAKE, _) => {
                // Fails only when there is nothing to take back.
                let _ = self.wake.read();
            }
            Event::Fd(token, events) => self.muxer.on_socket(token, events),
        }
        self.serve(context)
    }

    fn deactivate(&mut self, context: &mut Context) {
        self.muxer.unwatch(context.watcher);
        let _ = context.watcher.remove(self.wake.as_raw_fd());
    }

    fn reset(&mut self) {
        self.muxer.reset();
        self.tx_waiting = false;
    }

    /// Little-endian: version (u32), guest CID (u64), next own port (u32), then for each connection the
    /// guest's port and the host's (u32 each).
    fn save(&self) -> Result<Vec<u8>, Error> {
        let (tokens, next_port) = self.muxer.state();
        let mut state = STATE_VERSION.to_le_bytes().to_vec();
        state.extend(self.guest_cid.to_le_bytes());
        state.extend(next_port.to_le_bytes());
        state.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
        Ok(state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let malformed = Error::Protocol("malformed state of a socket device");
        let Some((&version, state)) = state.split_first_chunk() else { return Err(malformed) };
        let Some((&guest_cid, state)) = state.split_first_chunk() else { return Err(malformed) };
        let Some((&next_port, state)) = state.split_first_chunk() else { return Err(malformed) };
        let (tokens, rest) = state.as_chunks();
        let bounded = rest.is_empty() && tokens.len() <= 2 * (MAX_CONNECTIONS + MAX_RESETS);
        if u32::from_le_bytes(version) != STATE_VERSION || !bounded {
            return Err(malformed);
        }
        if u64::from_le_bytes(guest_cid) != self.guest_cid {
            return Err(Error::Protocol("a socket device saved with another context identifier"));
        }
        self.muxer.set_state(tokens.iter().copied().map(u64::from_le_bytes), u32::from_le_bytes(next_port));
        Ok(())
    }
}

impl Vsock {
    /// The table of connections.
    #[cfg(test)]
    pub(super) fn muxer(&mut self) -> &mut Muxer {
        &mut self.muxer
    }

    /// Serves both rings in turn, then has the sockets watched for what is missing. What is left when
    /// the time is up goes on with the next wake-up.
    fn serve(&mut self, context: &mut Context) -> Result<(), Error> {
        for connect in self.commands.try_iter() {
            self.muxer.connect(connect);
        }
        let mut more = true;
        for _ in 0..ROUNDS {
            self.serve_tx(context)?;
            let rx_left = self.serve_rx(context)?;
            more = rx_left || self.tx_waiting && !self.muxer.is_congested();
            if !more {
                break;
            }
        }
        self.muxer.watch(context.watcher);
        if more {
            self.wake.write(1).map_err(|error| Error::Host("wake up", error))?;
        }
        Ok(())
    }

    fn serve_tx(&mut self, context: &mut Context) -> Result<(), Error> {
        if !std::mem::take(&mut self.tx_waiting) {
            return Ok(());
        }
        let mut left = BATCH;
        let Some(ring) = context.rings.get_mut(TX) else { return Ok(()) };
        ring.serve(context.memory, |chain| {
            if left == 0 || self.muxer.is_congested() {
                self.tx_waiting = true;
                return Ok(Outcome::Later);
            }
            left -= 1;
            self.muxer.receive(chain)
        })
    }

    /// Sends until there is nothing more, no room or no time; whether it was the latter.
    fn serve_rx(&mut self, context: &mut Context) -> Result<bool, Error> {
        let mut left = BATCH;
        let Some(ring) = context.rings.get_mut(RX) else { return Ok(false) };
        if self.muxer.has_output() {
            ring.serve(context.memory, |chain| {
                if left == 0 || !self.muxer.has_output() {
                    return Ok(Outcome::Later);
                }
                left -= 1;
                self.muxer.send(chain)
            })?;
        }
        Ok(left == 0 && self.muxer.has_output())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.listeners.close();
    }
}
