//! The plan: what a bundle means for a VM on this host. Pure: no I/O, no side effect, and whatever the
//! bundle says, either a plan or an error that names the field.

mod mounts;
mod options;
mod process;
mod resources;
#[cfg(test)]
mod tests;
mod validate;

use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use protocol::{CreateContainerRequest, Device, IdMapping, KeyValue, Namespace, NamespaceKind};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::cgroup::{self, CgroupPlan};
use crate::facts::Facts;
use crate::hooks::Hooks;

pub use process::{add_capabilities, exec_process};
pub use validate::validate_id;

/// What the command line adds to the bundle.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the container.
    pub id: String,
    /// `--systemd-cgroup`
    pub systemd_cgroup: bool,
}

/// Size of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// CPUs.
    pub vcpus: u8,
    /// Further arguments for the guest's kernel.
    pub cmdline: String,
}

/// A file or directory of the host that the guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharePlan {
    /// Its name in the guest.
    pub name: String,
    /// Where it is.
    pub source: PathBuf,
    /// Whether the guest may change it.
    pub read_only: bool,
}

/// The network namespace that the monitor lives in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPlan {
    /// A new one.
    New,
    /// An existing one.
    Path(PathBuf),
}

/// Everything `create` is going to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Size of the VM.
    pub machine: MachinePlan,
    /// What the guest sees of the host; the root file system is the first.
    pub shares: Vec<SharePlan>,
    /// What the agent is asked for; the monitor adds the streams.
    pub container: CreateContainerRequest,
    /// Where the monitor's network is.
    pub network: NetworkPlan,
    /// Where the monitor's cgroup is.
    pub cgroup: CgroupPlan,
    /// Hooks that run on the host.
    pub hooks: Hooks,
    /// Whether the timeline of the start is printed: annotation `io.runvm.timeline`.
    pub timeline: bool,
    /// What was accepted without having an effect.
    pub notes: Vec<String>,
}

/// Makes the plan.
pub fn plan(bundle: &Bundle, facts: &Facts, options: &Options) -> anyhow::Result<Plan> {
    let spec = &bundle.spec;
    validate::spec(bundle, facts)?;
    let linux = spec.linux().clone().unwrap_or_default();
    let mut notes = Vec::new();
    let (shares, mounts) = mounts::plan(bundle, facts, &mut notes)?;
    let process = spec.process().as_ref().context("config.json has no process")?;
    let machine = resources::machine(spec, facts)?;
    let (namespaces, network) = namespaces(&linux, facts)?;
    let container = CreateContainerRequest {
        container_id: options.id.clone(),
        hostname: spec.hostname().clone().unwrap_or_default(),
        domainname: spec.domainname().clone().unwrap_or_default(),
        namespaces,
        uid_mappings: mappings(linux.uid_mappings(), "uidMappings")?,
        gid_mappings: mappings(linux.gid_mappings(), "gidMappings")?,
        share: mounts::ROOTFS.to_owned(),
        rootfs_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default(),
        rootfs_propagation: linux.rootfs_propagation().clone().unwrap_or_default(),
        mounts,
        devices: devices(&linux, &mut notes)?,
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        sysctls: sysctls(&linux),
        cgroup_path: format!("/runvm/{}", options.id),
        cgroup_files: resources::cgroup_files(linux.resources().as_ref(), machine.vcpus, &mut notes)?,
        process: Some(process::process(process, &mut notes)?).into(),
        online_cpus: u32::from(machine.vcpus),
        ..Default::default()
    };
    note_ineffective(&linux, &mut notes);
    let cgroup = CgroupPlan {
        path: cgroup::path(linux.cgroups_path().as_deref(), &options.id, options.systemd_cgroup)?,
        hierarchy: facts.cgroups.clone(),
    };
    let timeline = validate::switch(spec, "io.runvm.timeline")?;
    Ok(Plan { machine, shares, container, network, cgroup, hooks: hooks(spec)?, timeline, notes })
}

fn namespaces(linux: &Linux, facts: &Facts) -> anyhow::Result<(Vec<Namespace>, NetworkPlan)> {
    const HOST_NETWORK: &str = "host network is not possible in a VM, which has interfaces of its own: \
                                use a bridge network or none";
    let (mut kinds, mut network) = (Vec::new(), None);
    for namespace in linux.namespaces().iter().flatten() {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Pid => NamespaceKind::PID,
            LinuxNamespaceType::Network => NamespaceKind::NETWORK,
            LinuxNamespaceType::Mount => NamespaceKind::MOUNT,
            LinuxNamespaceType::Ipc => NamespaceKind::IPC,
            LinuxNamespaceType::Uts => NamespaceKind::UTS,
            LinuxNamespaceType::User => NamespaceKind::USER,
            LinuxNamespaceType::Cgroup => NamespaceKind::CGROUP,
            LinuxNamespaceType::Time => NamespaceKind::TIME,
        };
        match (kind, namespace.path()) {
            (NamespaceKind::NETWORK, Some(_)) if facts.network_is_hosts => bail!(HOST_NETWORK),
            (NamespaceKind::NETWORK, path) => {
                network = Some(path.clone().map_or(NetworkPlan::New, NetworkPlan::Path));
            }
            (_, Some(path)) => bail!(
                "linux.namespaces: joining the {} namespace {} is not possible: it belongs to another kernel than \
                 the container's own",
                namespace.typ(),
                path.display(),
            ),
            _ => {}
        }
        kinds.push(Namespace { kind: kind.into(), ..Default::default() });
    }
    Ok((kinds, network.context(HOST_NETWORK)?))
}

fn mappings(mappings: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>, field: &str) -> anyhow::Result<Vec<IdMapping>> {
    let mut result: Vec<IdMapping> = Vec::new();
    for mapping in mappings.iter().flatten() {
        let (container_id, host_id, size) = (mapping.container_id(), mapping.host_id(), mapping.size());
        let ends = container_id.checked_add(size).zip(host_id.checked_add(size));
        if size == 0 || ends.is_none() {
            bail!("linux.{field}: a mapping of {size} ids from {container_id} to {host_id} is not possible");
        }
        result.push(IdMapping { container_id, host_id, size, ..Default::default() });
    }
    Ok(result)
}

/// Nodes that work in any Linux, whoever asked for them. Others belong to hardware that a VM does not have.
const PSEUDO_MAJORS: [i64; 5] = [1, 5, 10, 108, 136];

fn devices(linux: &Linux, notes: &mut Vec<String>) -> anyhow::Result<Vec<Device>> {
    use oci_spec::runtime::LinuxDeviceType as Type;
    // `--privileged` lists every device of the host; nobody asked for one of them in particular.
    let listed: Vec<_> = linux.devices().iter().flatten().collect();
    let all_of_the_host = listed.len() > 16;
    let mut devices = Vec::new();
    for device in listed {
        let path = device.path().display().to_string();
        let kind = match device.typ() {
            Type::C | Type::U => "c",
            Type::P => "p",
            Type::B => "b",
            Type::A => bail!("linux.devices: {path} has no type"),
        };
        if kind == "b" || (kind == "c" && !PSEUDO_MAJORS.contains(&device.major())) {
            if !all_of_the_host {
                bail!("linux.devices: {path} is a device of the host, which a VM does not have");
            }
            notes.push(format!("device {path} of the host is not in the VM"));
            continue;
        }
        devices.push(Device {
            path,
            kind: kind.to_owned(),
            major: device.major(),
            minor: device.minor(),
            mode: device.file_mode().unwrap_or(0o666),
            uid: device.uid().unwrap_or_default(),
            gid: device.gid().unwrap_or_default(),
            ..Default::default()
        });
    }
    Ok(devices)
}

fn sysctls(linux: &Linux) -> Vec<KeyValue> {
    let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().map(|(key, value)| key_value(key, value)).collect();
    sysctls.sort_by(|a, b| a.key.cmp(&b.key));
    sysctls
}

fn key_value(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() }
}

fn hooks(spec: &Spec) -> anyhow::Result<Hooks> {
    let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
    let inside = [("createContainer", hooks.create_container()), ("startContainer", hooks.start_container())];
    for (name, list) in inside {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            bail!("hooks.{name}: a hook that runs in the container's namespaces would have to run inside the VM");
        }
    }
    // Still what dockerd and buildkit use, whatever the specification calls it.
    #[allow(deprecated)]
    let prestart = hooks.prestart().clone().unwrap_or_default();
    Ok(Hooks {
        prestart,
        create_runtime: hooks.create_runtime().clone().unwrap_or_default(),
        poststart: hooks.poststart().clone().unwrap_or_default(),
        poststop: hooks.poststop().clone().unwrap_or_default(),
    })
}

fn note_ineffective(linux: &Linux, notes: &mut Vec<String>) {
    let mut note = |given: bool, what: &str| {
        if given {
            notes.push(format!("{what} is accepted and has no effect yet"));
        }
    };
    note(linux.seccomp().is_some(), "linux.seccomp");
    note(linux.mount_label().is_some(), "linux.mountLabel");
    note(linux.intel_rdt().is_some(), "linux.intelRdt");
    note(linux.personality().is_some(), "linux.personality");
}
