//! The join proxy: the process that stands for a container in another one's virtual machine.
//!
//! Engines need a process of each container's own: in its cgroup and namespaces, with an exit code. This one passes the
//! container's parcel on to the monitor of the machine, unread, then the signals that it gets, and ends as the container
//! does. When it is killed the container is; when the machine ends the container has ended.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Context, bail};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;

use crate::control::{Reply, Request};
use crate::ipc::{self, Descriptor, Frame};
use crate::monitor::confine::View;
use crate::monitor::oom_trigger::HostOomTrigger;
use crate::monitor::{FORWARDED, answer};
use crate::network::NetworkNamespace;
use crate::parcel::{Label, VmTarget};
use crate::{console, log};

/// What a container gets whose machine ended under it: as if it had been killed.
const MACHINE_ENDED: u8 = 128 + libc::SIGKILL as u8;

/// A container that has been created in the other machine.
struct Joined {
    /// The connection to the machine's monitor, which stands for the container.
    stream: UnixStream,
    oom_trigger: Option<HostOomTrigger>,
    terminal: Option<OwnedFd>,
}

/// From the go signal to the exit code.
pub async fn live(label: Label, parcel: Frame, command: std::os::unix::net::UnixStream) -> u8 {
    let joined = join(label, parcel).await;
    let heard = answer(&command, &joined);
    drop(command);
    match joined {
        Ok(Joined { stream, oom_trigger, terminal }) if heard => attend(Rc::new(stream), oom_trigger, terminal).await,
        // The command is gone, so is the container.
        _ => 1,
    }
}

/// Hands everything over; returns when the container is created.
async fn join(label: Label, parcel: Frame) -> anyhow::Result<Joined> {
    let VmTarget::Joined(monitor) = label.target else { bail!("the parcel is for a VM that is to be made") };
    let monitor = std::os::unix::net::UnixStream::from(monitor.into_owned()?);
    let terminal = label.terminal.map(Descriptor::into_owned).transpose()?;
    if let Some(slave) = &terminal {
        console::become_controlling(slave.as_fd())?;
    }
    let oom_trigger = HostOomTrigger::find(&label.cgroups)?;
    let mut view = View::new(label.mounts)?;
    ipc::send(&monitor, &Request::Join { network: NetworkNamespace::own()?.into() })?;
    parcel.send(&monitor).context("pass the container on to the monitor of the VM")?;
    // The monitor has them now; kept here they would keep an engine's pipes, and what it wants to unmount, busy.
    drop(parcel);
    view.enter()?;
    monitor.set_nonblocking(true)?;
    let stream = UnixStream::from_std(monitor)?;
    match ipc::receive_async(&stream).await.context("no answer from the monitor of the VM")? {
        Some(Reply::Started) => {}
        Some(Reply::Failed(why)) => bail!("{why}"),
        _ => bail!("the VM ended before the container was created in it"),
    }
    view.place();
    Ok(Joined { stream, oom_trigger, terminal })
}

/// Until the container's end.
async fn attend(stream: Rc<UnixStream>, oom_trigger: Option<HostOomTrigger>, terminal: Option<OwnedFd>) -> u8 {
    for number in FORWARDED {
        // The terminal's hang-up reaches the process through its own terminal.
        let ignored = number == libc::SIGHUP && terminal.is_some();
        let signal_it = move || (!ignored).then_some(Request::Signal(number as u32));
        follow(&stream, SignalKind::from_raw(number), signal_it);
    }
    if let Some(terminal) = terminal {
        let resize = move || {
            let (rows, columns) = console::size(&terminal);
            (rows > 0 && columns > 0).then_some(Request::Resize { rows, columns })
        };
        // The size may have changed while nobody listened.
        let first = resize();
        follow(&stream, SignalKind::window_change(), resize);
        pass_on(&stream, first).await;
    }
    loop {
        match ipc::receive_async(&stream).await {
            Ok(Some(Reply::Exited(code))) => return code,
            Ok(Some(Reply::OutOfMemory)) => tell_the_host(oom_trigger.as_ref()).await,
            Ok(Some(other)) => log::debug(&format!("an answer that nobody waits for: {other:?}")),
            Ok(None) | Err(_) => return MACHINE_ENDED,
        }
    }
}

/// Sends what `request` gives each time the signal comes.
fn follow(stream: &Rc<UnixStream>, kind: SignalKind, request: impl Fn() -> Option<Request> + 'static) {
    let Ok(mut signals) = signal(kind) else { return };
    let stream = Rc::clone(stream);
    spawn_local(async move {
        while signals.recv().await.is_some() {
            pass_on(&stream, request()).await;
        }
    });
}

async fn pass_on(stream: &UnixStream, request: Option<Request>) {
    if let Some(request) = request {
        // A monitor that is gone is noticed on the reading side.
        let _ = ipc::send_async(stream, &request).await;
    }
}

async fn tell_the_host(oom_trigger: Option<&HostOomTrigger>) {
    log::warning("the guest's kernel killed a process of the container for lack of memory");
    let Some(oom_trigger) = oom_trigger else { return };
    if let Err(error) = oom_trigger.pull().await {
        log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
    }
}
