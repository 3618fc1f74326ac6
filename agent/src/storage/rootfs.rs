//! The container's root file system, from a share to `/`.
//!
//! ```text
//!  share ─bind─▶ /run/rootfs ─▶ mounts ─▶ devices, console ─▶ cwd ─▶ read-only, masked ─▶ pivot_root
//! ```
//!
//! Everything but the pivot happens from outside, by descriptors resolved inside the root. All of it
//! runs in the child, in its own mount namespace.

use crate::error::{Context, Error, Result};
use crate::guest_paths::GuestPaths;
use crate::storage::devices;
use crate::storage::mounts::{Mounter, remount};
use crate::storage::path::{Leaf, Root};
use crate::sys;
use protocol::{CreateContainerRequest, Mount};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// A mount of another container, copied for one of the request's.
pub struct MountCopy {
    /// Place of the mount in the request's list.
    pub number: usize,
    /// The copy, mounted nowhere.
    pub fd: OwnedFd,
}

/// Binds the share and makes everything inside that may need it writable. `console` runs when mounts and devices are
/// there.
pub fn build(
    request: &CreateContainerRequest,
    paths: &GuestPaths,
    copies: &[MountCopy],
    console: impl FnOnce(&Root) -> Result<()>,
) -> Result<Root> {
    let root = bind_root(request, paths)?;
    let mut mounter = Mounter::new(&root, paths);
    for (number, mount) in request.mounts.iter().enumerate() {
        let copy = copies.iter().find(|copy| copy.number == number).map(|copy| &copy.fd);
        mounter.mount(mount, copy)?;
    }
    if !request.mounts.iter().any(is_bind_of_dev) {
        devices::populate(&root, &request.devices)?;
    }
    console(&root)?;
    make_cwd(&root, request.process.cwd.as_str())?;
    mounter.finish()?;
    seal(&root, request)?;
    Ok(root)
}

/// Makes `root` the root directory of the calling process and lets the guest's go.
pub fn enter(root: Root, propagation: &str) -> Result<()> {
    let enter = || -> std::result::Result<(), Errno> {
        rustix::process::fchdir(root.fd())?;
        // The old root ends up on top of the new one and is then taken off again.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    enter().context(|| "pivot_root")?;
    match propagation_flags(propagation)? {
        0 => Ok(()),
        flags => sys::mount("", "/", "", flags, "").context(|| format!("set root propagation {propagation}")),
    }
}

fn bind_root(request: &CreateContainerRequest, paths: &GuestPaths) -> Result<Root> {
    sys::mount("", "/", "", libc::MS_PRIVATE | libc::MS_REC, "").context(|| "make mounts private")?;
    let share = paths.share(request.share_device, &request.share).context(|| format!("share {:?}", request.share))?;
    let target = paths.rootfs.to_string_lossy();
    sys::mount(&share, &target, "", libc::MS_BIND | libc::MS_REC, "")
        .context(|| format!("bind root file system from share {}", request.share))?;
    Root::open(&paths.rootfs).context(|| "open root file system")
}

/// The host's /dev as it is: not ours to fill.
fn is_bind_of_dev(mount: &Mount) -> bool {
    mount.kind == "bind" && mount.destination.trim_end_matches('/') == "/dev"
}

fn make_cwd(root: &Root, cwd: &str) -> Result<()> {
    match root.ensure(cwd, Leaf::Directory) {
        // A cwd that can't be made is reported by the chdir, in runc's words.
        Ok(_) | Err(Errno::NOTDIR | Errno::ROFS | Errno::ACCESS | Errno::LOOP | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).context(|| format!("mkdir {cwd}")),
    }
}

/// Read-only and masked paths, then the root itself.
fn seal(root: &Root, request: &CreateContainerRequest) -> Result<()> {
    if request.rootfs_readonly {
        let place = root.open_path("/").context(|| "open root file system")?;
        remount_keeping(&place, libc::MS_RDONLY).context(|| "remount root file system read-only")?;
    }
    for path in &request.readonly_paths {
        present(make_readonly(root, path)).context(|| format!("can't make {path:?} read-only"))?;
    }
    for path in &request.masked_paths {
        present(mask(root, path)).context(|| format!("can't mask path {path:?}"))?;
    }
    Ok(())
}

/// Turns the failure for a path that does not exist into success: it needs neither hiding nor protection.
fn present(result: std::result::Result<(), Errno>) -> std::result::Result<(), Errno> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        result => result,
    }
}

fn make_readonly(root: &Root, path: &str) -> std::result::Result<(), Errno> {
    let place = root.open_path(path)?;
    let target = sys::fd_path(&place);
    sys::mount(&target, &target, "", libc::MS_BIND | libc::MS_REC, "")?;
    remount_keeping(&root.open_path(path)?, libc::MS_RDONLY)
}

/// Adds flags to those a mount has.
fn remount_keeping(place: &OwnedFd, flags: u64) -> std::result::Result<(), Errno> {
    let all = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let present = rustix::fs::fstatvfs(place)?.f_flag.bits() & all;
    remount(place, present | flags, 0)
}

fn mask(root: &Root, path: &str) -> std::result::Result<(), Errno> {
    let place = root.open_path(path)?;
    let target = sys::fd_path(&place);
    match sys::mount("/dev/null", &target, "", libc::MS_BIND, "") {
        Err(Errno::NOTDIR) => sys::mount("tmpfs", &target, "tmpfs", libc::MS_RDONLY, ""),
        result => result,
    }
}

fn propagation_flags(name: &str) -> Result<u64> {
    let (recursive, kind) = match name.strip_prefix('r') {
        Some(kind) => (libc::MS_REC, kind),
        None => (0, name),
    };
    let flag = match kind {
        "" if recursive == 0 => return Ok(0),
        "private" => libc::MS_PRIVATE,
        "slave" => libc::MS_SLAVE,
        "shared" => libc::MS_SHARED,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return Err(Error::invalid(format!("rootfsPropagation={name} is not supported"))),
    };
    Ok(flag | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn propagation_names() {
        assert_eq!(propagation_flags("").unwrap(), 0);
        assert_eq!(propagation_flags("rslave").unwrap(), libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(propagation_flags("shared").unwrap(), libc::MS_SHARED);
        assert!(propagation_flags("r").is_err());
        assert!(propagation_flags("elsewhere").is_err());
    }
}
