//! Taps that come and go while the guest uses the device.
//!
//! While the device is active its worker has the tap, so others send it their wishes and wait. While it is not, the
//! tap is here, and changed at once. A tap is as many descriptors as it has queues, or none.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use crate::virtio::Error;

/// The worker never waits for anything, but the host may be short of time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Plugs a tap into a device and pulls it out. Its calls block until the worker has come to them.
#[derive(Clone)]
pub struct Plug(Arc<Shared>);

/// The worker's end.
pub(super) struct Outlet(Arc<Shared>);

/// Wakes the worker.
pub(super) struct Waker(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Readable when there are wishes, or when the worker asked for a call.
    wake: EventFd,
}

enum State {
    /// No worker has the device.
    Idle(Vec<Tap>),
    /// One has, and the tap.
    Active(Vec<Wish>),
    /// The device is no more.
    Gone,
}

/// A tap, or none, in the place of what is there.
pub(super) struct Wish {
    pub tap: Vec<Tap>,
    done: Sender<Result<(), Error>>,
}

/// Both ends.
pub(super) fn pair() -> Result<(Plug, Outlet), Error> {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let wake = wake.map_err(|error| Error::Host("make an eventfd", error))?;
    let shared = Arc::new(Shared { state: Mutex::new(State::Idle(Vec::new())), wake });
    Ok((Plug(shared.clone()), Outlet(shared)))
}

impl Plug {
    /// Connects the guest to this tap, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`; one that is there is closed.
    /// A device that is not active yet keeps it until then.
    ///
    /// One with `IFF_MULTI_QUEUE` is several descriptors: all but the first are best detached (`TUNSETQUEUE`), since the
    /// device reads the others when its driver has asked for their pairs. A driver cannot have more pairs than its tap
    /// has descriptors.
    ///
    /// # Errors
    /// It is no such tap, has fewer descriptors than the driver uses pairs, or the device is gone.
    pub fn plug(&self, tap: Vec<OwnedFd>) -> Result<(), Error> {
        let tap: std::io::Result<Vec<Tap>> = tap.into_iter().map(Tap::new).collect();
        self.change(tap.map_err(|error| Error::Host("use a tap", error))?)
    }

    /// Closes the tap, if there is one. What the guest sends from now on is dropped.
    ///
    /// # Errors
    /// The device is gone.
    pub fn unplug(&self) -> Result<(), Error> {
        self.change(Vec::new())
    }

    pub(super) fn change(&self, tap: Vec<Tap>) -> Result<(), Error> {
        const GONE: Error = Error::Protocol("the network device is gone");
        const BUSY: Error = Error::Protocol("the network device does not answer");
        let Some(answer) = self.0.wish(tap).ok_or(GONE)? else { return Ok(()) };
        self.0.wake()?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|why| match why {
            RecvTimeoutError::Timeout => Err(BUSY),
            RecvTimeoutError::Disconnected => Err(GONE),
        })
    }
}

impl Shared {
    /// Does what was asked for, or has the worker do it and says where the answer will be; `None` without a device.
    fn wish(&self, tap: Vec<Tap>) -> Option<Option<Receiver<Result<(), Error>>>> {
        match &mut *self.state() {
            State::Idle(kept) => {
                *kept = tap;
                Some(None)
            }
            State::Active(wishes) => {
                let (done, answer) = channel();
                wishes.push(Wish { tap, done });
                Some(Some(answer))
            }
            State::Gone => None,
        }
    }

    fn wake(&self) -> Result<(), Error> {
        self.wake.write(1).map_err(|error| Error::Host("wake a network device", error))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so whoever panicked left it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wish {
    /// Answers; false when whoever asked has given up.
    pub fn done(self, result: Result<(), Error>) -> bool {
        self.done.send(result).is_ok()
    }
}

impl Outlet {
    /// A worker begins: the tap is its own from now on.
    pub fn open(&self) -> Vec<Tap> {
        match std::mem::replace(&mut *self.0.state(), State::Active(Vec::new())) {
            State::Idle(tap) => tap,
            State::Active(_) | State::Gone => Vec::new(),
        }
    }

    /// The worker ends, with this tap: it is kept here, unless others wished for another one.
    pub fn close(&self, mut tap: Vec<Tap>) {
        let mut state = self.0.state();
        if let State::Active(wishes) = &mut *state {
            for mut wish in wishes.drain(..) {
                tap = std::mem::take(&mut wish.tap);
                wish.done(Ok(()));
            }
            *state = State::Idle(tap);
        }
    }

    /// The event of [`Outlet::as_raw_fd`]: takes what was asked for so far.
    pub fn woken(&self) -> Vec<Wish> {
        // Fails only when there is nothing to take back.
        let _ = self.0.wake.read();
        match &mut *self.0.state() {
            State::Active(wishes) => std::mem::take(wishes),
            State::Idle(_) | State::Gone => Vec::new(),
        }
    }

    /// Has the worker called again once it has seen to everything else.
    pub fn wake(&self) -> Result<(), Error> {
        self.0.wake()
    }

    /// The same for other threads.
    pub fn waker(&self) -> Waker {
        Waker(self.0.clone())
    }
}

impl Waker {
    /// Has the worker called.
    pub fn wake(&self) -> Result<(), Error> {
        self.0.wake()
    }
}

impl AsRawFd for Outlet {
    fn as_raw_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        *self.0.state() = State::Gone;
    }
}
