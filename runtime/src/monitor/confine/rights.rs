//! Rights over the host: none. What the process may still do to the files that it serves, it may in a user namespace of its own.

use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use rustix::thread::CapabilitySet;

use crate::confinement::{empty_bounding_set, fix_capabilities, keep};
use crate::control::Reply;
use crate::host::monitor_namespaces::{self, Volume};
use crate::host::requirements::{Confinement, Requirement};
use crate::ipc;

/// Capabilities of the threads that serve files, the device's own and those of vCPUs, in the monitor's own user namespace: over every file of the shares, whoever
/// owns it, and over nothing else. Which of them a container's files are served with is the policy of each share, since other
/// containers can join the VM.
pub const FILES: CapabilitySet = CapabilitySet::CHOWN
    // The guest's kernel has checked permissions, with groups and capabilities that are unknown here.
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    // chmod, utimens, ACLs, O_NOATIME, sticky directories and protected hard links.
    .union(CapabilitySet::FOWNER)
    // setuid and setgid bits stay where the guest's kernel leaves them.
    .union(CapabilitySet::FSETID)
    // New files belong to the process that makes them.
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    // File capabilities.
    .union(CapabilitySet::SETFCAP);

/// Capabilities of the main thread, and of threads that it starts for other things than devices: sockets of the host are connected to
/// whoever owns them.
pub const MAIN: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// Capabilities of the process that makes device nodes, in the host's user namespace.
pub const NODES: CapabilitySet =
    CapabilitySet::MKNOD.union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::SETUID).union(CapabilitySet::SETGID);

/// Goes into a user namespace where ids are the host's. To be called while there is one thread, after everything that needs a
/// right over the host; the command at the other end of the socket writes the ids, and mounts the volumes later.
///
/// # Errors
/// There can be no user namespace; the command is gone, or may not write the ids.
pub fn leave_the_host(command: &UnixStream, volumes: Vec<Volume>, confinement: Confinement) -> anyhow::Result<()> {
    let needs_ids = confinement.user_namespace;
    if needs_ids {
        let left = monitor_namespaces::leave_user_namespace();
        left.map_err(|error| Requirement::UserNamespaces.missing(format!("{error:#}")))?;
    }
    ipc::send(command, &Reply::LeftHost { needs_ids, volumes })?;
    match ipc::receive(command).context("the ids of the monitor's user namespace")? {
        Some(Reply::Done) => {}
        _ => bail!("the command ended before the monitor had left the host"),
    }
    fix_capabilities().context("fix the monitor's capabilities")?;
    empty_bounding_set();
    keep(FILES).context("drop the monitor's capabilities")
}
