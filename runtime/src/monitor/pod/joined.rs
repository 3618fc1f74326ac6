//! Containers that join a VM: how one is made for its join proxy, and unmade.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::CreateContainerRequest;
use tokio::net::UnixStream;

use super::{JoinGuard, Pod};
use crate::control::Reply;
use crate::ipc::{self, Descriptor};
use crate::log;
use crate::monitor::inbox::Inbox;
use crate::monitor::network::helper::NetworkHelper;
use crate::monitor::network::{Network, Opening};
use crate::monitor::server::{Channels, GRACE, HostSide, Joined, OomNotifier, Server, control_socket};
use crate::monitor::streams::host_sockets::Sockets;
use crate::monitor::streams::stdio::Stdio;
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::vm::share_policies::SharePolicies;
use crate::parcel::Parcel;

/// How long the device may take to let shares go.
const SHARES_PATIENCE: Duration = Duration::from_secs(30);

/// Creates a container in this VM and serves it until its end. When the connection closes, the container is killed.
pub async fn join(
    pod: &Rc<Pod>,
    agent: &Agent,
    stream: &Rc<UnixStream>,
    nodes: Option<Descriptor>,
) -> anyhow::Result<Reply> {
    let nodes = nodes.map(Descriptor::into_owned).transpose()?;
    let _nodes = nodes.map(|process| pod.nodes.take_on(process));
    let parcel = ipc::receive_async(stream).await.context("take over what the container has of the host")?;
    let mut parcel: Parcel = parcel.context("the container's process ended before it said what the container is")?;
    if !(parcel.disks.is_empty() && parcel.ports.is_empty() && parcel.user_network.is_none()) {
        bail!("a container that joins a VM can have no disks, published ports or user-mode network of its own");
    }
    let id = parcel.container.container_id.clone();
    let guard = pod.admit(&id).await?;
    rename_shares(&mut parcel, guard.number);
    let (shares, rights) = (std::mem::take(&mut parcel.shares), parcel.file_rights.clone());
    let (files, shares) = SharePolicies::new(shares, rights, &pod.vm.files.places)?;
    let devices = files.devices_by_name();
    pod.vm.describe_files(&mut parcel.container, &devices)?;
    let names = devices.into_iter().map(|(name, device)| (device, name)).collect();
    pod.vm.files.add(shares).await?;
    let result = live(pod, agent.of(&id), stream, Joining { guard: &guard, parcel, files }).await;
    // A guest that is waited for no longer may have the device at something that takes long, too.
    let patience = if result.as_ref().is_ok_and(|joined| joined.overdue) { GRACE } else { SHARES_PATIENCE };
    // Only now may an engine unmount what was shared.
    if let Err(error) = remove_shares(&pod.vm, names, patience).await {
        log::warning(&format!("remove the shares of container {id}: {error:#}"));
    }
    Ok(Reply::Exited(result?.code))
}

/// A container whose shares the VM has.
struct Joining<'a> {
    guard: &'a JoinGuard,
    parcel: Parcel,
    files: SharePolicies,
}

/// Gives the shares names that no other join has: all shares of a VM are in one directory.
fn rename_shares(parcel: &mut Parcel, number: u64) {
    let rename = |name: &mut String| *name = format!("{number}.{name}");
    let move_to = |place: &mut String| {
        *place = match place.rsplit_once('/') {
            Some((directory, name)) => format!("{directory}/{number}.{name}"),
            None => format!("{number}.{place}"),
        }
    };
    let request = &mut parcel.container;
    move_to(&mut request.share);
    request.mounts.iter_mut().map(|mount| &mut mount.share).filter(|share| !share.is_empty()).for_each(move_to);
    parcel.shares.iter_mut().map(|share| &mut share.name).for_each(rename);
}

/// The container's life, from its creation to its end.
async fn live(pod: &Rc<Pod>, agent: Agent, stream: &Rc<UnixStream>, joining: Joining<'_>) -> anyhow::Result<Joined> {
    let Joining { guard, parcel, files } = joining;
    let Parcel { container: mut request, control, streams, sockets, network, namespace, .. } = parcel;
    let control = control_socket(control)?;
    let begin = |socket| NetworkHelper::begin(socket, pod.vm.nics.pool.count());
    let (helper, beginning) = network.map(begin).transpose()?.unzip();
    let sockets = Sockets::new(sockets, helper.clone());
    let network = match helper.zip(beginning) {
        Some((helper, beginning)) => {
            let opening = Opening { helper, beginning, stays: true, passt: None, resolver: sockets.resolver() };
            Some(opening.finish(&pod.vm.nics.pool).await?)
        }
        None => None,
    };
    let stdio = Stdio::attach(&pod.vm.vsock, streams, request.process.mut_or_insert_default())?;
    create(&pod.vm, &agent, &request, network.as_ref()).await?;
    let (inbox, events) = Inbox::new();
    let notifier = OomNotifier::JoinProxy(Rc::clone(stream));
    let server = Server::new(Rc::clone(pod), agent, inbox.clone(), HostSide { network, files, namespace }, notifier);
    guard.complete(inbox);
    // The join proxy may be gone already; then the first read below says so.
    let _ = ipc::send_async(stream, &Reply::Started).await;
    let mut run = std::pin::pin!(server.run_joined(Channels { events, control, stdio, sockets }));
    Ok(tokio::select! {
        joined = &mut run => joined,
        () = server.attend(stream, "") => run.await,
    })
}

/// Has the guest create the container. One that cannot be created leaves nothing.
async fn create(
    vm: &Vm,
    agent: &Agent,
    request: &CreateContainerRequest,
    network: Option<&Network>,
) -> anyhow::Result<()> {
    let created = vm.ask(async {
        agent.create(request).await?;
        match network {
            Some(network) => network.update(vm, agent).await,
            None => Ok(()),
        }
    });
    let created = created.await;
    if created.is_err() {
        // A container that took too long may be there all the same.
        let _ = vm.ask(agent.delete()).await;
        if let Some(network) = network {
            network.end(vm).await;
        }
    }
    created
}

/// Takes shares away again. A device that takes longer does so when it can.
async fn remove_shares(vm: &Vm, names: Vec<(u32, String)>, patience: Duration) -> anyhow::Result<()> {
    let remove = vm.or_death(vm.files.remove(names));
    tokio::time::timeout(patience, remove).await.context("the file-system device is still busy")?
}
