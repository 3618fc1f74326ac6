//! A user-mode network by passt(1), for a container whose engine makes none.

use std::net::Ipv4Addr;

use anyhow::bail;
use oci_spec::runtime::Spec;
use protocol::{CreateContainerRequest, Mount};

use super::namespace::NetworkPlan;
use crate::plan::annotations;
use crate::plan::options::Options;

/// Where programs find their resolver.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The addresses of a network by passt, those that slirp and podman have for it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// Bits of its network.
pub const PREFIX: u8 = 24;
/// Where packets for others go.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where the host's resolver answers.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Whether option or annotation ask for such a network.
///
/// # Errors
/// The annotation is not allowed, or names a network that there is not.
pub fn is_wanted(spec: &Spec, options: &Options) -> anyhow::Result<bool> {
    match annotations::network(spec, annotations::NET, options.allow_net_annotations)? {
        None => Ok(options.user_network),
        Some("user") => Ok(true),
        Some(other) => bail!("annotation {}: {other:?} is no network of runvm's: there is \"user\"", annotations::NET),
    }
}

/// Adds the network's resolver to what the container mounts.
///
/// # Errors
/// The container has a network already.
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

/// The mount of the resolver's settings, unless the bundle brings its own.
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
