//! The monitor: the one long-lived process of a container.
//!
//! ```text
//!  main thread (tokio, current_thread)                    other threads
//!  ───────────────────────────────────                    ─────────────
//!  parcel ─▶ boot the VM ─▶ create the container           vcpuN, virtio-*: the VMM
//!     └─▶ one answer                                       stdin, stdout, stderr: one pump per
//!  then an inbox: control requests, the process's end,      attached descriptor, blocking
//!  the VM's end, signals, a new terminal size
//! ```
//!
//! The monitor waits for the container's parcel, so that the engine's hooks can work on its pid before anything runs. It ends
//! with the container's exit code, after the last byte of output: that exit status is the report.

mod confine;
mod host_process;
mod inbox;
mod lifecycle;
pub mod network;
pub mod node_maker;
mod oom_trigger;
mod pod;
mod server;
mod streams;
pub mod vm;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use anyhow::{Context, bail};

use crate::confinement;
use crate::host::requirements::Confinement;
use crate::host::{console, sockets};
use crate::ipc::{self, Descriptor, Frame};
use crate::log;
use crate::parcel::{Label, Parcel, VmTarget};
use crate::plan::NICS;
use confine::View;
use inbox::Inbox;
use network::Opening;
use network::helper::NetworkHelper;
use network::published_ports::Ports;
use node_maker::NodeMaker;
use oom_trigger::HostOomTrigger;
use pod::{Pod, join_proxy};
use server::{Channels, HostSide, OomNotifier, Server, control_socket};
use streams::host_sockets::Sockets;
use streams::stdio::Stdio;
use vm::file_systems::{MakesNodes, Places};
use vm::share_policies::SharePolicies;
use vm::{BuiltVm, Parts};

/// Runs the monitor; `fd` is the socket to the command.
pub fn main(fd: RawFd) -> anyhow::Result<u8> {
    // A session of its own: what the user types at the terminal of `runvm run` is not for this process.
    let _ = rustix::process::setsid();
    // SAFETY: `create` opened this socket for this process and passes its number only here.
    let command = unsafe { ipc::inherited(fd) }?;
    let Some((label, parcel)) = receive(&command).context("take the container over from the command")? else {
        // The command was killed before it gave the go signal; there is nobody to tell.
        return Ok(1);
    };
    confine::harden(label.confinement)?;
    confine::leave_the_hosts_mounts()?;
    let nodes = label.makes_nodes.then(node_maker::process::start).transpose()?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Those that wait for devices and sockets of the host.
    runtime.enable_all().on_thread_start(|| confinement::name_thread("blocking"));
    let runtime = runtime.build().context("start tokio")?;
    let tasks = tokio::task::LocalSet::new();
    let code = tasks.block_on(&runtime, async {
        match label.target {
            VmTarget::Joined(_) => join_proxy::live(label, parcel, command, nodes).await,
            VmTarget::Own(_) => live(label, parcel, command, NodeMaker::of(nodes)).await,
        }
    });
    // Threads and devices end with the process; the exit status must not wait for them.
    std::process::exit(i32::from(code))
}

/// Receives the label, and the parcel unopened.
fn receive(command: &UnixStream) -> anyhow::Result<Option<(Label, Frame)>> {
    let Some(label) = ipc::receive::<Label>(command)? else { return Ok(None) };
    log::set(label.log.clone());
    if label.log.file.is_some() {
        // Else the process's own lines go to the standard error output, as with runc.
        rustix::stdio::dup2_stderr(rustix::stdio::stdin())?;
    }
    Ok(Frame::receive(command)?.map(|parcel| (label, parcel)))
}

/// From the go signal to the exit code.
async fn live(label: Label, parcel: Frame, command: UnixStream, nodes: NodeMaker) -> u8 {
    let print_timeline = label.print_timeline;
    let created = match parcel.open() {
        Ok(parcel) => create(label, parcel, &command, nodes).await,
        Err(error) => Err(error),
    };
    let heard = host_process::answer(&command, &created);
    drop(command);
    match created {
        Ok(container) if heard => serve(container, print_timeline).await,
        // The command is gone, so is the container.
        _ => 1,
    }
}

/// A created container.
struct Container {
    pod: Rc<Pod>,
    server: Rc<Server>,
    channels: Channels,
    ports: Ports,
    terminal: Option<OwnedFd>,
}

async fn create(label: Label, parcel: Parcel, command: &UnixStream, nodes: NodeMaker) -> anyhow::Result<Container> {
    let Parcel {
        container: mut request,
        mut shares,
        namespace,
        file_rights,
        disks,
        sockets: dialed,
        ports,
        network,
        user_network,
        control,
        streams,
    } = parcel;
    let terminal = label.terminal.map(Descriptor::into_owned).transpose()?;
    if let Some(slave) = &terminal {
        console::become_controlling(slave.as_fd())?;
    }
    let oom_trigger = HostOomTrigger::find(&label.cgroups)?;
    // Before this process leaves the host's.
    let descriptors = sockets::own_descriptors()?;
    let VmTarget::Own(setup) = label.target else { bail!("the parcel is for another container's VM") };
    // It works while the guest boots.
    let network = network.context("a container without a network helper")?;
    let (helper, beginning) = NetworkHelper::begin(network, NICS)?;
    let (sockets, ports) = (Sockets::new(dialed, Some(helper.clone())), Ports::new(ports)?);
    let resolver = sockets.resolver();
    let opening = Opening { helper, beginning, stays: setup.network_stays, passt: user_network, resolver };
    let view = View::new(label.mounts)?;
    if let Some(root) = shares.first_mut() {
        root.root = view.root()?;
    }
    let places = Places::of(&shares, &setup);
    let (files, shares) = SharePolicies::new(shares, file_rights, &places)?;
    let parts = Parts { shares, places, disks, nodes: makes_nodes(nodes.clone()) };
    let vm = BuiltVm::new(setup, request.container_id.clone(), parts, label.timeline)?;
    leave(command, view, label.confinement, descriptors, oom_trigger.as_ref())?;
    // There is one thread up to here.
    let vm = Rc::new(vm.start()?);
    // It ends with the process, and not before: its threads may do nothing for an end of their own.
    std::mem::forget(Rc::clone(&vm));
    confine::confine_main().context("confine the main thread")?;
    let (agent, network) = tokio::join!(vm.agent(), opening.finish(&vm.nics.pool));
    let (agent, network) = (agent?, network?);
    let stdio = Stdio::attach(&vm.vsock, streams, request.process.mut_or_insert_default())?;
    vm.describe_files(&mut request, &files.devices_by_name())?;
    vm.or_death(agent.create(&request)).await?;
    vm.mark("container created");
    vm.or_death(network.update(&vm, &agent)).await?;
    vm.mark("network set up");
    let (inbox, events) = Inbox::new();
    let channels = Channels { events, control: control_socket(control)?, stdio, sockets };
    let pod = Rc::new(Pod::new(vm, nodes, inbox.clone()));
    let host_side = HostSide { network: Some(network), files, namespace };
    let server = Server::new(Rc::clone(&pod), agent, inbox, host_side, OomNotifier::Host(oom_trigger));
    Ok(Container { pod, server, channels, ports, terminal })
}

fn makes_nodes(nodes: NodeMaker) -> MakesNodes {
    Box::new(move || Box::new(nodes.clone()))
}

/// Leaves everything of the host but what is open.
fn leave(
    command: &UnixStream,
    view: View,
    confinement: Confinement,
    descriptors: OwnedFd,
    oom_trigger: Option<&HostOomTrigger>,
) -> anyhow::Result<()> {
    confine::leave_the_host(command, view.enter()?, confinement)?;
    rustix::process::fchdir(descriptors).context("go to /proc/self/fd")?;
    oom_trigger.into_iter().for_each(HostOomTrigger::be_as_usual);
    Ok(())
}

async fn serve(container: Container, print_timeline: bool) -> u8 {
    let Container { pod, server, channels, ports, terminal } = container;
    server.follow_signals(terminal);
    let code = server.run(channels, ports).await;
    if print_timeline {
        log::info(&pod.vm.timeline());
    }
    code
}
