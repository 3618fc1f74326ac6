//! Shares that come and go while the guest uses the device: of containers that join a machine.
//!
//! The device's worker has the table, so others send it their wishes and wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::Share;
use super::server::Server;
use crate::virtio::Error;

/// The worker does one request after another, and one may wait for a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes the shares of a device. Its calls block until the worker has come to them.
#[derive(Clone)]
pub struct Sharing {
    wishes: Sender<Wish>,
    wake: Arc<EventFd>,
}

/// The worker's end.
pub(super) struct Wishes {
    received: Receiver<Wish>,
    /// Readable when there are some.
    pub wake: Arc<EventFd>,
}

struct Wish {
    what: What,
    done: Sender<Result<(), Error>>,
}

enum What {
    Add(Vec<Share>),
    Remove(Vec<String>),
}

/// Both ends.
pub(super) fn pair() -> Result<(Sharing, Wishes), Error> {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let wake = Arc::new(wake.map_err(|error| Error::Host("make an eventfd", error))?);
    let (wishes, received) = channel();
    Ok((Sharing { wishes, wake: Arc::clone(&wake) }, Wishes { received, wake }))
}

impl Sharing {
    /// Adds these shares, all or none of them.
    ///
    /// # Errors
    /// A name that is bad or taken, too few descriptors, or a device that is not in use.
    pub fn add(&self, shares: Vec<Share>) -> Result<(), Error> {
        self.ask(What::Add(shares))
    }

    /// Takes shares away with all that the guest knew or had open there: it gets `ESTALE` from now on. Names that
    /// there are none of are left out.
    ///
    /// # Errors
    /// A device that is not in use.
    pub fn remove(&self, names: Vec<String>) -> Result<(), Error> {
        self.ask(What::Remove(names))
    }

    fn ask(&self, what: What) -> Result<(), Error> {
        const GONE: Error = Error::Protocol("the file-system device is not in use");
        const BUSY: Error = Error::Protocol("the file-system device does not answer: is a disk of the host stuck?");
        let (done, answer) = channel();
        self.wishes.send(Wish { what, done }).map_err(|_| GONE)?;
        self.wake.write(1).map_err(|error| Error::Host("wake the file-system device", error))?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|why| match why {
            RecvTimeoutError::Timeout => Err(BUSY),
            RecvTimeoutError::Disconnected => Err(GONE),
        })
    }
}

impl Wishes {
    /// The event of [`Wishes::wake`]: it only says that there is something.
    pub fn woken(&self, server: &mut Server) {
        let _ = self.wake.read();
        self.fulfil(server);
    }

    /// Does all that was asked for so far; costs next to nothing when that is nothing.
    pub fn fulfil(&self, server: &mut Server) {
        while let Ok(Wish { what, done }) = self.received.try_recv() {
            let (result, added) = match what {
                What::Add(shares) => {
                    let names = shares.iter().map(|share| share.name.clone()).collect();
                    let result = add(server, shares);
                    let added = if result.is_ok() { names } else { Vec::new() };
                    (result, added)
                }
                What::Remove(names) => {
                    names.iter().for_each(|name| server.remove_share(name));
                    (Ok(()), Vec::new())
                }
            };
            if done.send(result).is_err() {
                // Whoever asked has given up, and will not take them away.
                added.iter().for_each(|name| server.remove_share(name));
            }
        }
    }
}

fn add(server: &mut Server, shares: Vec<Share>) -> Result<(), Error> {
    let mut added = Vec::new();
    for share in shares {
        let name = share.name.clone();
        if let Err(error) = server.add_share(share) {
            added.iter().for_each(|name: &String| server.remove_share(name));
            return Err(error);
        }
        added.push(name);
    }
    Ok(())
}
