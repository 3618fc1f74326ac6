//! The monitor's own mount namespace: what the container has of the host's files, at the same paths.
//!
//! Engines go there by the pid. `podman cp` enters the namespace and takes `/` for the container's root: in
//! the host's namespace it would read and write the host's files. Nothing of this is for the guest, which has its
//! shares by descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};

use crate::directory;
use crate::host::monitor_namespaces::Volume;
use crate::host::mount_attributes;
use crate::ipc::Descriptor;
use crate::log;
use crate::parcel::{Mounts, VolumeMount};

/// Makes the monitor's mount namespace, at first with all of the host's mounts. To be called before there are threads, so
/// that all of them are in it.
pub fn leave_the_hosts_mounts() -> anyhow::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace for the monitor")?;
    // What the host unmounts goes here as well; nothing goes back.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("detach the monitor's mounts from the host's")
}

/// View of the monitor to be: the container's root, and mounts that are not anywhere yet.
pub struct View {
    /// The root, as a mount of this namespace.
    root: OwnedFd,
    volumes: Vec<Volume>,
}

impl View {
    /// Mounts the root and copies the other mounts, while the host's paths are there.
    pub fn new(mounts: Mounts) -> anyhow::Result<Self> {
        let root = path_here(mounts.root.as_fd()).context("find the container's root")?;
        let volumes = mounts.volumes.into_iter().map(volume).collect::<std::io::Result<_>>();
        let volumes = volumes.context("copy the container's mounts")?;
        rustix::mount::mount_bind_recursive(&root, &root).context("bind the container's root for the monitor")?;
        let root = directory::open(&root).context("open the container's root")?;
        mount_attributes::restrict(root.as_fd(), false).context("forbid devices below the container's root")?;
        Ok(Self { root, volumes })
    }

    /// The container's root as a share: a copy of the mount that is attached nowhere, so that `..` leads nowhere from it. What
    /// will be mounted in this namespace is not below it: a guest that looked a mount point up once more would find another
    /// file there than before, and Linux takes away what is mounted on a file that is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn root(&self) -> anyhow::Result<Descriptor> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let share = rustix::mount::open_tree(&self.root, c"", flags | OpenTreeFlags::AT_EMPTY_PATH);
        Ok(share.context("copy the mount of the container's root")?.into())
    }

    /// Leaves nothing in the namespace but the root; returns what is to be mounted in it once the guest has made the mount
    /// points. Descriptors opened before stay good.
    pub fn enter(self) -> anyhow::Result<Vec<Volume>> {
        rustix::process::fchdir(&self.root)?;
        match rustix::process::pivot_root(".", ".") {
            // The root of a host that runs from its initramfs cannot be left; where the container's is the host's, it
            // need not.
            Err(Errno::INVAL | Errno::BUSY) => {
                log::debug("the monitor keeps the host's root directory: it cannot be pivoted");
                rustix::process::chdir("/")?;
                return Ok(Vec::new());
            }
            other => other.context("change the monitor's root")?,
        }
        // The old root now lies on top of the new one.
        rustix::mount::unmount(".", UnmountFlags::DETACH).context("leave the host's root")?;
        rustix::process::chdir("/")?;
        Ok(self.volumes)
    }
}

fn volume(given: VolumeMount) -> std::io::Result<Volume> {
    let VolumeMount { destination, root, recursive, read_only } = given;
    // One without a path is a copy already, attached nowhere, and as the container is to have it.
    let copy = detached(root.as_fd(), recursive, read_only);
    Ok(Volume { destination, mount: copy.or_else(|_| root.into_owned())?.into() })
}

/// A copy of the mount of a share's root, and of those below it.
fn detached(share: BorrowedFd<'_>, recursive: bool, read_only: bool) -> anyhow::Result<OwnedFd> {
    let path = path_here(share)?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let mount = rustix::mount::open_tree(CWD, &path, flags).context("copy its mount")?;
    if read_only {
        mount_attributes::make_read_only(mount.as_fd()).context("make it read-only")?;
    }
    Ok(mount)
}

/// A descriptor's path in this namespace; the descriptor belongs to the host's, of which this one is a copy.
fn path_here(fd: BorrowedFd<'_>) -> anyhow::Result<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).context("find its path")?;
    let (there, here) = (rustix::fs::fstat(fd)?, stat(&path)?);
    if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino) {
        bail!("it is not at {} any more", path.display());
    }
    Ok(path)
}

fn stat(path: &Path) -> anyhow::Result<rustix::fs::Stat> {
    rustix::fs::stat(path).with_context(|| format!("look at {}", path.display()))
}
