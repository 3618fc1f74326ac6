//! Changes that engines make in a network namespace while a container runs, as the kernel reports them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{links, netlink};

/// Multicast groups of links, addresses, routes and neighbours.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEIGH,
];

/// Opens a descriptor that becomes readable when something changes in the calling thread's namespace. To be opened before the
/// first scan. What it reads needs no capability.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<OwnedFd> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
    socket.set_non_blocking(true)?;
    // SAFETY: the descriptor is open, and the socket gives it up.
    Ok(unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) })
}

/// What the kernel reports of a namespace.
pub struct Changes {
    socket: netlink_sys::Socket,
    taps: BTreeSet<u32>,
    buffer: Vec<u8>,
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Changes {
    /// Those that this descriptor, of [`watch`], reads.
    pub fn of(descriptor: OwnedFd) -> Self {
        // SAFETY: the descriptor is open, and its owner gives it up.
        let socket = unsafe { netlink_sys::Socket::from_raw_fd(descriptor.into_raw_fd()) };
        Self { socket, taps: BTreeSet::new(), buffer: Vec::new() }
    }

    /// Reads the pending reports; says whether any of them matters and is not our own doing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drain(&mut self) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match netlink::receive(&self.socket, &mut self.buffer) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                // More than the socket holds.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    changed = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in netlink::messages(&self.buffer) {
                let idle = message.is_ok_and(|message| is_idle(&mut self.taps, &message.payload));
                changed |= !idle;
            }
        }
    }
}

/// Whether a report is about our own tap, or a neighbour that the kernel learned by itself.
fn is_idle(taps: &mut BTreeSet<u32>, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage as M;
    let NetlinkPayload::InnerMessage(message) = payload else { return false };
    match message {
        M::NewLink(link) | M::DelLink(link) => {
            let ours = links::is_ours(link);
            match message {
                M::NewLink(_) if ours => taps.insert(link.header.index),
                _ => taps.remove(&link.header.index),
            };
            ours
        }
        M::NewAddress(address) | M::DelAddress(address) => taps.contains(&address.header.index),
        M::NewRoute(route) | M::DelRoute(route) => {
            let tap =
                |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(index) if taps.contains(index));
            route.attributes.iter().any(tap)
        }
        // One that is removed is told to have failed, whatever it was.
        M::NewNeighbour(neighbour) | M::DelNeighbour(neighbour) => {
            !matches!(neighbour.header.state, NeighbourState::Permanent | NeighbourState::Failed)
        }
        _ => false,
    }
}
