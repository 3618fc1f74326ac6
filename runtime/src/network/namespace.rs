//! Network namespaces, and running code inside of one.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::plan::NetworkPlan;

/// File of the network namespace that this process is in.
const OWN: &str = "/proc/self/ns/net";

/// Opens the network namespace of a plan, which may have to be made first. Only for a process of one thread.
///
/// # Errors
/// The namespace is not there, or cannot be made.
pub fn open(plan: &NetworkPlan) -> anyhow::Result<OwnedFd> {
    match plan {
        NetworkPlan::New => make().context("make a network namespace"),
        NetworkPlan::Path(path) => {
            let opened = File::open(path).map(OwnedFd::from);
            opened.with_context(|| format!("open network namespace {}", path.display()))
        }
    }
}

/// Makes a namespace, which lasts as long as its descriptor or processes in it.
fn make() -> anyhow::Result<OwnedFd> {
    let own = File::open(OWN).with_context(|| format!("open {OWN}"))?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = File::open(OWN);
    setns(&own, CloneFlags::CLONE_NEWNET).context("return to the network namespace before")?;
    Ok(made.with_context(|| format!("open {OWN}"))?.into())
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
