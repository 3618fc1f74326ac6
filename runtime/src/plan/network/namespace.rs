//! The network namespace that the container's interfaces come from.

use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::plan::facts::NetworkFact;
use crate::plan::vm::{Surroundings, process_of};

/// The network namespace that the monitor lives in and the container's interfaces come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPlan {
    /// A new namespace.
    New,
    /// The existing namespace at a path.
    Path(PathBuf),
}

/// Plans the network namespace.
///
/// # Errors
/// The bundle lists no network namespace, or one that is the host's or cannot be used.
pub fn plan(spec: &Spec, surroundings: Surroundings<'_>) -> anyhow::Result<NetworkPlan> {
    const HOST: &str = "host network is not possible in a VM: it would need the host's own interfaces; \
                        use --network bridge or none (a network namespace in linux.namespaces)";
    let Surroundings { facts, sandbox } = surroundings;
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let entry = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let entry = entry.context(HOST)?;
    let path = entry.path().as_deref().filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else { return Ok(NetworkPlan::New) };
    let owner = sandbox.and_then(|sandbox| sandbox.owner(LinuxNamespaceType::Network));
    match &facts.network {
        NetworkFact::Is(id) if facts.host_networks.contains(id) => bail!("{HOST}"),
        // Its links would be taken away from it.
        NetworkFact::Is(_) if let (Some(pid), None) = (process_of(path), owner) => bail!(
            "cannot join network namespace {}: process {pid} does not belong to a container under this --root, and a VM \
             cannot share its network; run both containers with runvm, or give this one a network of its own",
            path.display()
        ),
        NetworkFact::Is(_) => Ok(NetworkPlan::Path(path.to_owned())),
        NetworkFact::NotNamespace => bail!("network namespace {}: the file is not a namespace", path.display()),
        NetworkFact::Missing(why) => bail!("network namespace {}: {why}", path.display()),
        NetworkFact::NotGiven => bail!("network namespace {}: it was not looked at", path.display()),
    }
}
