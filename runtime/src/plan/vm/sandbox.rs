//! The VM that a container runs in: its own, or another container's.
//!
//! Namespaces exist within one kernel. So a container that joins namespaces of another one is created in the VM of that one,
//! and so is a container that an engine of Kubernetes declares part of a pod. The container that the VM was made for is the
//! sandbox: the VM ends with it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};

use super::pod::pod;
use super::size::MachinePlan;
use crate::plan::annotations;
use crate::plan::facts::{Facts, NetworkFact, Peer};

/// Another container's VM, which a container joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Id of the container that the VM was made for.
    pub id: String,
    /// Size of the VM.
    pub machine: MachinePlan,
    /// Ids of the containers whose namespaces the new one shares, by kind.
    pub owners: HashMap<LinuxNamespaceType, String>,
}

/// What exists before the container: the host, and the VM that it joins.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Facts about the host.
    pub facts: &'a Facts,
    /// Another container's VM, if the container has none of its own.
    pub sandbox: Option<&'a Sandbox>,
}

impl Sandbox {
    /// Id of the container whose namespace of this kind is shared.
    pub fn owner(&self, kind: LinuxNamespaceType) -> Option<&str> {
        self.owners.get(&kind).map(String::as_str)
    }
}

/// Pid of the process whose namespace a path names (`/proc/PID/ns/…`).
pub fn process_of(path: &Path) -> Option<i32> {
    let rest = path.to_str()?.strip_prefix("/proc/")?;
    let (pid, rest) = rest.split_once('/')?;
    rest.starts_with("ns/").then(|| pid.parse().ok()).flatten()
}

/// Whether the bundle may refer to another container's VM, so that planning needs the peers.
pub fn is_possible(spec: &Spec) -> bool {
    let by_path = namespaces(spec).iter().any(|namespace| owner_pid(namespace).is_some());
    by_path || pod(spec).is_some()
}

/// Finds the VM to join; none when the container gets its own.
///
/// # Errors
/// Namespaces belong to containers in different VMs, the pod does not run, or annotations describe a VM that exists already.
pub fn plan(spec: &Spec, facts: &Facts) -> anyhow::Result<Option<Sandbox>> {
    let mut owners = HashMap::new();
    let mut first: Option<&Peer> = None;
    for namespace in namespaces(spec) {
        let owner = owner_pid(namespace).and_then(|pid| facts.peers.iter().find(|other| other.pid == pid));
        let Some(owner) = owner else { continue };
        match first.filter(|first| first.sandbox != owner.sandbox) {
            Some(first) => {
                bail!("containers {} and {} are in different VMs: cannot join namespaces of both", first.id, owner.id)
            }
            None => first = Some(owner),
        }
        owners.insert(namespace.typ(), owner.id.clone());
    }
    let pod = pod(spec).map(|id| in_pod(id, facts)).transpose()?;
    let Some(other) = first.or(pod) else { return Ok(None) };
    if let Some(pod) = pod.filter(|pod| pod.sandbox != other.sandbox) {
        bail!("container {} is not in pod {}: cannot join its namespaces", other.id, pod.id);
    }
    if let (Some(owner), false) = (same_network(other, facts), owners.contains_key(&LinuxNamespaceType::Network)) {
        owners.insert(LinuxNamespaceType::Network, owner.id.clone());
    }
    annotations::refuse_shape(spec, &other.sandbox)?;
    let machine = MachinePlan {
        memory_mib: other.memory_mib,
        vcpus: other.vcpus,
        nested: false,
        spare_file_systems: 0,
        cmdline: String::new(),
        settings: Vec::new(),
    };
    Ok(Some(Sandbox { id: other.sandbox.clone(), machine, owners }))
}

fn namespaces(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default()
}

fn owner_pid(namespace: &LinuxNamespace) -> Option<i32> {
    process_of(namespace.path().as_deref()?)
}

fn in_pod<'a>(id: &str, facts: &'a Facts) -> anyhow::Result<&'a Peer> {
    let found = facts.peers.iter().find(|other| other.id == id);
    found.with_context(|| format!("sandbox {id} of the container's pod is not running with this runtime and --root"))
}

/// The container of a VM that has the network namespace which the bundle names by another path, as CRI-O does.
fn same_network<'a>(other: &Peer, facts: &'a Facts) -> Option<&'a Peer> {
    let NetworkFact::Is(wanted) = &facts.network else { return None };
    let in_vm = facts.peers.iter().filter(|peer| peer.sandbox == other.sandbox);
    in_vm.into_iter().find(|peer| peer.network.as_ref() == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_processes() {
        for (path, pid) in [
            ("/proc/12/ns/pid", Some(12)),
            ("/proc/self/ns/pid", None),
            ("/run/netns/x", None),
            ("/proc/7/fd/3", None),
            ("", None),
        ] {
            assert_eq!(process_of(Path::new(path)), pid, "{path}");
        }
    }
}
