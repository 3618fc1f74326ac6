//! Being in namespaces of others for a moment: what is cloned or opened meanwhile is theirs.
//!
//! It is the agent itself that goes there, since only it has all rights in all of them. It has one thread and
//! nothing waits meanwhile, so nobody else notices.

use crate::error::{Context, Result};
use crate::log;
use crate::sys;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// A process and the kinds (`CLONE_NEW*`) of its namespaces that are visited.
pub type Stay<'a> = (&'a OwnedFd, u64);

/// Kinds that can be visited, and what the kernel calls them. A pid namespace is only one for children.
const KINDS: [(libc::c_int, &str); 6] = [
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (libc::CLONE_NEWNS, "mnt"),
];

/// Does something there, and comes back in any case.
///
/// # Errors
/// [`Errno::SRCH`] inside when a process is gone; outside when a namespace cannot be joined or left.
pub fn during<T>(stays: &[Stay<'_>], act: impl FnOnce() -> T) -> Result<std::result::Result<T, Errno>> {
    let own = own_namespaces(stays.iter().fold(0, |all, (_, kinds)| all | kinds))?;
    let result = stays.iter().try_for_each(|(pidfd, kinds)| join(pidfd, *kinds)).map(|()| act());
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

fn join(fd: &OwnedFd, kinds: u64) -> std::result::Result<(), Errno> {
    move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::from_bits_retain(kinds as u32))
}

/// The way back.
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
    let copied = during(&[(pidfd, libc::CLONE_NEWNS as u64)], || sys::copy_mount(path))?;
    copied.and_then(|copied| copied).context(|| format!("copy the mount at {path} of the other container"))
}
