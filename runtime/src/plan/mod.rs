//! Plans a container: [`Bundle`], [`Facts`] and [`Options`] in, [`Plan`] out. Pure: no file, socket or clock is looked at.
//!
//! ```text
//!  config.json ─┐                ┌─▶ machine    size of the VM
//!               │  validate      ├─▶ shares     directories and files of the host that the guest sees
//!  Facts ───────┼─▶ process ─────┼─▶ container  the request to the agent
//!               │  storage       ├─▶ network    namespace that the monitor lives in, ports
//!  Options ─────┘  limits …      ├─▶ cgroup     where the host accounts the monitor
//!                                ├─▶ hooks
//!                                └─▶ notes      settings without an effect
//! ```
//!
//! Planning refuses what a VM cannot do, with a sentence, before anything exists that would have to be undone. Nothing here
//! panics, whatever the bundle says. One room for each part of a container:
//!
//! | room | plans |
//! |---|---|
//! | `storage` | mounts, shares, sockets of the host |
//! | `devices` | device nodes, their rules, disks |
//! | `process` | the process, namespaces, ids, kernel settings, seccomp |
//! | `network` | network namespace, user-mode network, published ports |
//! | `limits` | cgroup of the guest and of the host |
//! | `vm` | the VM: its size, or another container's |

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
use annotations::Allowed;
use facts::Facts;
use vm::{Sandbox, Surroundings};

pub use annotations::sockets_allowed;
pub use devices::{DiskPlan, MAX_DISKS, MonitorDevices, NICS, OWN_DEVICES};
pub use hooks::{Hook, Hooks, Kind as HookKind};
pub use limits::{
    CgroupPlan, HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX, Unit, check_limits, check_member,
    check_memory, cpus, files as cgroup_files, host_limits,
};
pub use network::{NetworkPlan, PortPlan, user_network};
pub use options::Options;
pub use process::{CAPABILITIES, add_capabilities, exec as exec_process, seccomp::features as seccomp_features};
pub use storage::{
    CachePlan, CommonPlan, FileRights, IdRanges, SharePlan, ShareRole, SocketPlan, Tree, bind_source,
    may_make_device_nodes, mount_option_names, rootfs_path,
};
pub use validate::id as validate_id;
pub use vm::{HOST_SETTINGS, MachinePlan, Setting, may_share_vm};

/// Everything that it takes to create a container.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Size of the VM.
    pub machine: MachinePlan,
    /// Id of the container that the VM was made for, if that is another one.
    pub sandbox: Option<String>,
    /// Name of the VM's kernel, if it is not the usual one.
    pub kernel: Option<String>,
    /// Directories and files of the host that the guest sees; the root file system is the first.
    pub shares: Vec<SharePlan>,
    /// What the container's processes may do to files of the shares.
    pub file_rights: FileRights,
    /// Sockets of the host that the container may connect to, in the order of their mounts.
    pub sockets: Vec<SocketPlan>,
    /// Disks of the host that the VM gets.
    pub disks: Vec<DiskPlan>,
    /// Request to the agent; the ids of the streams are left 0.
    pub container: CreateContainerRequest,
    /// The network namespace of the monitor.
    pub network: NetworkPlan,
    /// Whether passt(1) provides the network in that namespace.
    pub user_network: bool,
    /// Ports of the host that lead to the container.
    pub ports: Vec<PortPlan>,
    /// The container's cgroup on the host.
    pub cgroup: CgroupPlan,
    /// Limits of the whole VM in that cgroup, from its start on.
    pub limits: HostLimits,
    /// Hooks that run on the host.
    pub hooks: Hooks,
    /// Whether the timeline of the start is printed: annotation `io.runvm.timeline`.
    pub timeline: bool,
    /// Sentences about settings that were accepted and have no effect, for the debug log.
    pub notes: Vec<String>,
}

/// Plans a container.
///
/// # Errors
/// Says what in the bundle is wrong or impossible in a VM, and what to do instead.
pub fn plan(bundle: &Bundle, facts: &Facts, options: &Options) -> anyhow::Result<Plan> {
    let mut notes = Vec::new();
    validate::id(&options.id)?;
    validate::bundle(bundle, &mut notes)?;
    let allowed = Allowed::of(&options.allowed_annotations)?;
    annotations::check(&bundle.spec, allowed)?;
    let spec = &bundle.spec;
    let sandbox = vm::sandbox(spec, facts)?;
    let surroundings = Surroundings { facts, sandbox: sandbox.as_ref() };
    let machine = match &sandbox {
        Some(sandbox) => sandbox.machine.clone(),
        None => vm::plan(spec, facts, allowed, &mut notes)?,
    };
    let mut container = CreateContainerRequest::new();
    container.container_id = options.id.clone();
    container.process = Some(process::init(bundle, facts, machine.vcpus, &mut notes)?).into();
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
        file_rights: FileRights::of(&container),
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

/// Limits of the whole VM: those of the container that it was made for. One that joins it may set none.
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
