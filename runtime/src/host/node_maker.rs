//! The process that makes device nodes, as `exec` starts it for a container that came without one: see
//! [`node_maker`](crate::monitor::node_maker).
//!
//! The process is in the container's cgroup, and in the mount and network namespaces of the container's process on the host. It is in
//! their user namespace no more than the one that a monitor forks: nodes are made with the host's rights.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, bail};

use crate::host::cgroup::HostCgroup;
use crate::host::requirements::Confinement;
use crate::host::spawn::{self, Place};
use crate::ipc::{self, Descriptor};
use crate::log;
use crate::monitor::node_maker::process;
use crate::state::{Life, State};

/// Starts it; returns the monitor's end of its socket. To be called while there is one thread.
///
/// # Errors
/// The container has ended, or there can be no more processes.
pub fn start(state: &State, confinement: Confinement) -> anyhow::Result<Descriptor> {
    let namespace = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", state.pid);
        File::open(&path).with_context(|| format!("open {path}"))
    };
    let (network, mounts) = (namespace("net")?, namespace("mnt")?);
    // If the pid is another process's by now, so may be the namespaces.
    if state.life() != Life::Alive {
        bail!("container not running");
    }
    let (ours, theirs) = ipc::pair()?;
    let cgroup = state.cgroup.as_ref().and_then(HostCgroup::open);
    let cgroup = cgroup.as_ref().map(AsFd::as_fd);
    let place =
        Place { socket: &theirs.into(), network: network.as_fd(), mounts: Some(mounts.as_fd()), cgroup, stderr: false };
    let log = log::file().map(|file| file.as_fd().as_raw_fd());
    let process = spawn::fork_of_this(process::NAME, &place, log, |socket| process::live(socket, confinement))?;
    if let Some(cgroup) = state.cgroup.as_ref().filter(|_| !process.placed) {
        cgroup.add(process.id())?;
    }
    Ok(ours.into())
}
