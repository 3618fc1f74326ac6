//! Published ports: ports of the host that lead to the container.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;

use crate::plan::annotations;
use crate::plan::options::Options;

/// Most ports of a container: each is an open descriptor.
const MOST: usize = 512;

/// A port of the host that leads to one of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Address of the host; without one, all addresses.
    pub address: Option<IpAddr>,
    /// Port of the host.
    pub host: u16,
    /// Port of the container.
    pub container: u16,
    /// Whether the port is for UDP rather than TCP.
    pub datagrams: bool,
}

impl fmt::Display for PortPlan {
    /// Writes the host's end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.datagrams { "udp" } else { "tcp" };
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{protocol}", self.host),
            Some(address) => write!(f, "{address}:{}/{protocol}", self.host),
            None => write!(f, "{}/{protocol}", self.host),
        }
    }
}

/// Plans the published ports of options and annotation.
///
/// # Errors
/// A port is malformed, or there are too many.
pub fn plan(spec: &Spec, options: &Options) -> anyhow::Result<Vec<PortPlan>> {
    let annotation = annotations::get(spec, annotations::PORTS);
    let mut ports = Vec::new();
    for text in options.publish.iter().map(String::as_str) {
        ports.extend(parse(text).with_context(|| format!("--publish {text}"))?);
    }
    for text in annotation.iter().flat_map(|list| list.split(',')) {
        ports.extend(parse(text).with_context(|| format!("annotation {}: {text}", annotations::PORTS))?);
    }
    if ports.len() > MOST {
        bail!("cannot publish {} ports: the maximum is {MOST}", ports.len());
    }
    Ok(ports)
}

/// Parses `[ADDRESS:]PORT[-PORT]:PORT[-PORT][/tcp|/udp]`, with an IPv6 address in brackets.
fn parse(text: &str) -> anyhow::Result<Vec<PortPlan>> {
    const FORM: &str = "ports are [ADDRESS:]PORT[-PORT]:PORT[-PORT][/tcp|/udp]";
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let datagrams = match protocol {
        "tcp" => false,
        "udp" => true,
        other => bail!("{other:?} is neither tcp nor udp; {FORM}"),
    };
    let (rest, container) = ports.rsplit_once(':').with_context(|| format!("the host's port is missing; {FORM}"))?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(parse_address(address)?), host),
        None => (None, rest),
    };
    let (hosts, containers) = (range(host)?, range(container)?);
    if hosts.len() != containers.len() {
        bail!("{host} is {} ports and {container} is {}; {FORM}", hosts.len(), containers.len());
    }
    let port = |(host, container)| PortPlan { address, host, container, datagrams };
    Ok(hosts.zip(containers).map(port).collect())
}

fn parse_address(text: &str) -> anyhow::Result<IpAddr> {
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let parsed = match plain {
        Some(v6) => v6.parse().map(IpAddr::V6),
        None => text.parse().map(IpAddr::V4),
    };
    parsed.with_context(|| format!("{text:?} is not an IP address (IPv6 addresses need brackets)"))
}

fn range(text: &str) -> anyhow::Result<impl ExactSizeIterator<Item = u16> + use<>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => bail!("{text:?} is not a port (1 to 65535)"),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        bail!("ports {text}: the first is above the last");
    }
    // What a range of u16 with its end is not: of a length that is known.
    Ok((0..usize::from(last - first) + 1).map(move |offset| first + offset as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let ports = parse(text).unwrap();
        ports.iter().map(|port| format!("{port} {}", port.container)).collect()
    }

    #[test]
    fn ports_are_read_as_dockers() {
        assert_eq!(shown("8080:80"), ["8080/tcp 80"]);
        assert_eq!(shown("127.0.0.1:53:5353/udp"), ["127.0.0.1:53/udp 5353"]);
        assert_eq!(shown("[::1]:1:2/tcp"), ["[::1]:1/tcp 2"]);
        assert_eq!(shown("65534-65535:1-2"), ["65534/tcp 1", "65535/tcp 2"]);
    }

    #[test]
    fn malformed_ports_are_told() {
        let of = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(of("80").contains("the host's port is missing"));
        assert!(of("80:80/sctp").contains("neither tcp nor udp"));
        assert!(
            of("0:80").contains("\"0\" is not a port")
                && of("80:65536").contains("is not a port")
                && of(":80").contains("is not a port")
        );
        assert!(of("1-3:1-2").contains("1-3 is 3 ports and 1-2 is 2"));
        assert!(of("3-1:1-3").contains("the first is above the last"));
        assert!(
            of("::1:80:80").contains("is not an IP address")
                && of("[127.0.0.1]:80:80").contains("is not an IP address")
        );
    }
}
