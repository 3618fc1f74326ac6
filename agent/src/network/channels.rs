//! How many pairs of queues a network card uses.
//!
//! The kernel's driver begins with as many as there are CPUs, which is one where the others come up later. Whoever knows
//! that they have come raises that. Nothing depends on it but how much can be sent at a time, so what fails is not told
//! to the host, and all is done in a child: it may have to wait for the device, which the agent must not.

use crate::log;
use crate::network::netlink::Netlink;
use crate::sys;
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;

/// `struct ethtool_channels` (`linux/ethtool.h`).
#[derive(Default)]
#[repr(C)]
struct Channels {
    /// [`ETHTOOL_GCHANNELS`] or [`ETHTOOL_SCHANNELS`].
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;

/// Has each of these interfaces use as many pairs as there are CPUs, if it can, soon. They are given by the socket of a
/// namespace and their indexes there.
pub fn raise(interfaces: &[(&Netlink, u32)], cpus: u32) {
    if interfaces.is_empty() {
        return;
    }
    let child = || {
        for (netlink, index) in interfaces {
            if let Err(errno) = raise_one(netlink, *index, cpus) {
                log::debug(|| format!("queues of interface {index}: {errno}"));
            }
        }
        sys::exit_now(0)
    };
    if let Err(errno) = sys::spawn(&sys::SpawnArgs { flags: 0, cgroup: None }, child) {
        log::error(&format!("raise the number of queues: {errno}"));
    }
}

fn raise_one(netlink: &Netlink, index: u32, cpus: u32) -> Result<(), Errno> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
    ethtool(netlink, index, &mut channels)?;
    match raised(&channels, cpus) {
        Some(mut channels) => ethtool(netlink, index, &mut channels),
        None => Ok(()),
    }
}

fn ethtool(netlink: &Netlink, index: u32, channels: &mut Channels) -> Result<(), Errno> {
    let mut request = sys::interface(&rustix::net::netdevice::index_to_name(netlink, index)?);
    request.ifr_ifru.ifru_data = (&raw mut *channels).cast();
    let socket = netlink.as_fd().as_raw_fd();
    // SAFETY: both structures outlive the call, and the commands that there are read and write no more than the second.
    sys::check(unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &raw mut request) }.into()).map(drop)
}

/// What to ask for, if it is more than there is.
fn raised(now: &Channels, cpus: u32) -> Option<Channels> {
    let combined = cpus.min(now.max_combined);
    let Channels { rx, tx, other, .. } = *now;
    (combined > now.combined).then(|| Channels {
        command: ETHTOOL_SCHANNELS,
        rx,
        tx,
        other,
        combined,
        ..Channels::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_there_can_be_and_never_less_than_before() {
        let wanted = |most, now, cpus| {
            let now = Channels { max_combined: most, combined: now, other: 1, ..Channels::default() };
            raised(&now, cpus).map(|asked| {
                assert_eq!((asked.command, asked.other, asked.max_combined), (ETHTOOL_SCHANNELS, 1, 0));
                asked.combined
            })
        };
        assert_eq!(wanted(2, 1, 2), Some(2));
        assert_eq!(wanted(2, 1, 8), Some(2));
        assert_eq!(wanted(8, 1, 4), Some(4));
        for (most, now, cpus) in [(1, 1, 4), (2, 2, 4), (8, 4, 2), (2, 1, 1), (0, 0, 4)] {
            assert_eq!(wanted(most, now, cpus), None);
        }
    }

    #[test]
    fn an_interface_without_channels_is_left_alone() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(raise_one(&netlink, 1, 4), Err(Errno::OPNOTSUPP), "the loopback");
        assert_eq!(raise_one(&netlink, u32::MAX >> 1, 4), Err(Errno::NODEV));
    }
}
