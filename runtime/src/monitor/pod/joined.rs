//! Containers that join a machine: how one is made for the process that stands for it, and unmade.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use protobuf::Message;
use protocol::CreateContainerRequest;
use tokio::net::{UnixListener, UnixStream};
use vmm::virtio::fs::Share;

use super::{JoinGuard, Pod};
use crate::control::{Join, Reply};
use crate::log;
use crate::monitor::inbox::Inbox;
use crate::monitor::network::Network;
use crate::monitor::server::{Channels, OomNotifier, Server};
use crate::monitor::streams::host_sockets::Sockets;
use crate::monitor::streams::stdio::Stdio;
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::wire::{arrange, send};
use crate::network::NetworkNamespace;
use crate::plan::CachePlan;

/// Creates a container in this machine and serves it until its end. The connection is its life: when it closes, the
/// container is killed.
pub async fn join(
    pod: &Rc<Pod>,
    agent: &Agent,
    stream: &Rc<UnixStream>,
    (join, fds): (Join, Vec<OwnedFd>),
) -> anyhow::Result<Reply> {
    let mut parts = Parts::of(join, fds)?;
    let id = parts.request.container_id.clone();
    let guard = pod.admit(&id).await?;
    parts.rename_shares(guard.number);
    let names: Vec<String> = parts.shares.iter().map(|share| share.name.clone()).collect();
    add_shares(&pod.vm, std::mem::take(&mut parts.shares)).await?;
    let result = live(pod, agent.of(&id), stream, (parts, &guard)).await;
    // Only now may an engine unmount what was shared.
    if let Err(error) = remove_shares(&pod.vm, names).await {
        log::warning(&format!("take back what container {id} shared: {error:#}"));
    }
    result
}

/// What a container that joins brings along.
struct Parts {
    request: CreateContainerRequest,
    control: UnixListener,
    network: Option<OwnedFd>,
    shares: Vec<Share>,
    sockets: Vec<OwnedFd>,
    files: [Option<OwnedFd>; 3],
}

impl Parts {
    fn of(join: Join, fds: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().context("fewer descriptors came with the container than it names");
        let control = std::os::unix::net::UnixListener::from(next()?);
        control.set_nonblocking(true)?;
        let network = join.network.then(&mut next).transpose()?;
        let share = |(name, read_only, cache): (_, _, CachePlan)| {
            Ok(Share { name, root: next()?, read_only, cache: cache.into() })
        };
        let shares = join.shares.into_iter().map(share).collect::<anyhow::Result<_>>()?;
        let sockets = (0..join.sockets).map(|_| next()).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            request: CreateContainerRequest::parse_from_bytes(&join.container).context("decode the container")?,
            control: UnixListener::from_std(control)?,
            network,
            shares,
            sockets,
            files: arrange(fds.collect(), join.streams)?,
        })
    }

    /// All shares of a machine are in one directory.
    fn rename_shares(&mut self, number: u64) {
        let rename = |name: &mut String| *name = format!("{number}.{name}");
        rename(&mut self.request.share);
        self.request.mounts.iter_mut().map(|mount| &mut mount.share).filter(|share| !share.is_empty()).for_each(rename);
        self.shares.iter_mut().map(|share| &mut share.name).for_each(rename);
    }
}

/// From its creation to its end.
async fn live(
    pod: &Rc<Pod>,
    agent: Agent,
    stream: &Rc<UnixStream>,
    (parts, guard): (Parts, &JoinGuard),
) -> anyhow::Result<Reply> {
    let Parts { mut request, control, network, files, sockets, .. } = parts;
    let place = network.map(NetworkNamespace::of);
    let sockets = Sockets::new(&pod.files, sockets, place.clone().unwrap_or_default());
    let open = |place| Network::open(place, Arc::clone(&pod.files), true, sockets.resolver());
    let network = place.map(open).transpose()?;
    let process = request.process.mut_or_insert_default();
    let stdio = Stdio::attach(pod.vm.vsock(), files, process.terminal)?;
    stdio.name_in(process);
    create(&pod.vm, &agent, &request, network.as_ref()).await?;
    let (inbox, events) = Inbox::new();
    let notifier = OomNotifier::JoinProxy(Rc::clone(stream));
    let server = Server::new(Rc::clone(pod), agent, inbox.clone(), network, notifier);
    guard.complete(inbox);
    // The join proxy may be gone already; then the first read below says so.
    let _ = send(stream, &Reply::Started).await;
    let mut run = std::pin::pin!(server.run_joined(Channels { events, control, stdio, sockets }));
    let code = tokio::select! {
        code = &mut run => code,
        () = server.attend(stream, "") => run.await,
    };
    Ok(Reply::Exited(code))
}

/// Has the guest create it; what fails leaves nothing.
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
        // One that took too long may be there all the same.
        let _ = vm.ask(agent.delete()).await;
        if let Some(network) = network {
            network.end(vm).await;
        }
    }
    created
}

/// The device answers when it has done what it is at: not for this thread to wait for.
async fn add_shares(vm: &Vm, shares: Vec<Share>) -> anyhow::Result<()> {
    let sharing = vm.sharing().clone();
    Ok(tokio::task::spawn_blocking(move || sharing.add(shares)).await??)
}

async fn remove_shares(vm: &Vm, names: Vec<String>) -> anyhow::Result<()> {
    let sharing = vm.sharing().clone();
    vm.or_death(async { Ok(tokio::task::spawn_blocking(move || sharing.remove(names)).await??) }).await
}
