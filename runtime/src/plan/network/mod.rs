//! Network of a container: the namespace that its interfaces come from, and, where no engine makes a network, passt(1) and
//! published ports.

mod namespace;
mod published_ports;
pub mod user_network;

use anyhow::bail;
use oci_spec::runtime::Spec;
use protocol::CreateContainerRequest;

use super::options::Options;
use super::vm::Surroundings;

pub use namespace::NetworkPlan;
pub use published_ports::PortPlan;

/// Planned network of a container.
#[derive(Debug)]
pub struct Network {
    /// Network namespace that the monitor lives in.
    pub namespace: NetworkPlan,
    /// Whether passt(1) provides the network.
    pub user_network: bool,
    /// Published ports.
    pub ports: Vec<PortPlan>,
}

/// Plans the network; adds the resolver of a user-mode network to the container's mounts.
///
/// # Errors
/// A setting is malformed, not allowed or not possible in a VM, or the container has a network already.
pub fn plan(
    spec: &Spec,
    options: &Options,
    surroundings: Surroundings<'_>,
    request: &mut CreateContainerRequest,
) -> anyhow::Result<Network> {
    let namespace = namespace::plan(spec, surroundings)?;
    let user_network = user_network::is_wanted(spec, options)?;
    let ports = published_ports::plan(spec, options)?;
    if let (Some(sandbox), true) = (surroundings.sandbox, user_network || !ports.is_empty()) {
        bail!("--net and --publish: the container joins the VM of container {}; give them to that one", sandbox.id);
    }
    if user_network {
        user_network::plan(&namespace, &options.resolv_conf, request)?;
    }
    Ok(Network { namespace, user_network, ports })
}
