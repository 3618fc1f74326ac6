//! User-mode network by passt(1), for a container whose engine makes no network.

use std::net::Ipv4Addr;

use anyhow::bail;
use oci_spec::runtime::Spec;
use protocol::{CreateContainerRequest, Mount};

use super::namespace::NetworkPlan;
use crate::plan::annotations;
use crate::plan::options::Options;

/// File with the resolver's address.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Address of the container, as with slirp and podman.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// Prefix length of the network.
pub const PREFIX: u8 = 24;
/// Address of the gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Address at which the host's resolver answers.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Whether option or annotation asks for a user-mode network.
///
/// # Errors
/// The annotation names an unknown network.
pub fn is_wanted(spec: &Spec, options: &Options) -> anyhow::Result<bool> {
    match annotations::get(spec, annotations::NET) {
        None => Ok(options.user_network),
        Some("user") => Ok(true),
        Some(other) => bail!("annotation {}: unknown network {other:?}: known is user", annotations::NET),
    }
}

/// Adds the network's resolver to the container's mounts.
///
/// # Errors
/// The bundle gives the container a network namespace.
pub fn plan(namespace: &NetworkPlan, resolv_conf: &str, request: &mut CreateContainerRequest) -> anyhow::Result<()> {
    if let NetworkPlan::Path(path) = namespace {
        bail!(
            "--net user: the bundle gives the container network namespace {}; leave its path out of linux.namespaces, \
             or --net",
            path.display()
        );
    }
    request.mounts.extend(resolver(request, resolv_conf));
    Ok(())
}

/// Mount of the resolver's settings, unless the bundle brings its own.
fn resolver(request: &CreateContainerRequest, host: &str) -> Option<Mount> {
    if request.mounts.iter().any(|mount| mount.destination == RESOLV_CONF) {
        return None;
    }
    let settings = ["search", "domain", "options"];
    let is_setting = |line: &&str| line.split_whitespace().next().is_some_and(|word| settings.contains(&word));
    let mut content = format!("nameserver {RESOLVER}\n");
    for line in host.lines().filter(is_setting) {
        content.push_str(line);
        content.push('\n');
    }
    let (destination, kind) = (RESOLV_CONF.to_owned(), "bind".to_owned());
    Some(Mount { destination, kind, content: content.into_bytes(), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_of_the_bundles_stays() {
        let mut request = CreateContainerRequest::new();
        let made =
            resolver(&request, "nameserver 192.0.2.1\nsearch example.org\n# options\noptions ndots:2\n").unwrap();
        let content = String::from_utf8(made.content.clone()).unwrap();
        assert_eq!(content, "nameserver 10.0.2.3\nsearch example.org\noptions ndots:2\n");
        request.mounts.push(made);
        assert!(resolver(&request, "").is_none());
    }
}
