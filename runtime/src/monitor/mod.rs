//! The monitor: the one long-lived process of a container.
//!
//! ```text
//!  main thread (tokio, current_thread)                    other threads
//!  ───────────────────────────────────                    ─────────────
//!  set-up pipe ─▶ boot the VM ─▶ create the container      vcpuN, virtio-*: the VMM
//!     └─▶ one answer on the ready pipe                     stdin, stdout, stderr: one pump per
//!  then an inbox: control requests, the process's end,      attached descriptor, blocking
//!  the VM's end, signals, a new terminal size
//! ```
//!
//! It waits for its set-up, so that the engine's hooks can work on its pid before anything runs. It ends
//! with the container's exit code, after the last byte of output: that exit status is the report.

mod confine;
mod inbox;
mod lifecycle;
mod network;
mod oom_trigger;
mod pod;
mod server;
mod streams;
mod vm;
mod wire;

use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use protobuf::Message;
use tokio::net::UnixListener;

use crate::control;
use crate::handover::{Answer, Setup, VmTarget, inherited};
use crate::network::{Files, NetworkNamespace, make_user_network};
use crate::{console, log};
use confine::View;
use inbox::Inbox;
use network::Network;
use network::passt_relay;
use network::published_ports::{Port, Ports};
use oom_trigger::HostOomTrigger;
use pod::{Pod, join_proxy};
use server::{Channels, OomNotifier, Server};
use streams::host_sockets::Sockets;
use streams::stdio::{self, Stdio};
use vm::Vm;
use vm::agent_client::Agent;
use vmm::virtio::block::Disk;
use vmm::virtio::fs::Share;

/// Signals that are passed on to the container when they are sent to its process on the host.
const FORWARDED: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];

/// The descriptors named in the set-up, owned.
struct Inherited {
    shares: Vec<Share>,
    disks: Vec<Disk>,
    sockets: Vec<OwnedFd>,
    ports: Vec<Port>,
    uplink: Option<OwnedFd>,
    control: std::os::unix::net::UnixListener,
    ready: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// KVM, or a connection to the monitor of another container's VM.
    home: OwnedFd,
}

/// Runs the monitor; `fd` is the pipe that the set-up comes from.
pub fn main(fd: RawFd) -> anyhow::Result<u8> {
    // A session of its own: what the user types at the terminal of `runvm run` is not for this process.
    let _ = rustix::process::setsid();
    // SAFETY: `create` opened this pipe for this process and passes its number only here.
    let pipe = unsafe { inherited(fd) }?;
    let Some(setup) = read_setup(pipe)? else {
        // The command was killed before it gave the go signal; there is nobody to tell.
        return Ok(1);
    };
    let inherited = Inherited::take(&setup)?;
    confine::leave_the_host()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let tasks = tokio::task::LocalSet::new();
    let code = tasks.block_on(&runtime, async {
        match setup.home {
            VmTarget::Joined(_) => join_proxy::live(setup, inherited).await,
            VmTarget::Own(_) => live(setup, inherited).await,
        }
    });
    // Threads and devices end with the process; the exit status must not wait for them.
    std::process::exit(i32::from(code))
}

fn read_setup(pipe: OwnedFd) -> anyhow::Result<Option<Setup>> {
    let mut pipe = std::fs::File::from(pipe);
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).context("read the set-up")?;
    let Some((header, body)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    if body.len() != control::body_length(*header)? {
        return Ok(None);
    }
    let setup: Setup = serde_json::from_slice(body).context("the set-up")?;
    log::open(setup.log.clone())?;
    Ok(Some(setup))
}

impl Inherited {
    fn take(setup: &Setup) -> anyhow::Result<Self> {
        // SAFETY: `create` left exactly these descriptors open for this process, each named once.
        let take = |fd: RawFd| unsafe { inherited(fd) };
        let share = |share: &crate::handover::ShareFd| {
            let root = take(share.fd)?;
            anyhow::Ok(Share { name: share.name.clone(), root, read_only: share.read_only, cache: share.cache.into() })
        };
        let disk = |disk: &crate::handover::DiskFd| {
            let file = take(disk.fd)?;
            anyhow::Ok(Disk { file, serial: disk.serial.clone(), read_only: disk.read_only })
        };
        let port = |port: &crate::handover::PortFd| {
            anyhow::Ok(Port { socket: take(port.fd)?, container: port.container, datagrams: port.datagrams })
        };
        let taken = Self {
            shares: setup.shares.iter().map(share).collect::<Result<_, _>>()?,
            disks: setup.disks.iter().map(disk).collect::<Result<_, _>>()?,
            sockets: setup.sockets.iter().map(|&fd| take(fd)).collect::<Result<_, _>>()?,
            ports: setup.ports.iter().map(port).collect::<Result<_, _>>()?,
            uplink: setup.uplink.map(take).transpose()?,
            control: take(setup.control)?.into(),
            ready: Some(take(setup.ready)?),
            terminal: setup.terminal.map(take).transpose()?,
            home: match &setup.home {
                VmTarget::Joined(fd) => take(*fd)?,
                VmTarget::Own(machine) => take(machine.kvm)?,
            },
        };
        Ok(taken)
    }
}

/// From the go signal to the exit code.
async fn live(setup: Setup, mut inherited: Inherited) -> u8 {
    let ready = inherited.ready.take();
    let print_timeline = setup.print_timeline;
    let result = create(setup, inherited).await;
    let answer = match &result {
        Ok(_) => Answer::Ready,
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    let told = ready.map(|pipe| tell(pipe, &answer));
    match (result, told) {
        (Ok(container), Some(Ok(()))) => serve(container, print_timeline).await,
        // Nobody heard that the container is ready: the command is gone, so is the container.
        _ => 1,
    }
}

fn tell(ready: OwnedFd, answer: &Answer) -> anyhow::Result<()> {
    std::fs::File::from(ready).write_all(&serde_json::to_vec(answer)?).context("answer the command")
}

/// A created container.
struct Container {
    vm: Vm,
    agent: Agent,
    stdio: Stdio,
    terminal: Option<OwnedFd>,
    oom_trigger: Option<HostOomTrigger>,
    files: Arc<Files>,
    sockets: Sockets,
    ports: Ports,
    network: Network,
    control: std::os::unix::net::UnixListener,
}

async fn create(setup: Setup, inherited: Inherited) -> anyhow::Result<Container> {
    let Inherited { shares, disks, sockets, ports, uplink, control, terminal, home: kvm, .. } = inherited;
    let mut request = protocol::CreateContainerRequest::parse_from_bytes(&setup.container)
        .context("decode the container's request")?;
    if let Some(slave) = &terminal {
        console::become_controlling(std::os::fd::AsFd::as_fd(slave))?;
    }
    // Else nobody would learn why the guest died.
    let logs_to_stderr = setup.log.path.is_none();
    let copies = shares.iter().map(copy_of).collect::<std::io::Result<Vec<_>>>().context("copy the shares")?;
    let oom_trigger = HostOomTrigger::find(&setup.cgroups)?;
    // Before this process leaves the host's.
    let host = Arc::new(Files::open()?);
    let (sockets, ports) = (Sockets::new(&host, sockets, NetworkNamespace::default()), Ports::new(ports)?);
    if let Some(stream) = uplink {
        passt_relay::start(make_user_network(&host)?, stream)?;
    }
    let stays = matches!(&setup.home, VmTarget::Own(machine) if machine.network_stays);
    let network = Network::open(NetworkNamespace::default(), Arc::clone(&host), stays, sockets.resolver())?;
    let vm = Vm::boot(setup, kvm, shares, disks)?;
    let files = match &terminal {
        Some(slave) => [Some(slave.try_clone()?), Some(slave.try_clone()?), None],
        None => stdio::take_standard_streams(logs_to_stderr)?,
    };
    // While the guest boots.
    let mut view = View::new(&request, &copies)?;
    view.enter()?;
    let (agent, prepared) = tokio::join!(vm.agent(), network.prepare(vm.free_cards()));
    let agent = agent?;
    prepared?;
    let stdio = Stdio::attach(vm.vsock(), files, terminal.is_some())?;
    let process = request.process.mut_or_insert_default();
    stdio.name_in(process);
    if let Some(slave) = &terminal {
        console::note_size(slave, process);
    }
    vm.or_death(agent.create(&request)).await?;
    vm.mark("container created");
    vm.or_death(network.update(&vm, &agent)).await?;
    vm.mark("network set up");
    view.place();
    Ok(Container { vm, agent, stdio, terminal, oom_trigger, files: host, sockets, ports, network, control })
}

fn copy_of(share: &Share) -> std::io::Result<Share> {
    Ok(Share { name: share.name.clone(), root: share.root.try_clone()?, ..*share })
}

async fn serve(container: Container, print_timeline: bool) -> u8 {
    let Container { vm, agent, stdio, terminal, oom_trigger, files, sockets, ports, network, control } = container;
    let listener = control.set_nonblocking(true).and_then(|()| UnixListener::from_std(control));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            log::error(&format!("listen for commands: {error}"));
            return u8::MAX;
        }
    };
    let (inbox, events) = Inbox::new();
    let pod = Rc::new(Pod::new(vm, files, inbox.clone()));
    let server = Server::new(pod, agent, inbox, Some(network), OomNotifier::Host(oom_trigger));
    server::follow_signals(&server, terminal);
    let code = server.run(Channels { events, control: listener, stdio, sockets }, ports).await;
    if print_timeline {
        log::info(&server.timeline());
    }
    code
}
