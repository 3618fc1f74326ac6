//! Shares that come, change and go while the guest uses the device: of containers that join a machine, and policies.
//!
//! The device's worker has the table: [`Sharing`] sends it a change and waits for the answer.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::server::Server;
use super::{Policy, Share};
use crate::virtio::Error;

/// The worker does one request after another, and one may wait for a slow disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes the shares of a device. Each call blocks until the device's worker has done it, but for [`Sharing::unwaiting`].
#[derive(Clone)]
pub struct Sharing {
    changes: Sender<Change>,
    wake: Arc<EventFd>,
    waits: bool,
}

/// The worker's end of a [`Sharing`].
pub(super) struct ChangeReceiver {
    received: Receiver<Change>,
    /// Readable when there are changes.
    pub wake: Arc<EventFd>,
}

struct Change {
    what: What,
    /// Who waits for it.
    done: Option<Sender<Result<(), Error>>>,
}

enum What {
    Add(Vec<Share>),
    Remove(Vec<String>),
    SetPolicies(Vec<(String, Policy)>),
}

/// Handle and receiver of one device.
pub(super) fn channel() -> Result<(Sharing, ChangeReceiver), Error> {
    let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
    let wake = Arc::new(wake.map_err(|error| Error::Host("make an eventfd", error))?);
    let (changes, received) = mpsc::channel();
    Ok((Sharing { changes, wake: Arc::clone(&wake), waits: true }, ChangeReceiver { received, wake }))
}

impl Sharing {
    /// The same without a wait: the worker does it before the next request that it serves. For a device that vCPUs do not serve, which may
    /// be at a request that takes for ever, or not be in use yet.
    pub fn unwaiting(self) -> Self {
        Self { waits: false, ..self }
    }

    /// The opposite of [`Sharing::unwaiting`].
    pub fn waiting(self) -> Self {
        Self { waits: true, ..self }
    }

    /// Adds these shares, all or none of them.
    ///
    /// # Errors
    /// A name that is bad or taken, too few descriptors, or a device that is not in use.
    pub fn add(&self, shares: Vec<Share>) -> Result<(), Error> {
        self.ask(What::Add(shares))
    }

    /// Takes shares away with all that the guest knew or had open there: the guest gets `ESTALE` from now on. Unknown names
    /// are ignored.
    ///
    /// # Errors
    /// A device that is not in use.
    pub fn remove(&self, names: Vec<String>) -> Result<(), Error> {
        self.ask(What::Remove(names))
    }

    /// Has other policies hold for the shares of these names, for whatever the guest asks next.
    ///
    /// # Errors
    /// An unknown name, when some policies may hold and others not, or a device that is not in use.
    pub fn set_policies(&self, policies: Vec<(String, Policy)>) -> Result<(), Error> {
        self.ask(What::SetPolicies(policies))
    }

    fn ask(&self, what: What) -> Result<(), Error> {
        const GONE: Error = Error::Protocol("the file-system device is not in use");
        const BUSY: Error = Error::Protocol("the file-system device does not answer: is a disk of the host stuck?");
        let (done, answer) = mpsc::channel();
        let done = Some(done).filter(|_| self.waits);
        self.changes.send(Change { what, done }).map_err(|_| GONE)?;
        self.wake.write(1).map_err(|error| Error::Host("wake the file-system device", error))?;
        if !self.waits {
            return Ok(());
        }
        answer.recv_timeout(PATIENCE).unwrap_or_else(|why| match why {
            RecvTimeoutError::Timeout => Err(BUSY),
            RecvTimeoutError::Disconnected => Err(GONE),
        })
    }
}

impl ChangeReceiver {
    /// Answers the event of [`ChangeReceiver::wake`], which only says that there is something.
    pub fn woken(&self, server: &mut Server) {
        let _ = self.wake.read();
        self.apply(server);
    }

    /// Makes all changes asked for so far; costs next to nothing when there are none.
    pub fn apply(&self, server: &mut Server) {
        while let Ok(Change { what, done }) = self.received.try_recv() {
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
                What::SetPolicies(policies) => {
                    let mut policies = policies.into_iter();
                    (policies.try_for_each(|(name, policy)| server.set_policy(&name, policy)), Vec::new())
                }
            };
            if done.is_some_and(|done| done.send(result).is_err()) {
                // The caller has given up, and will not take them away.
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
