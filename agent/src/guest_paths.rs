//! Directories of the guest.

use rustix::io::Errno;
use std::path::PathBuf;

/// Directories of the guest that containers are built from.
#[derive(Clone, Debug)]
pub struct GuestPaths {
    /// Directory with one entry for each share.
    pub shares: PathBuf,
    /// Directory with one like it for each further file-system device, named by the device's number.
    pub more_shares: PathBuf,
    /// Tag of the virtio-fs device that is mounted there; `None` when somebody else put the shares there.
    pub shares_tag: Option<String>,
    /// Empty directory that is, in the mount namespace of a container being made, its root file system.
    pub rootfs: PathBuf,
    /// Root of the guest's cgroup2.
    pub cgroup_root: PathBuf,
    /// Empty directory for the agent's stand-ins for sockets of the host, and for files that it makes.
    pub sockets: PathBuf,
}

impl GuestPaths {
    /// Directory with one entry for each share on the file-system device of this number.
    pub fn shares_on(&self, device: u32) -> PathBuf {
        if device == 0 { self.shares.clone() } else { self.more_shares.join(device.to_string()) }
    }

    /// The path of a share on the device of this number; the host says where it is among the shares: its name, or that of a directory and
    /// its name there.
    pub fn share(&self, device: u32, place: &str) -> Result<String, Errno> {
        let mut names = place.split('/');
        if names.clone().count() > 2 || names.any(|name| matches!(name, "" | "." | "..")) {
            return Err(Errno::INVAL);
        }
        Ok(format!("{}/{place}", self.shares_on(device).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_share_is_elsewhere() {
        let [shares, more_shares, rootfs, cgroup_root, sockets] =
            ["/run/shares", "/run/more-shares", "", "", ""].map(PathBuf::from);
        let paths = GuestPaths { shares, more_shares, shares_tag: None, rootfs, cgroup_root, sockets };
        assert_eq!(paths.share(0, "root").unwrap(), "/run/shares/root");
        assert_eq!(paths.share(3, "8:1/m0").unwrap(), "/run/more-shares/3/8:1/m0");
        for bad in ["", ".", "..", "a/", "/a", "../x", "x/..", "a/b/c"] {
            assert_eq!(paths.share(0, bad), Err(Errno::INVAL), "{bad}");
        }
    }
}
