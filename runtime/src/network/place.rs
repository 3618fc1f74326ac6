//! Network namespaces as places where something is done.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns};

/// The network namespace of this process, or another one.
#[derive(Clone, Default)]
pub struct Place(Option<Arc<OwnedFd>>);

impl Place {
    /// The one that a descriptor names.
    pub fn of(namespace: OwnedFd) -> Self {
        Self(Some(Arc::new(namespace)))
    }

    /// That of this process, as a descriptor to be handed on.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn own() -> anyhow::Result<OwnedFd> {
        const OWN: &str = "/proc/self/ns/net";
        File::open(OWN).map(OwnedFd::from).with_context(|| format!("open {OWN}"))
    }

    /// Does something there, and waits until it is done. What is opened there stays there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or those of the work.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        match &self.0 {
            None => work(),
            Some(namespace) => inside(Arc::clone(namespace), work),
        }
    }
}

/// Does something in a network namespace, on a thread that nobody needs afterwards, since it stays there.
pub fn inside<T: Send + 'static>(
    namespace: impl AsFd + Send + 'static,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let there = move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        work()
    };
    let thread = std::thread::Builder::new().spawn(there)?;
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}
