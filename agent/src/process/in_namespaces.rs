//! Runs a function while the agent is in namespaces of a container: what is cloned or opened meanwhile is the
//! container's.
//!
//! The agent itself goes there, since only the agent has all rights in all of them. There is one thread and the
//! function does not wait, so nobody else notices.

use crate::error::{Context, Result};
use crate::log;
use crate::process::handle::Process;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Namespaces of a process that the agent goes to.
pub struct NamespaceTarget<'a> {
    /// The process.
    pub pidfd: &'a OwnedFd,
    /// Kinds of namespaces (`CLONE_NEW*`).
    pub kinds: u64,
}

/// Kinds that can be entered, and what the kernel calls them. A pid namespace is only one for children.
const KINDS: [(libc::c_int, &str); 6] = [
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (libc::CLONE_NEWNS, "mnt"),
];

/// Calls `act` in the namespaces of the targets, and comes back in any case.
///
/// # Errors
/// [`Errno::SRCH`] inside when a process is gone; outside when a namespace cannot be joined or left.
pub fn run<T>(targets: &[NamespaceTarget<'_>], act: impl FnOnce() -> T) -> Result<std::result::Result<T, Errno>> {
    let own = own_namespaces(targets.iter().fold(0, |all, target| all | target.kinds))?;
    let result = targets.iter().try_for_each(|target| join(target.pidfd, target.kinds)).map(|()| act());
    let back: Vec<_> = own.iter().map(|(name, kind, fd)| (name, join(fd, *kind))).collect();
    if let Some((name, Err(errno))) = back.iter().find(|(_, back)| back.is_err()) {
        // Whatever the agent did from here on would be done in the wrong place.
        log::error(&format!("return to own {name} namespace: {errno}"));
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    }
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(Errno::SRCH) => Ok(Err(Errno::SRCH)),
        Err(errno) => Err(errno).context(|| "join namespaces of a container"),
    }
}

/// Calls `act` in the network namespace of a container's init.
pub fn in_network<T>(init: &Process, act: impl FnOnce() -> T) -> Result<T> {
    let target = NamespaceTarget { pidfd: &init.pidfd, kinds: libc::CLONE_NEWNET as u64 };
    run(&[target], act)?.context(|| "enter the container's network")
}

fn join(fd: &OwnedFd, kinds: u64) -> std::result::Result<(), Errno> {
    move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::from_bits_retain(kinds as u32))
}

/// Descriptors of the agent's own namespaces of these kinds, to return to.
fn own_namespaces(kinds: u64) -> Result<Vec<(&'static str, u64, OwnedFd)>> {
    let mut own = Vec::new();
    for (kind, name) in KINDS.into_iter().filter(|(kind, _)| kinds & *kind as u64 != 0) {
        let path = format!("/proc/self/ns/{name}");
        let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        own.push((name, kind as u64, opened.context(|| format!("open {path}"))?));
    }
    Ok(own)
}

/// A copy of the mount that a process has at this path, not mounted anywhere.
pub fn copy_mount(pidfd: &OwnedFd, path: &str) -> Result<OwnedFd> {
    let target = NamespaceTarget { pidfd, kinds: libc::CLONE_NEWNS as u64 };
    let copied = run(&[target], || sys::copy_mount(path))?;
    copied.and_then(|copied| copied).context(|| format!("copy the mount at {path} of the other container"))
}
