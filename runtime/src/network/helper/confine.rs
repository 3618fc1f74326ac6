//! What the network helper is: CAP_NET_ADMIN, the folder of the tun device and some twenty system calls, and nothing else of the
//! host's.

use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::thread::CapabilitySet;
use syscalls::Sysno;

use crate::confinement::groups::{BASE, MEMORY};
use crate::confinement::{self, Call, Filter, Program, any, one_of};

/// Directory without anything of use, for a host without a tun device.
const NOTHING: &str = "/proc/self/fdinfo";

/// Gives up everything but what the helper needs. `devices` becomes the root directory; without
/// `seccomp` the kernel has no filters of system calls.
///
/// # Errors
/// Names what could not be given up.
pub fn enter(devices: Option<&OwnedFd>, seccomp: bool) -> anyhow::Result<()> {
    confinement::hide_memory()?;
    match devices {
        Some(devices) => rustix::process::fchdir(devices),
        None => rustix::process::chdir(NOTHING),
    }
    .and_then(|()| rustix::process::chroot("."))
    .context("leave the host's files")?;
    confinement::empty_bounding_set();
    confinement::keep(CapabilitySet::NET_ADMIN).context("drop capabilities")?;
    confinement::prepare(seccomp).context("have forbidden system calls reported")?;
    filter().confine().context("filter system calls")
}

/// All calls of the helper.
const CALLS: &[&[Call]] = &[OWN, BASE, MEMORY];

/// Calls of the helper that are not those of any process.
const OWN: &[Call] = &[
    // Requests and replies, with descriptors.
    any(Sysno::recvmsg),
    any(Sysno::sendmsg),
    any(Sysno::close),
    // Netlink, and sockets to the resolver.
    one_of(Sysno::socket, 0, &[libc::AF_NETLINK as u32, libc::AF_INET as u32]),
    any(Sysno::bind),
    any(Sysno::connect),
    any(Sysno::getsockname),
    any(Sysno::recvfrom),
    any(Sysno::sendto),
    any(Sysno::setsockopt),
    // Taps; the root directory is that of the tun device.
    any(Sysno::openat),
    one_of(Sysno::ioctl, 1, &[libc::TUNSETIFF as u32, libc::SIOCGIFINDEX as u32, libc::FIONBIO as u32]),
    // The list of UDP sockets and the port range.
    any(Sysno::pread64),
    any(Sysno::pwrite64),
    // The end of an attack that a test makes.
    #[cfg(feature = "owned")]
    any(Sysno::rt_sigreturn),
];

fn filter() -> Filter {
    Filter { name: "network-helper", program: const { &Program::new(CALLS) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_that_of_the_table() {
        let list = confinement::list(filter().name, CALLS);
        assert!(list == include_str!("calls.txt"), "the list is not the one in calls.txt any more:\n{list}");
    }
}
