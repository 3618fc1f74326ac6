//! The join proxy: the process that stands for a container in another one's VM.
//!
//! Engines need a process of each container's own: in its cgroup and namespaces, with an exit code. The proxy passes the
//! container's parcel on to the monitor of the VM, unread, then the signals that it gets, and ends as the container does.
//! Killing the proxy kills the container; the end of the VM is the container's end.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::UnixStream;

use crate::control::{Reply, Request};
use crate::host::console;
use crate::ipc::{self, Descriptor, Frame};
use crate::log;
use crate::monitor::confine::{self, View};
use crate::monitor::host_process;
use crate::monitor::oom_trigger::{self, HostOomTrigger};
use crate::parcel::{Label, VmTarget};

/// Exit code of a container whose VM ended under it: as if it had been killed.
const VM_ENDED: u8 = 128 + libc::SIGKILL as u8;

/// How long the monitor of the VM may take: longer than all that it waits for on the way.
const PATIENCE: Duration = Duration::from_secs(300);

/// A container that has been created in the other VM.
struct Joined {
    /// The connection to the VM's monitor, which stands for the container.
    stream: UnixStream,
    oom_trigger: Option<HostOomTrigger>,
    terminal: Option<OwnedFd>,
}

/// From the go signal to the exit code.
pub async fn live(label: Label, parcel: Frame, command: std::os::unix::net::UnixStream, nodes: Option<OwnedFd>) -> u8 {
    let joined = join(label, parcel, &command, nodes).await;
    let heard = host_process::answer(&command, &joined);
    drop(command);
    match joined {
        Ok(joined) if heard => attend(joined).await,
        // The command is gone, so is the container.
        _ => 1,
    }
}

/// Hands everything over; returns when the container is created.
async fn join(
    label: Label,
    parcel: Frame,
    command: &std::os::unix::net::UnixStream,
    nodes: Option<OwnedFd>,
) -> anyhow::Result<Joined> {
    let VmTarget::Joined(monitor) = label.target else { bail!("the parcel is for a VM that is to be made") };
    let monitor = std::os::unix::net::UnixStream::from(monitor.into_owned()?);
    let terminal = label.terminal.map(Descriptor::into_owned).transpose()?;
    if let Some(slave) = &terminal {
        console::become_controlling(slave.as_fd())?;
    }
    let oom_trigger = HostOomTrigger::find(&label.cgroups)?;
    let view = View::new(label.mounts)?;
    ipc::send(&monitor, &Request::Join(nodes.map(Into::into)))?;
    parcel.send(&monitor).context("pass the container on to the monitor of the VM")?;
    // The monitor has them now; kept here they would keep an engine's pipes, and what it wants to unmount, busy.
    drop(parcel);
    confine::leave_the_host(command, view.enter()?, label.confinement)?;
    oom_trigger.iter().for_each(HostOomTrigger::be_as_usual);
    confine::confine_proxy().context("confine the join proxy")?;
    monitor.set_nonblocking(true)?;
    let stream = UnixStream::from_std(monitor)?;
    created(&stream).await?;
    Ok(Joined { stream, oom_trigger, terminal })
}

/// Waits for the container to be created. A monitor that is stopped (SIGSTOP) is not waited for without end.
async fn created(stream: &UnixStream) -> anyhow::Result<()> {
    const WHAT: &str = "no answer from the monitor of the VM";
    match tokio::time::timeout(PATIENCE, ipc::receive_async(stream)).await.context(WHAT)?.context(WHAT)? {
        Some(Reply::Started) => Ok(()),
        Some(Reply::Failed(why)) => bail!("{why}"),
        _ => bail!("the VM ended before the container was created in it"),
    }
}

/// Passes signals on until the container's end.
async fn attend(joined: Joined) -> u8 {
    let Joined { stream, oom_trigger, terminal } = joined;
    let stream = Rc::new(stream);
    let to_monitor = Rc::clone(&stream);
    host_process::follow_signals(terminal, move |request| {
        let stream = Rc::clone(&to_monitor);
        // A monitor that is gone is noticed on the reading side.
        async move { drop(ipc::send_async(&stream, &request).await) }
    });
    loop {
        match ipc::receive_async(&stream).await {
            Ok(Some(Reply::Exited(code))) => return code,
            Ok(Some(Reply::OutOfMemory)) => oom_trigger::report(oom_trigger.as_ref()).await,
            Ok(Some(other)) => log::debug(&format!("an answer that nobody waits for: {other:?}")),
            Ok(None) | Err(_) => return VM_ENDED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_is_stopped_is_not_waited_for_without_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (proxy, _monitor) = UnixStream::pair().unwrap();
            let error = created(&proxy).await.unwrap_err();
            assert!(error.to_string().starts_with("no answer from the monitor of the VM"), "{error:#}");
        });
    }
}
