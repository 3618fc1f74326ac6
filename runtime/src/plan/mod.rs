//! From a bundle to what has to be done. Pure: config.json and [`Facts`] in, [`Plan`] out.
//!
//! ```text
//!  config.json ─┐                ┌─▶ machine    size of the VM
//!               │  validate      ├─▶ shares     what of the host the guest sees
//!  Facts ───────┼─▶ process ─────┼─▶ container  the request to the agent
//!               │  mounts        ├─▶ network    which namespace the monitor lives in
//!  Options ─────┘  resources …   ├─▶ cgroup     where the monitor is accounted
//!                                ├─▶ hooks
//!                                └─▶ notes      what was accepted and has no effect
//! ```
//!
//! What a VM cannot do is refused here, with a sentence, before anything exists that would have to be
//! undone. Nothing here panics, whatever the bundle says.

mod annotations;
mod devices;
pub mod facts;
mod guest_path;
mod hooks;
mod limits;
mod network;
mod nul;
mod options;
mod process;
mod storage;
#[cfg(test)]
mod tests;
mod validate;
mod vm;

use oci_spec::runtime::Spec;
use protocol::CreateContainerRequest;

use crate::bundle::Bundle;
use facts::Facts;
use vm::{Sandbox, Surroundings};

pub use annotations::sockets_allowed;
pub use devices::{CARD_PAIRS, CARDS, DiskPlan, MAX_DISKS, OWN_DEVICES};
pub use hooks::{Hook, Hooks, Kind as HookKind};
pub use limits::{
    CgroupPlan, HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX, Unit, check_limits, check_member,
    check_memory, files as cgroup_files, host_limits,
};
pub use network::{NetworkPlan, PortPlan, user_network};
pub use options::Options;
pub use process::{CAPABILITIES, add_capabilities, exec as exec_process, seccomp::features as seccomp_features};
pub use storage::{CachePlan, SharePlan, SocketPlan, Tree, bind_source, mount_option_names, rootfs_path};
pub use validate::id as validate_id;
pub use vm::{MachinePlan, may_share_vm};

/// Everything that creating the container takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VM.
    pub machine: MachinePlan,
    /// The container that the VM was made for, if that is another one.
    pub sandbox: Option<String>,
    /// Name of its kernel, if it is not the usual one.
    pub kernel: Option<String>,
    /// What the guest sees of the host's files; the root file system first.
    pub shares: Vec<SharePlan>,
    /// Sockets of the host that the container may connect to, in the order of their mounts.
    pub sockets: Vec<SocketPlan>,
    /// Disks of the host that become the VM's.
    pub disks: Vec<DiskPlan>,
    /// What the agent is asked; the ids of the streams are left 0.
    pub container: CreateContainerRequest,
    /// The network namespace of the monitor.
    pub network: NetworkPlan,
    /// Whether it is filled by passt(1).
    pub user_network: bool,
    /// Ports of the host that lead to the container.
    pub ports: Vec<PortPlan>,
    /// The host's cgroup.
    pub cgroup: CgroupPlan,
    /// What holds for the whole VM there, from its start on.
    pub limits: HostLimits,
    /// Hooks of the bundle.
    pub hooks: Hooks,
    /// Whether the timeline of the start is printed: annotation `io.runvm.timeline`.
    pub timeline: bool,
    /// Settings that were accepted and have no effect, a sentence each: for the debug log.
    pub notes: Vec<String>,
}

/// Plans a container.
///
/// # Errors
/// One sentence: what in the bundle is wrong or impossible in a VM, and what to do instead.
pub fn plan(bundle: &Bundle, facts: &Facts, options: &Options) -> anyhow::Result<Plan> {
    let mut notes = Vec::new();
    validate::id(&options.id)?;
    validate::bundle(bundle, &mut notes)?;
    annotations::check(&bundle.spec)?;
    let spec = &bundle.spec;
    let sandbox = vm::sandbox(spec, facts)?;
    let surroundings = Surroundings { facts, sandbox: sandbox.as_ref() };
    let machine = match &sandbox {
        Some(sandbox) => sandbox.machine.clone(),
        None => vm::plan(spec, facts, &mut notes)?,
    };
    let mut container = CreateContainerRequest::new();
    container.container_id = options.id.clone();
    container.process = Some(process::init(bundle, machine.vcpus, &mut notes)?).into();
    container.seccomp = Some(process::seccomp::plan(spec, &mut notes)?).into();
    let storage = storage::plan(bundle, surroundings, &mut container, &mut notes)?;
    let network = network::plan(spec, options, surroundings, &mut container)?;
    process::namespaces::plan(spec, surroundings.sandbox, &mut container, &mut notes)?;
    let disks = devices::plan(spec, surroundings, storage.images, &mut container, &mut notes)?;
    limits::plan(spec, machine.vcpus, &mut container, &mut notes)?;
    container.cgroup_path = format!("/runvm/{}", options.id);
    container.online_cpus = if sandbox.is_some() { 0 } else { u32::from(machine.vcpus) };
    Ok(Plan {
        limits: vm_limits(spec, sandbox.as_ref(), &container, machine.memory_mib)?,
        machine,
        sandbox: sandbox.map(|sandbox| sandbox.id),
        kernel: annotations::kernel(spec)?,
        shares: storage.shares,
        sockets: storage.sockets,
        disks,
        container,
        network: network.namespace,
        user_network: network.user_network,
        ports: network.ports,
        cgroup: limits::cgroup_path(spec, options)?,
        hooks: hooks::plan(spec)?,
        timeline: annotations::switch(spec, annotations::TIMELINE)?,
        notes,
    })
}

/// What limits a VM as a whole is that of the container it was made for; another one may have no such limits.
fn vm_limits(
    spec: &Spec,
    sandbox: Option<&Sandbox>,
    container: &CreateContainerRequest,
    memory_mib: u32,
) -> anyhow::Result<HostLimits> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    match (resources, sandbox) {
        (None, _) => Ok(HostLimits::default()),
        (Some(resources), Some(_)) => check_member(resources, memory_mib).map(|()| HostLimits::default()),
        (Some(resources), None) => host_limits(resources, &container.cgroup_files, memory_mib),
    }
}
