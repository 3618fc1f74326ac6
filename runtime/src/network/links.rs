//! Links of a network namespace with their configuration, as messages that can be sent again.
//!
//! A scan leaves out what the kernel makes by itself (routes to an address's own network, what a router announces): the guest's
//! kernel makes it as well, unless told not to. A scan also leaves out what changes with time, so that two scans of the same
//! link are equal.

use std::io;
use std::net::IpAddr;

use anyhow::Context;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::netlink::{self, Socket};
use crate::{ipc, log};

/// Prefix of the names of our taps.
pub const TAP_PREFIX: &str = "runvm";

/// A link of an engine, and its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Packed", from = "Packed")]
pub struct Link {
    /// Interface index, the same in the guest.
    pub index: u32,
    /// Name of the link.
    pub name: String,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Whether the link is up.
    pub up: bool,
    /// Whether the link does without ARP.
    pub no_arp: bool,
    /// Whether IPv6 is disabled on the link.
    pub no_ipv6: bool,
    /// Whether the kernel makes an IPv6 address for the link.
    pub link_local: bool,
    /// Addresses, in the order in which they are to be added.
    pub addresses: Vec<AddressMessage>,
    /// Routes, in the order in which they are to be added.
    pub routes: Vec<RouteMessage>,
    /// Permanent neighbours.
    pub neighbours: Vec<NeighbourMessage>,
}

/// A link as it travels between processes: what is configured on it as netlink messages, one after the other.
#[derive(Serialize, Deserialize)]
struct Packed {
    index: u32,
    name: String,
    mac: [u8; 6],
    mtu: u32,
    up: bool,
    no_arp: bool,
    no_ipv6: bool,
    link_local: bool,
    #[serde(with = "ipc::bytes")]
    configuration: Vec<u8>,
}

impl From<Link> for Packed {
    fn from(link: Link) -> Self {
        use RouteNetlinkMessage as M;
        let Link { index, name, mac, mtu, up, no_arp, no_ipv6, link_local, addresses, routes, neighbours } = link;
        let addresses = addresses.into_iter().map(M::NewAddress);
        let configured = addresses.chain(routes.into_iter().map(M::NewRoute));
        let configured = configured.chain(neighbours.into_iter().map(M::NewNeighbour));
        let configuration = configured.flat_map(|message| netlink::bytes(message, 0, 0)).collect();
        Self { index, name, mac, mtu, up, no_arp, no_ipv6, link_local, configuration }
    }
}

impl From<Packed> for Link {
    fn from(packed: Packed) -> Self {
        use RouteNetlinkMessage as M;
        let Packed { index, name, mac, mtu, up, no_arp, no_ipv6, link_local, configuration } = packed;
        let mut link = Self { index, name, mac, mtu, up, no_arp, no_ipv6, link_local, ..Self::default() };
        for message in netlink::messages(&configuration) {
            match message.map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(M::NewAddress(address))) => link.addresses.push(address),
                Ok(NetlinkPayload::InnerMessage(M::NewRoute(route))) => link.routes.push(route),
                Ok(NetlinkPayload::InnerMessage(M::NewNeighbour(neighbour))) => link.neighbours.push(neighbour),
                Ok(_) => {}
                Err(error) => log::warning(&format!("link {}: not mirrored in full: {error}", link.name)),
            }
        }
        link
    }
}

/// Scans the socket's namespace: its Ethernet-like links without our taps, by index.
pub fn scan(socket: &mut Socket) -> anyhow::Result<Vec<Link>> {
    let mut links = list(socket).context("list the links")?.into_iter().filter_map(link).collect::<Vec<_>>();
    links.sort_by_key(|link| link.index);
    if links.is_empty() {
        return Ok(links);
    }
    add_addresses(socket, &mut links).context("list the addresses")?;
    let prefixes = add_routes(socket, &mut links).context("list the routes")?;
    links.iter_mut().for_each(|link| note_missing(link, &prefixes));
    add_neighbours(socket, &mut links).context("list the neighbours")?;
    links.iter_mut().for_each(order);
    Ok(links)
}

fn add_addresses(socket: &mut Socket, links: &mut [Link]) -> io::Result<()> {
    for message in socket.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = message else { continue };
        let Some(link) = by_index(links, message.header.index) else { continue };
        link.addresses.extend(address(message));
    }
    Ok(())
}

/// A network that a link leads to: index of the link, address and prefix length.
type Prefix = (u32, IpAddr, u8);

/// Adds routes to their links; returns the networks to which the kernel has made routes.
fn add_routes(socket: &mut Socket, links: &mut [Link]) -> io::Result<Vec<Prefix>> {
    let mut prefixes = Vec::new();
    for message in socket.dump(&RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        let RouteNetlinkMessage::NewRoute(message) = message else { continue };
        prefixes.extend(prefix_of_kernel(&message));
        let Some((index, route)) = route(message) else { continue };
        let Some(link) = by_index(links, index) else { continue };
        link.routes.push(route);
    }
    Ok(prefixes)
}

fn prefix_of_kernel(route: &RouteMessage) -> Option<Prefix> {
    if route.header.protocol != RouteProtocol::Kernel {
        return None;
    }
    let (mut index, mut network) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) => index = Some(*link),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => network = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => network = Some(IpAddr::V6(*address)),
            _ => {}
        }
    }
    Some((index?, network?, route.header.destination_prefix_length))
}

/// Marks addresses whose route, which the kernel makes, somebody has removed: the guest's kernel is to make none either.
fn note_missing(link: &mut Link, prefixes: &[Prefix]) {
    let (index, up) = (link.index, link.up);
    for address in link.addresses.iter_mut().filter(|_| up) {
        let length = address.header.prefix_len;
        let ip = address.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let Some(ip) = ip.filter(|ip| ip.is_ipv6() || length < 32) else { continue };
        if prefixes.contains(&(index, network(ip, length), length)) {
            continue;
        }
        for attribute in &mut address.attributes {
            if let AddressAttribute::Flags(flags) = attribute {
                *flags |= AddressFlags::Noprefixroute;
            }
        }
    }
}

/// Network of an address with a prefix length.
fn network(ip: IpAddr, length: u8) -> IpAddr {
    let rest = |bits: u32| bits.saturating_sub(length.into());
    match ip {
        IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) & u32::MAX.checked_shl(rest(32)).unwrap_or(0)).into()),
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & u128::MAX.checked_shl(rest(128)).unwrap_or(0)).into()),
    }
}

fn add_neighbours(socket: &mut Socket, links: &mut [Link]) -> io::Result<()> {
    for message in socket.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))? {
        let RouteNetlinkMessage::NewNeighbour(message) = message else { continue };
        let Some(link) = by_index(links, message.header.ifindex) else { continue };
        link.neighbours.extend(neighbour(message));
    }
    Ok(())
}

/// Links as the kernel lists them.
pub fn list(socket: &mut Socket) -> io::Result<Vec<LinkMessage>> {
    let mut wanted = LinkMessage::default();
    wanted.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let found = socket.dump(&RouteNetlinkMessage::GetLink(wanted))?.into_iter();
    let link = |message| if let RouteNetlinkMessage::NewLink(link) = message { Some(link) } else { None };
    Ok(found.filter_map(link).collect())
}

/// A message about the link of this number, with these attributes.
pub fn about(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    (message.header.index, message.attributes) = (index, attributes);
    message
}

/// Whether a link is a tap of runvm, of any process.
pub fn is_ours(message: &LinkMessage) -> bool {
    let name = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(n) if n.starts_with(TAP_PREFIX));
    let tun = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Tun));
    let kind = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkInfo(info) if info.iter().any(tun));
    message.attributes.iter().any(name) && message.attributes.iter().any(kind)
}

fn by_index(links: &mut [Link], index: u32) -> Option<&mut Link> {
    links.iter_mut().find(|link| link.index == index)
}

/// A link that a guest can have. Not so the tunnels that lead nowhere, which the kernel gives every namespace: those like Ethernet
/// have an address of zeros.
fn link(message: LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether && !flags.contains(LinkFlags::Loopback);
    if !ethernet || is_ours(&message) {
        return None;
    }
    let (index, up, no_arp) = (message.header.index, flags.contains(LinkFlags::Up), flags.contains(LinkFlags::Noarp));
    let mut found = Link { index, up, no_arp, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Address(mac) => found.mac = mac.try_into().ok()?,
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::AfSpecUnspec(families) => {
                found.link_local = families.iter().any(makes_addresses);
                found.no_ipv6 = families.iter().any(has_no_ipv6);
            }
            // Part of a bridge or bond of the same namespace, which is the link that counts.
            LinkAttribute::Controller(_) => return None,
            _ => {}
        }
    }
    (found.mac != [0; 6]).then_some(found)
}

fn makes_addresses(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(settings) = family else { return false };
    let mode = |setting: &AfSpecInet6| matches!(setting, AfSpecInet6::AddrGenMode(In6AddrGenMode::Eui64));
    settings.iter().any(mode) && !has_no_ipv6(family)
}

fn has_no_ipv6(family: &AfSpecUnspec) -> bool {
    let AfSpecUnspec::Inet6(settings) = family else { return false };
    settings.iter().any(|setting| matches!(setting, AfSpecInet6::DevConf(conf) if conf.disable_ipv6 != 0))
}

fn address(mut message: AddressMessage) -> Option<AddressMessage> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement) => return None,
            _ => {}
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    flags &= AddressFlags::Noprefixroute | AddressFlags::Mcautojoin | AddressFlags::Homeaddress;
    if message.header.family == AddressFamily::Inet6 {
        // The host has seen that nobody else has it, and it is to be of use at once.
        flags |= AddressFlags::Nodad;
    }
    message.attributes.retain(|attribute| {
        use AddressAttribute as A;
        matches!(attribute, A::Address(_) | A::Local(_) | A::Label(_) | A::Broadcast(_) | A::RoutePriority(_))
    });
    message.attributes.push(AddressAttribute::Flags(flags));
    message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits().to_le_bytes()[0]);
    Some(message)
}

/// A route as it can be made again, and the index of its link. A route with several next hops belongs to the last of their links.
fn route(mut message: RouteMessage) -> Option<(u32, RouteMessage)> {
    let made_by_kernel = matches!(message.header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    if made_by_kernel || message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    message.header.flags &= RouteFlags::Onlink;
    message.attributes.retain(is_settable);
    let mut index = None;
    for attribute in &mut message.attributes {
        match attribute {
            RouteAttribute::Oif(link) => index = Some(*link),
            RouteAttribute::MultiPath(ways) => {
                ways.iter_mut().for_each(plain);
                index = ways.iter().map(|way| way.interface_index).max();
            }
            _ => {}
        }
    }
    Some((index?, message))
}

fn plain(way: &mut RouteNextHop) {
    way.flags &= RouteNextHopFlags::Onlink;
    way.attributes.retain(is_settable);
}

fn is_settable(attribute: &RouteAttribute) -> bool {
    use RouteAttribute as A;
    let place = matches!(attribute, A::Destination(_) | A::Source(_) | A::Table(_) | A::Priority(_) | A::Oif(_));
    let way = matches!(attribute, A::Gateway(_) | A::Via(_) | A::MultiPath(_) | A::Encap(_) | A::EncapType(_));
    place || way || matches!(attribute, A::PrefSource(_) | A::Metrics(_) | A::Preference(_) | A::Realm(_))
}

fn neighbour(mut message: NeighbourMessage) -> Option<NeighbourMessage> {
    let of_ip = matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6);
    if !of_ip || message.header.state != NeighbourState::Permanent {
        return None;
    }
    message.header.flags &= NeighbourFlags::Router;
    message.attributes.retain(|attribute| {
        matches!(attribute, NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_))
    });
    Some(message)
}

/// Orders addresses and routes as they have to be added: the kernel lists the newest IPv6 address first, and takes no gateway before
/// the route to it.
fn order(link: &mut Link) {
    let newest_first = |address: &AddressMessage| address.header.family == AddressFamily::Inet6;
    let (mut v6, v4) = link.addresses.drain(..).partition::<Vec<_>, _>(newest_first);
    v6.reverse();
    link.addresses = v4.into_iter().chain(v6).collect();
    link.routes.sort_by_key(|route| {
        let far = |attribute: &RouteAttribute| {
            matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_))
        };
        route.attributes.iter().any(far)
    });
}
