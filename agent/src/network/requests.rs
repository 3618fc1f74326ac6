//! Requests of rtnetlink(7) that the host has composed, executed in a container's network.

use crate::error::{Context, Result};
use crate::network::netlink::Netlink;
use rustix::io::Errno;

/// Executes one request. What the container has done or prevented itself is no failure.
pub fn execute(network: &Netlink, message: &[u8]) -> Result<()> {
    let kind = message.get(4..6).and_then(<[u8]>::first_chunk).map_or(0, |kind| u16::from_ne_bytes(*kind));
    let family = message.get(16).copied().map_or(0, libc::c_int::from);
    let of_link = [libc::RTM_NEWLINK, libc::RTM_SETLINK].contains(&kind);
    let deletes = [libc::RTM_DELADDR, libc::RTM_DELROUTE, libc::RTM_DELNEIGH].contains(&kind);
    let mut done = network.execute(message);
    if done == Err(Errno::NETUNREACH) && kind == libc::RTM_NEWROUTE && family == libc::AF_INET {
        // A route stays when the way to its gateway goes, and cannot be made again like that.
        done = network.execute(&to_any_gateway(message));
    }
    match done {
        // The container may have done it itself, and what goes takes along what belongs to it.
        Err(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL) if deletes => Ok(()),
        Err(Errno::EXIST) if !of_link => Ok(()),
        // The container has turned IPv6 off.
        Err(Errno::ACCESS | Errno::HOSTUNREACH | Errno::NETUNREACH) if family == libc::AF_INET6 => Ok(()),
        done => done.context(|| format!("set up the container's network (rtnetlink request of type {kind})")),
    }
}

/// An `RTM_NEWROUTE` with `RTNH_F_ONLINK`, for which the kernel does not look for a way to the gateway.
fn to_any_gateway(route: &[u8]) -> Vec<u8> {
    const FLAGS: std::ops::Range<usize> = 24..28;
    /// Flag of `linux/rtnetlink.h`.
    const RTNH_F_ONLINK: u32 = 4;
    let mut route = route.to_vec();
    if let Some(flags) = route.get_mut(FLAGS).and_then(|flags| flags.first_chunk_mut()) {
        *flags = (u32::from_ne_bytes(*flags) | RTNH_F_ONLINK).to_ne_bytes();
    }
    route
}
