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
mod block_io;
mod bounds;
mod cache;
mod capabilities;
mod cgroup_path;
mod device_filter;
mod device_rules;
mod devices;
mod disks;
mod hooks;
mod host_limits;
mod id_mappings;
mod machine;
mod mount_options;
mod mounts;
mod namespaces;
pub mod outside;
mod platform;
mod process;
mod resources;
mod sandbox;
mod scheduling;
mod seccomp;
mod sysctls;
#[cfg(test)]
mod tests;
mod text;
mod validate;

use std::path::PathBuf;

use protocol::CreateContainerRequest;
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::facts::Facts;
use crate::hooks::Hooks;

pub use annotations::sockets_allowed;
pub use bounds::check as check_bounds;
pub use cache::CachePlan;
pub use capabilities::{NAMES as CAPABILITIES, add as add_capabilities};
pub use cgroup_path::{CgroupPlan, Unit};
pub use disks::{CARDS, DiskPlan, OWN_DEVICES};
pub use host_limits::{
    HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX, check_member, check_memory, plan as host_limits,
};
pub use mount_options::names as mount_option_names;
pub use mounts::{SharePlan, SocketPlan, Tree, bind_source, rootfs_path};
pub use outside::PortPlan;
pub use process::exec as exec_process;
pub use resources::files as cgroup_files;
pub use sandbox::is_possible as may_share_vm;
pub use seccomp::features as seccomp_features;
pub use validate::id as validate_id;

/// What the command line adds to the bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Name of the container.
    pub id: String,
    /// `--systemd-cgroup`: `linux.cgroupsPath` has the form `slice:prefix:name`.
    pub systemd_cgroup: bool,
    /// `--net user`.
    pub user_network: bool,
    /// Each `--publish`.
    pub publish: Vec<String>,
    /// `--allow-net-annotations`.
    pub allow_net_annotations: bool,
    /// The host's /etc/resolv.conf, or nothing.
    pub resolv_conf: String,
}

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

/// Size of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Added to the kernel's arguments.
    pub cmdline: String,
}

/// The network namespace that the monitor lives in and the container's interfaces come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPlan {
    /// A new one.
    New,
    /// An existing one.
    Path(PathBuf),
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
    let sandbox = sandbox::plan(spec, facts)?;
    let machine = match &sandbox {
        Some(sandbox) => sandbox.machine.clone(),
        None => machine::plan(spec, facts, &mut notes)?,
    };
    let mut container = CreateContainerRequest::new();
    container.container_id = options.id.clone();
    container.process = Some(process::init(bundle, machine.vcpus, &mut notes)?).into();
    container.seccomp = Some(seccomp::plan(spec, &mut notes)?).into();
    let (shares, sockets, images) = mounts::plan(bundle, (facts, sandbox.as_ref()), &mut container, &mut notes)?;
    let network = namespaces::plan(spec, (facts, sandbox.as_ref()), &mut container, &mut notes)?;
    let outside = outside::plan((spec, options), (&network, sandbox.as_ref()), &mut container)?;
    let disks = devices::plan(spec, (facts, sandbox.as_ref()), images, &mut container, &mut notes)?;
    resources::plan(spec, machine.vcpus, &mut container, &mut notes)?;
    container.cgroup_path = format!("/runvm/{}", options.id);
    container.online_cpus = if sandbox.is_some() { 0 } else { u32::from(machine.vcpus) };
    let cgroup = cgroup_path::plan(spec, options)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let (Some(_), Some(resources)) = (&sandbox, resources) {
        check_member(resources, machine.memory_mib)?;
    }
    // What limits a VM as a whole is that of the container it was made for.
    let limits = resources
        .filter(|_| sandbox.is_none())
        .map(|all| host_limits(all, &container.cgroup_files, machine.memory_mib));
    let limits = limits.transpose()?.unwrap_or_default();
    let hooks = hooks::plan(spec)?;
    let kernel = annotations::kernel(spec)?;
    let timeline = annotations::switch(spec, annotations::TIMELINE)?;
    let sandbox = sandbox.map(|sandbox| sandbox.id);
    Ok(Plan {
        machine,
        sandbox,
        kernel,
        shares,
        sockets,
        disks,
        container,
        network,
        user_network: outside.network,
        ports: outside.ports,
        cgroup,
        limits,
        hooks,
        timeline,
        notes,
    })
}
