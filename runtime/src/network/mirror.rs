//! Mirrors a link into the guest: netlink messages that change its link from one configuration to another, and that the agent
//! sends as they are.
//!
//! The agent sets sequence numbers. Deleting what is gone already is no failure: removing an address removes its routes, and taking
//! a link down removes both.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};

use super::links::{Link, about};
use super::netlink;

/// Least MTU of a link with IPv6.
const IPV6_MIN_MTU: u32 = 1280;

/// Messages for a change, in order; none if nothing has changed.
pub fn mirror(old: Option<&Link>, new: &Link) -> Vec<Vec<u8>> {
    let mut messages = old.map(|old| removed(old, new)).unwrap_or_default();
    let changed = old.is_none_or(|old| !same_link(old, new));
    if changed {
        let renamed = old.is_some_and(|old| old.name != new.name);
        messages.extend(link(new, renamed).into_iter().map(|message| (RouteNetlinkMessage::NewLink(message), 0)));
    }
    // What goes may take along what stays.
    let old = old.filter(|_| messages.is_empty());
    messages.extend(added(old, new));
    if changed && new.link_local && new.mtu >= IPV6_MIN_MTU {
        // After the host's address is there: one of the kernel's own would be of no use until the kernel has asked around.
        let mode = about(new.index, vec![address_mode(true)]);
        messages.push((RouteNetlinkMessage::NewLink(mode), 0));
    }
    messages.into_iter().map(|(message, flags)| netlink::bytes(message, NLM_F_ACK | flags, 0)).collect()
}

fn same_link(old: &Link, new: &Link) -> bool {
    let own = |link: &Link| (link.mac, link.mtu, link.up, link.no_arp, link.link_local);
    own(old) == own(new) && old.name == new.name
}

/// Messages that set the link itself. Two, since the kernel applies IPv6 settings only after the link went up.
fn link(link: &Link, renamed: bool) -> [LinkMessage; 2] {
    let own = vec![LinkAttribute::Address(link.mac.to_vec()), LinkAttribute::Mtu(link.mtu)];
    let mut settings = about(link.index, own);
    if renamed {
        settings.attributes.push(LinkAttribute::IfName(link.name.clone()));
    }
    if link.mtu >= IPV6_MIN_MTU {
        settings.attributes.push(address_mode(false));
    }
    let mut state = about(link.index, Vec::new());
    state.header.flags.set(LinkFlags::Up, link.up);
    state.header.flags.set(LinkFlags::Noarp, link.no_arp);
    state.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    [settings, state]
}

/// Attribute that says whether the kernel makes an IPv6 address for a link.
pub fn address_mode(link_local: bool) -> LinkAttribute {
    let mode = if link_local { In6AddrGenMode::Eui64 } else { In6AddrGenMode::None };
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
}

type Requests = Vec<(RouteNetlinkMessage, u16)>;

fn removed(old: &Link, new: &Link) -> Requests {
    use RouteNetlinkMessage as M;
    let neighbours = missing(&old.neighbours, &new.neighbours).map(|neighbour| (M::DelNeighbour(neighbour), 0));
    let routes = missing(&old.routes, &new.routes).map(|route| (M::DelRoute(route), 0));
    let addresses = missing(&old.addresses, &new.addresses).map(|address| (M::DelAddress(address), 0));
    neighbours.chain(routes).chain(addresses).collect()
}

fn added(old: Option<&Link>, new: &Link) -> Requests {
    use RouteNetlinkMessage as M;
    const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    let addresses = missing(&new.addresses, old.map_or(&[], |old| &old.addresses));
    let addresses = addresses.map(|address| (M::NewAddress(address), PUT));
    let routes = missing(&new.routes, old.map_or(&[], |old| &old.routes)).map(|route| (M::NewRoute(route), PUT));
    let neighbours = missing(&new.neighbours, old.map_or(&[], |old| &old.neighbours));
    let neighbours = neighbours.map(|neighbour| (M::NewNeighbour(neighbour), PUT));
    addresses.chain(routes).chain(neighbours).collect()
}

/// Elements of `these` that `others` lacks.
fn missing<'a, T: Clone + PartialEq>(these: &'a [T], others: &'a [T]) -> impl Iterator<Item = T> + 'a {
    these.iter().filter(|this| !others.contains(this)).cloned()
}
