//! The network helper of a container, as the command starts it: see [`network::helper`](crate::network::helper).
//!
//! It is born in the container's cgroup, and ends when the monitor does: with the other end of its socket.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use anyhow::Context;

use crate::host::spawn::{self, Place, Process, Role};
use crate::ipc::{self, Descriptor};
use crate::network::messages::Setup;

/// Starts it in a network namespace; returns the process and the monitor's end of its socket.
///
/// # Errors
/// There can be no more processes.
pub fn start(
    setup: &Setup,
    network: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> anyhow::Result<(Process, Descriptor)> {
    let (ours, theirs) = ipc::pair()?;
    let ours = UnixStream::from(ours);
    ipc::send(&ours, setup).context("tell the network helper what it is for")?;
    let process = spawn::start(Role::NetworkHelper, &Place { socket: &theirs.into(), network, cgroup, stderr: false })?;
    Ok((process, ours.into()))
}
