//! What the guest may use of the host.

use std::os::fd::OwnedFd;

use super::coherence::Cache;
use super::policy::Policy;

/// A directory or file of the host that the guest may use: an entry of the device's root directory, or of a directory in that.
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
    /// With which other shares it has objects in common.
    pub common: Common,
}

/// With which other shares a share has objects in common: objects that are one to the guest wherever it finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Common {
    /// None: what lies in two such shares is two objects.
    #[default]
    Nothing,
    /// Files, sockets, FIFOs and whatever else is no directory, with all shares that name the same file system. These are entries of a
    /// directory of that name in the device's root directory.
    Files(String),
    /// Directories as well, with all shares that say so. Right where the host shows the same names in a directory through each
    /// of them: where nothing is mounted below.
    All(String),
    /// The same for shares that hear of what the host mounts below them: they show each other's names, and not those of
    /// the others.
    Live(String),
}

impl Common {
    /// Name of the directory that the share is an entry of; `None` for the device's root directory.
    pub(super) fn directory(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Files(name) | Self::All(name) | Self::Live(name) => Some(name),
        }
    }
}
