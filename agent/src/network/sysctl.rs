//! Sysctls of network interfaces, which may come later than the container.

use crate::error::{Context, Result};
use crate::process::handle::Process;
use crate::process::in_namespaces::in_network;
use crate::sys;
use protocol::KeyValue;
use rustix::io::Errno;
use std::io::ErrorKind;
use std::path::Path;

/// Whether a sysctl belongs to one interface, so that it may have to wait for that.
pub fn is_of_interface(path: &str) -> bool {
    interface_of(path).is_some()
}

/// Name of the interface that a sysctl belongs to.
pub fn interface_of(path: &str) -> Option<&str> {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["net", "ipv4" | "ipv6", "conf" | "neigh", interface, ..] => {
            (!["all", "default", "lo"].contains(interface)).then_some(*interface)
        }
        _ => None,
    }
}

/// Writes a sysctl in the caller's namespace. One of an interface that is not there is left out.
pub fn write(sysctl: &KeyValue) -> Result<()> {
    match sys::write_file(format!("/proc/sys/{}", sysctl.key), &sysctl.value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written.context(|| what(sysctl)),
    }
}

/// Checks, before the container starts, that each of its interfaces' sysctls exists: an interface that has not come is a
/// mistake of whoever set the sysctl.
pub fn check(sysctls: &[KeyValue], init: &Process) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let is_missing = |sysctl: &&KeyValue| !Path::new(&format!("/proc/sys/{}", sysctl.key)).exists();
    match in_network(init, || sysctls.iter().find(is_missing))? {
        Some(sysctl) => Err(Errno::NOENT).context(|| what(sysctl)),
        None => Ok(()),
    }
}

fn what(sysctl: &KeyValue) -> String {
    format!("write sysctl {} = {:?}", sysctl.key, sysctl.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_interfaces_are_told_from_others() {
        for path in ["net/ipv4/conf/eth0/rp_filter", "net/ipv6/neigh/eth1/retrans_time_ms"] {
            assert!(is_of_interface(path), "{path}");
        }
        for path in ["net/ipv4/conf/all/rp_filter", "net/ipv6/conf/lo/mtu", "net/core/somaxconn", "net/ipv4/ip_forward"]
        {
            assert!(!is_of_interface(path), "{path}");
        }
    }
}
