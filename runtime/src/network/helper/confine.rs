//! What the network helper is: CAP_NET_ADMIN, the folder of the tun device and some thirty system calls, and nothing else of the
//! host's.

use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::thread::CapabilitySet;
use syscalls::Sysno;

use crate::confinement::{self, Call, Filter, Program, any, one_of, without};

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

/// The system calls of the helper.
const CALLS: &[Call] = &[
    // Requests and replies, with descriptors.
    any(Sysno::recvmsg),
    any(Sysno::sendmsg),
    any(Sysno::close),
    one_of(Sysno::fcntl, 1, &[libc::F_DUPFD_CLOEXEC as u32]),
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
    // The list of UDP sockets, the port range, the log.
    any(Sysno::pread64),
    any(Sysno::pwrite64),
    any(Sysno::write),
    // Memory; never for code.
    any(Sysno::brk),
    any(Sysno::madvise),
    without(Sysno::mmap, 2, libc::PROT_EXEC as u32),
    any(Sysno::mremap),
    any(Sysno::munmap),
    any(Sysno::getrandom),
    // Where the clock is no matter of user space alone.
    any(Sysno::clock_gettime),
    // Signals, which end it.
    any(Sysno::restart_syscall),
    any(Sysno::rt_sigaction),
    any(Sysno::rt_sigprocmask),
    any(Sysno::rt_sigreturn),
    any(Sysno::sigaltstack),
    // The end.
    any(Sysno::exit),
    any(Sysno::exit_group),
];

fn filter() -> Filter {
    Filter { name: "network-helper", program: const { &Program::new(&[CALLS]) } }
}
