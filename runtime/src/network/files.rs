//! Directories of the host that network and sockets need.

use std::os::fd::OwnedFd;

use anyhow::anyhow;

use super::tap;

/// Directories of the host, open for whoever does not see its files any more.
pub struct Files {
    /// Directory /proc.
    pub proc: OwnedFd,
    /// Directory of the tun device, or the reason why there is none: an error only when a tap is needed.
    devices: anyhow::Result<OwnedFd>,
}

impl Files {
    /// Opens the directories.
    ///
    /// # Errors
    /// /proc is not there.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self { proc: crate::host::sockets::open_proc()?, devices: tap::open_devices() })
    }

    /// The directory of the tun device.
    ///
    /// # Errors
    /// The host has none.
    pub fn devices(&self) -> anyhow::Result<&OwnedFd> {
        self.devices.as_ref().map_err(|error| anyhow!("{error:#}"))
    }
}
