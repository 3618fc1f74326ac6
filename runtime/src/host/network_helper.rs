//! The network helper of a container, as the command starts it: see [`network::helper`](crate::network::helper).
//!
//! It is born in the container's cgroup, and ends when the monitor does: with the other end of its socket. It is a fork of the
//! command: executing the binary once more would cost each start a hundredth and a half.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::Context;

use crate::host::spawn::{self, Place, Process};
use crate::ipc::{self, Descriptor};
use crate::log;
use crate::network::helper::{self, Setup};

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
    let place = Place { socket: &theirs.into(), network, mounts: None, cgroup, stderr: false };
    let log = log::file().map(|file| file.as_fd().as_raw_fd());
    let process = spawn::fork_of_this(c"network-helper", &place, log, |monitor| helper::run(monitor, setup));
    Ok((process.context("start the network helper")?, ours.into()))
}
