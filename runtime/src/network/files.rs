//! Files of the host that the network of a namespace needs.

use std::fs::File;
use std::os::fd::OwnedFd;

use anyhow::anyhow;

use super::{resolver, tap};

/// Files of the host, open for whoever does not see its directories any more. Those of /proc are of the namespace of the thread
/// that opened them.
pub struct Files {
    /// The UDP sockets.
    pub sockets: File,
    /// The port range of sockets.
    pub range: File,
    /// Directory of the tun device, or the reason why there is none: an error only when a tap is needed.
    devices: anyhow::Result<OwnedFd>,
}

impl Files {
    /// Opens the files.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn open() -> anyhow::Result<Self> {
        let (sockets, range) = (resolver::open_sockets()?, resolver::open_range()?);
        Ok(Self { sockets, range, devices: tap::open_devices() })
    }

    /// The directory of the tun device.
    ///
    /// # Errors
    /// The host has none.
    pub fn devices(&self) -> anyhow::Result<&OwnedFd> {
        self.devices.as_ref().map_err(|error| anyhow!("{error:#}"))
    }
}
