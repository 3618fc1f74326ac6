//! Published ports, as open sockets of the host's network.
//!
//! The command opens them, where it stands; the monitor, which lives elsewhere, only uses them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use crate::ipc::Descriptor;
use crate::plan::PortPlan;

/// A published port.
#[derive(Debug, Serialize, Deserialize)]
pub struct Port {
    /// Bound on the host; listens, unless it is for datagrams.
    pub socket: Descriptor,
    /// Port of the container.
    pub container: u16,
    /// Whether the port is for UDP, and not TCP.
    pub datagrams: bool,
}

/// Connections that wait to be accepted; the kernel's limit may be lower.
const BACKLOG: i32 = 4096;

/// Opens each: one that listens for TCP, one that is bound for UDP.
///
/// # Errors
/// Names the first that cannot be had, and why.
pub fn open(plans: &[PortPlan]) -> anyhow::Result<Vec<Port>> {
    let open = |plan: &PortPlan| {
        let socket = open_one(plan).with_context(|| hint(plan))?.into();
        anyhow::Ok(Port { socket, container: plan.container, datagrams: plan.datagrams })
    };
    plans.iter().map(open).collect()
}

fn hint(plan: &PortPlan) -> String {
    format!("publish port {plan} (does something else on this host have it? choose another one)")
}

fn open_one(plan: &PortPlan) -> io::Result<OwnedFd> {
    let Some(address) = plan.address else {
        // One socket for both kinds of addresses, where the host has both.
        return match bind(plan, Ipv6Addr::UNSPECIFIED.into()) {
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => Ok(bind(plan, Ipv4Addr::UNSPECIFIED.into())?),
            opened => Ok(opened?),
        };
    };
    Ok(bind(plan, address)?)
}

fn bind(plan: &PortPlan, address: IpAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = if plan.datagrams { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, plan.address.is_some())?;
    }
    if !plan.datagrams {
        // Connections of an earlier container may still be on their way out.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(address, plan.host))?;
    if !plan.datagrams {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(address: Option<IpAddr>, host: u16, datagrams: bool) -> PortPlan {
        PortPlan { address, host, container: 80, datagrams }
    }

    #[test]
    fn a_port_that_somebody_has_is_named() {
        for datagrams in [false, true] {
            let address = Some(Ipv4Addr::LOCALHOST.into());
            let first = open(&[plan(address, 0, datagrams)]).unwrap().remove(0).socket;
            let port = std::net::TcpListener::from(first.clone().into_owned().unwrap()).local_addr().unwrap().port();
            for again in [address, None] {
                let error = format!("{:#}", open(&[plan(again, port, datagrams)]).unwrap_err());
                assert!(error.contains(&plan(again, port, datagrams).to_string()), "{error}");
                assert!(error.contains("in use"), "{error}");
            }
        }
    }

    #[test]
    fn without_an_address_it_is_that_of_all() {
        let socket = open(&[plan(None, 0, false)]).unwrap().remove(0).socket;
        let port = std::net::TcpListener::from(socket.clone().into_owned().unwrap()).local_addr().unwrap().port();
        assert!(std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    }
}
