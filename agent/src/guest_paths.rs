//! Directories of the guest.

use std::path::PathBuf;

/// Directories of the guest that containers are built from.
#[derive(Clone, Debug)]
pub struct GuestPaths {
    /// Directory with one entry for each share.
    pub shares: PathBuf,
    /// Tag of the virtio-fs device that is mounted there; `None` when somebody else put the shares there.
    pub shares_tag: Option<String>,
    /// Empty directory that is, in the mount namespace of a container being made, its root file system.
    pub rootfs: PathBuf,
    /// Root of the guest's cgroup2.
    pub cgroup_root: PathBuf,
    /// Empty directory for the agent's stand-ins for sockets of the host, and for files that it makes.
    pub sockets: PathBuf,
}
