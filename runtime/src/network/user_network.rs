//! The link of a user-mode network, for a namespace that no engine fills: a tap that leads to passt(1).

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as M};

use super::files::Files;
use super::links::about;
use super::netlink::Socket;
use super::tap;
use crate::host::passt::MTU;
use crate::plan::user_network::{ADDRESS, GATEWAY, PREFIX};

/// Name of the link.
const NAME: &str = "eth0";

/// Makes the link in the calling thread's namespace, with address and route. Returns its descriptor, which carries plain Ethernet
/// frames; closing it removes the link.
///
/// # Errors
/// The kernel refuses; then there is no link.
pub fn make(files: &Files) -> anyhow::Result<OwnedFd> {
    let mut socket = Socket::open().context("open a netlink socket")?;
    let tap = tap::make_plain(files.devices()?, &socket, NAME)?;
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    for (request, flags) in [(up(tap.index), 0), (address(tap.index), NEW), (route(tap.index), NEW)] {
        socket.request(request, flags).with_context(|| format!("set up link {NAME}"))?;
    }
    Ok(tap.file)
}

fn up(index: u32) -> M {
    let mut message = about(index, vec![LinkAttribute::Mtu(MTU)]);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    M::SetLink(message)
}

fn address(index: u32) -> M {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = PREFIX;
    message.header.index = index;
    let ip = IpAddr::V4(ADDRESS);
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    M::NewAddress(message)
}

fn route(index: u32) -> M {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)), RouteAttribute::Oif(index)];
    M::NewRoute(message)
}
