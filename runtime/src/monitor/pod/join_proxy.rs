//! The process that stands for a container in another one's virtual machine.
//!
//! Engines need a process of each container's own: in its cgroup and namespaces, with an exit code. This one hands what
//! the container needs to the monitor of the machine, passes signals on, and ends as the container does. When it is
//! killed the container is; when the machine ends the container has ended.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Context, bail};
use protobuf::Message;
use protocol::{CreateContainerRequest, NamespaceKind};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_local;
use vmm::virtio::fs::Share;

use crate::control::{self, Join, Reply, Request};
use crate::handover::{Answer, Setup};
use crate::monitor::confine::View;
use crate::monitor::oom_trigger::HostOomTrigger;
use crate::monitor::streams::stdio;
use crate::monitor::wire::{reply, send};
use crate::monitor::{FORWARDED, Inherited, tell};
use crate::network::NetworkNamespace;
use crate::{console, log};

/// What a container gets whose machine ended under it: as if it had been killed.
const MACHINE_ENDED: u8 = 128 + libc::SIGKILL as u8;

/// From the go signal to the exit code.
pub async fn live(setup: Setup, mut inherited: Inherited) -> u8 {
    let terminal = inherited.terminal.take();
    let ready = inherited.ready.take();
    let joined = join(&setup, inherited, terminal.as_ref()).await;
    let answer = match &joined {
        Ok(_) => Answer::Ready,
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    let told = ready.map(|pipe| tell(pipe, &answer));
    match (joined, told) {
        (Ok((stream, oom_trigger)), Some(Ok(()))) => attend(Rc::new(stream), oom_trigger, terminal).await,
        // Nobody heard that the container is ready: the command is gone, so is the container.
        _ => 1,
    }
}

/// Hands everything over; returns when the container is created.
async fn join(
    setup: &Setup,
    inherited: Inherited,
    terminal: Option<&OwnedFd>,
) -> anyhow::Result<(UnixStream, Option<HostOomTrigger>)> {
    let mut request = CreateContainerRequest::parse_from_bytes(&setup.container).context("decode the container")?;
    let oom_trigger = HostOomTrigger::find(&setup.cgroups)?;
    let (files, streams) = standard_files(setup, terminal)?;
    if let Some(slave) = terminal {
        console::note_size(slave, request.process.mut_or_insert_default());
    }
    let mut view = View::new(&request, &inherited.shares)?;
    let shares = setup.shares.iter().map(|share| (share.name.clone(), share.read_only, share.cache)).collect();
    let (network, sockets) = (own_network(&request)?, inherited.sockets.len());
    let container = request.write_to_bytes()?;
    let wish = Request::Join(Join { container, network: network.is_some(), shares, sockets, streams });
    let stream = std::os::unix::net::UnixStream::from(inherited.home.try_clone()?);
    control::send(&stream, &wish, &descriptors(&inherited, network.as_ref(), &files))?;
    // The monitor has them now; kept here they would keep an engine's pipes, and what it wants to unmount, busy.
    drop((inherited, network, files));
    view.enter()?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    match reply(&stream).await.context("no answer from the monitor of the VM")? {
        Some(Reply::Started) => {}
        Some(Reply::Failed(why)) => bail!("{why}"),
        _ => bail!("the VM ended before the container was created in it"),
    }
    view.place();
    Ok((stream, oom_trigger))
}

fn standard_files(setup: &Setup, terminal: Option<&OwnedFd>) -> anyhow::Result<(Vec<OwnedFd>, [bool; 3])> {
    let Some(slave) = terminal else {
        // Without a log file, what this process has to say goes to stderr, as with runc.
        let files = stdio::take_standard_streams(setup.log.path.is_none())?;
        let streams = [files[0].is_some(), files[1].is_some(), files[2].is_some()];
        return Ok((files.into_iter().flatten().collect(), streams));
    };
    console::become_controlling(slave.as_fd())?;
    Ok((vec![slave.try_clone()?], [true, true, false]))
}

/// This process's network namespace, unless the container has another one's.
fn own_network(request: &CreateContainerRequest) -> anyhow::Result<Option<OwnedFd>> {
    let network = request.namespaces.iter().find(|namespace| namespace.kind == NamespaceKind::NETWORK.into());
    network.filter(|network| network.container_id.is_empty()).map(|_| NetworkNamespace::own()).transpose()
}

/// In the order in which the monitor expects them.
fn descriptors<'a>(
    inherited: &'a Inherited,
    network: Option<&'a OwnedFd>,
    files: &'a [OwnedFd],
) -> Vec<BorrowedFd<'a>> {
    let shares = inherited.shares.iter().map(|share: &Share| share.root.as_fd());
    let given = shares.chain(inherited.sockets.iter().chain(files).map(AsFd::as_fd));
    let first = std::iter::once(inherited.control.as_fd()).chain(network.map(AsFd::as_fd));
    first.chain(given).collect()
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
        match reply(&stream).await {
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
        let _ = send(stream, &request).await;
    }
}

async fn tell_the_host(oom_trigger: Option<&HostOomTrigger>) {
    log::warning("the guest's kernel killed a process of the container for lack of memory");
    let Some(oom_trigger) = oom_trigger else { return };
    if let Err(error) = oom_trigger.pull().await {
        log::warning(&format!("tell the host that memory ran out in the guest: {error:#}"));
    }
}
