//! What the guest may use of the host.

use std::os::fd::OwnedFd;

use super::coherence::Cache;
use super::policy::Policy;

/// A directory or file of the host that the guest may use: an entry of the device's root directory.
#[derive(Debug)]
pub struct Share {
    /// Name of the entry: one path component, unique in the device, at most 255 bytes.
    pub name: String,
    /// An `O_PATH` descriptor of a directory, or of a single file, socket or device.
    pub root: OwnedFd,
    /// Whether every change below it fails with `EROFS`.
    pub read_only: bool,
    /// What the guest may keep of the share.
    pub cache: Cache,
    /// What the guest may do to its files.
    pub policy: Policy,
}
