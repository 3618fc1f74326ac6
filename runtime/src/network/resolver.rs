//! Docker's resolver at 127.0.0.11 of a container's namespace.
//!
//! Docker's resolver asks other name servers from inside of the namespace, with the link's own address. Their replies arrive by the
//! link; a filter tells them from the guest's packets by the port: the host's sockets get ports that a guest's never get by
//! themselves.

use std::os::fd::OwnedFd;

use anyhow::Context;

use crate::directory;

/// Port range for the host's sockets in the namespace: 0xff00 to 0xffff.
pub const PORTS: &str = "65280\t65535";
/// Port range of a new namespace.
pub const DEFAULT: &str = "32768\t60999";
/// File with the port range, below /proc; belongs to the namespace of whoever opens it.
const RANGE: &str = "sys/net/ipv4/ip_local_port_range";
/// File with the UDP sockets of the thread's namespace, below /proc.
const SOCKETS: &str = "thread-self/net/udp";
/// 127.0.0.11 as the kernel prints it.
const ADDRESS: &str = "0B00007F:";

/// Whether a socket is bound to the resolver's address.
///
/// # Errors
/// The sockets cannot be listed.
pub fn is_there(proc: &OwnedFd) -> anyhow::Result<bool> {
    let sockets = read(proc, SOCKETS)?;
    let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|address| address.starts_with(ADDRESS));
    Ok(sockets.lines().any(local))
}

/// Port range of the namespace.
///
/// # Errors
/// The setting cannot be read.
pub fn ports(proc: &OwnedFd) -> anyhow::Result<String> {
    let ports = read(proc, RANGE)?;
    // Left by somebody who could not give it back.
    Ok(if ports == PORTS { DEFAULT.to_owned() } else { ports })
}

/// Sets the port range for the host's sockets; returns the previous one.
///
/// # Errors
/// The setting cannot be read or written.
pub fn set_apart(proc: &OwnedFd) -> anyhow::Result<String> {
    let old = ports(proc)?;
    write(proc, PORTS).map(|()| old)
}

/// Undoes [`set_apart`]. Somebody else's change since then stays.
///
/// # Errors
/// The setting cannot be read or written.
pub fn give_back(proc: &OwnedFd, old: &str) -> anyhow::Result<()> {
    if read(proc, RANGE)? == PORTS { write(proc, old) } else { Ok(()) }
}

fn read(proc: &OwnedFd, path: &str) -> anyhow::Result<String> {
    directory::read(proc, path).with_context(|| format!("read /proc/{path}"))
}

fn write(proc: &OwnedFd, range: &str) -> anyhow::Result<()> {
    directory::write(proc, RANGE, range).with_context(|| format!("write {range:?} to /proc/{RANGE}"))
}
