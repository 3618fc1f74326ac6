//! Network namespaces, and running code inside of one.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns};

/// Handle of a network namespace; the default is the one of this process.
#[derive(Clone, Default)]
pub struct NetworkNamespace(Option<Arc<OwnedFd>>);

impl NetworkNamespace {
    /// Handle for the namespace of a descriptor.
    pub fn of(namespace: OwnedFd) -> Self {
        Self(Some(Arc::new(namespace)))
    }

    /// Descriptor of this process's namespace, to be handed on.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn own() -> anyhow::Result<OwnedFd> {
        const OWN: &str = "/proc/self/ns/net";
        File::open(OWN).map(OwnedFd::from).with_context(|| format!("open {OWN}"))
    }

    /// Runs `work` in the namespace, and waits for it. Sockets that it opens belong to that namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
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

/// Runs `work` in a network namespace, on a thread of its own: a thread cannot leave the namespace again.
///
/// # Errors
/// The namespace cannot be entered, or `work` fails.
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
