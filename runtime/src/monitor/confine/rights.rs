//! What the process has the command do for it.

use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};

use crate::control::Reply;
use crate::host::monitor_namespaces::Volume;
use crate::ipc;

/// Tells the command at the other end of the socket that nothing of the host is to be opened any more, and what is to be
/// mounted later.
///
/// # Errors
/// The command is gone.
pub fn leave_the_host(command: &UnixStream, volumes: Vec<Volume>) -> anyhow::Result<()> {
    ipc::send(command, &Reply::LeftHost { needs_ids: false, volumes })?;
    match ipc::receive(command).context("leave to go on")? {
        Some(Reply::Done) => Ok(()),
        _ => bail!("the command ended before the container was created"),
    }
}
