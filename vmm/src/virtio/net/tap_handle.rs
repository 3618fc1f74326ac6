//! Taps that come and go while the guest uses the device.
//!
//! An active device's worker has the tap: [`TapHandle`] sends it a [`Request`] and waits for the answer. The tap of an
//! inactive device is kept here, and replaced at once.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use crate::virtio::Error;

/// The worker never waits for anything, but the host may be short of time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Attaches a tap to a device and detaches it. Each call blocks until the device's worker has done it.
#[derive(Clone)]
pub struct TapHandle(Arc<Shared>);

/// The device's end of a [`TapHandle`].
pub(super) struct TapReceiver(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Readable when there are requests, or when the worker asked to be called again.
    wake: EventFd,
}

enum State {
    /// No worker runs; the tap, if any, is kept here.
    Idle(Option<Tap>),
    /// A worker runs and has the tap; requests that it has not taken yet.
    Active(Vec<Request>),
    /// The device was dropped.
    Gone,
}

/// Asks the worker to replace its tap by this one, or by none.
pub(super) struct Request {
    pub tap: Option<Tap>,
    done: Sender<Result<(), Error>>,
}

/// Handle and receiver of one device.
pub(super) fn channel() -> Result<(TapHandle, TapReceiver), Error> {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let wake = wake.map_err(|error| Error::Host("make an eventfd", error))?;
    let shared = Arc::new(Shared { state: Mutex::new(State::Idle(None)), wake });
    Ok((TapHandle(shared.clone()), TapReceiver(shared)))
}

impl TapHandle {
    /// Connects the guest to this tap, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, in the place of one that is there.
    /// A device that is not active keeps the tap until it is.
    ///
    /// # Errors
    /// The descriptor is no such tap, or the device is gone.
    pub fn attach(&self, tap: OwnedFd) -> Result<(), Error> {
        let tap = Tap::new(tap).map_err(|error| Error::Host("use a tap", error))?;
        self.replace(Some(tap))
    }

    /// Connects the guest to a socket whose messages are frames, in a tap's stead.
    #[cfg(feature = "driver")]
    pub fn attach_socket(&self, socket: OwnedFd) -> Result<(), Error> {
        self.replace(Some(Tap::of_socket(socket, Arc::default())))
    }

    /// Closes the tap, if there is one. What the guest sends from now on is dropped.
    ///
    /// # Errors
    /// The device is gone.
    pub fn detach(&self) -> Result<(), Error> {
        self.replace(None)
    }

    pub(super) fn replace(&self, tap: Option<Tap>) -> Result<(), Error> {
        const GONE: Error = Error::Protocol("the network device is gone");
        const BUSY: Error = Error::Protocol("the network device does not answer");
        let Some(answer) = self.0.request(tap).ok_or(GONE)? else { return Ok(()) };
        self.0.wake()?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|why| match why {
            RecvTimeoutError::Timeout => Err(BUSY),
            RecvTimeoutError::Disconnected => Err(GONE),
        })
    }
}

impl Shared {
    /// Replaces the tap at once (`Some(None)`), or hands the request to the worker and returns where the answer will be;
    /// `None` without a device.
    fn request(&self, tap: Option<Tap>) -> Option<Option<Receiver<Result<(), Error>>>> {
        match &mut *self.state() {
            State::Idle(kept) => {
                *kept = tap;
                Some(None)
            }
            State::Active(requests) => {
                let (done, answer) = mpsc::channel();
                requests.push(Request { tap, done });
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

impl Request {
    /// Answers the caller; false when it has given up.
    pub fn answer(self, result: Result<(), Error>) -> bool {
        self.done.send(result).is_ok()
    }
}

impl TapReceiver {
    /// Gives the tap to a worker that begins.
    pub fn open(&self) -> Option<Tap> {
        match std::mem::replace(&mut *self.0.state(), State::Active(Vec::new())) {
            State::Idle(tap) => tap,
            State::Active(_) | State::Gone => None,
        }
    }

    /// Takes the tap back from a worker that ends, unless a request that it did not come to replaces the tap.
    pub fn close(&self, mut tap: Option<Tap>) {
        let mut state = self.0.state();
        if let State::Active(requests) = &mut *state {
            for mut request in requests.drain(..) {
                tap = request.tap.take();
                request.answer(Ok(()));
            }
            *state = State::Idle(tap);
        }
    }

    /// Answers the event of [`TapReceiver::as_raw_fd`]: takes the requests so far.
    pub fn take_requests(&self) -> Vec<Request> {
        // Fails only when there is nothing to take back.
        let _ = self.0.wake.read();
        match &mut *self.0.state() {
            State::Active(requests) => std::mem::take(requests),
            State::Idle(_) | State::Gone => Vec::new(),
        }
    }

    /// Has the worker called again once it has served everything else.
    pub fn wake(&self) -> Result<(), Error> {
        self.0.wake()
    }
}

impl AsRawFd for TapReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }
}

impl Drop for TapReceiver {
    fn drop(&mut self) {
        *self.0.state() = State::Gone;
    }
}
