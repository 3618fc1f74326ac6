//! What connects a container with others: the namespace its interfaces come from, and where no engine makes a network, one by
//! passt(1) and published ports.

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

/// What a container has of the network.
#[derive(Debug)]
pub struct Network {
    /// The namespace that the monitor lives in.
    pub namespace: NetworkPlan,
    /// Whether passt fills it.
    pub user_network: bool,
    /// Published ports.
    pub ports: Vec<PortPlan>,
}

/// Plans all of it; adds the resolver of a network by passt to what the container mounts.
///
/// # Errors
/// What is asked for is malformed, not possible in a VM or not allowed, or the container has a network already.
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
        bail!(
            "--net and --publish: the container is in the VM of container {}: give that one the network and the ports",
            sandbox.id
        );
    }
    if user_network {
        user_network::plan(&namespace, &options.resolv_conf, request)?;
    }
    Ok(Network { namespace, user_network, ports })
}
