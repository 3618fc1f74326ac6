//! The monitor's own mount namespace: its root directory is the container's, as the host sees it.
//!
//! Engines go there by the pid. `podman cp` enters the namespace and takes `/` for the container's root: in
//! the host's namespace it would read and write the host's files.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::log;

/// The namespace, still with all of the host's mounts. Before there are threads, so that it is all of theirs.
pub fn leave_the_host() -> anyhow::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace for the monitor")?;
    // What the host unmounts goes here as well; nothing goes back.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("detach the monitor's mounts from the host's")
}

/// Leaves nothing in the namespace but this directory. Descriptors opened before stay good.
pub fn enter(root: BorrowedFd<'_>) -> anyhow::Result<()> {
    let path = path_here(root)?;
    rustix::mount::mount_bind_recursive(&path, &path).context("bind the container's root for the monitor")?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let new = rustix::fs::open(&path, flags, Mode::empty()).context("open the container's root")?;
    rustix::process::fchdir(&new)?;
    match rustix::process::pivot_root(".", ".") {
        // The root of a host that runs from its initramfs cannot be left; where the container's is the host's, it need not.
        Err(Errno::INVAL | Errno::BUSY) => {
            log::debug("the monitor keeps the host's root directory: it cannot be pivoted");
            return Ok(rustix::process::chdir("/")?);
        }
        other => other.context("change the monitor's root")?,
    }
    // The old root now lies on top of the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("leave the host's root")?;
    Ok(rustix::process::chdir("/")?)
}

/// The directory's path in this namespace; the descriptor belongs to the host's, of which this one is a copy.
fn path_here(root: BorrowedFd<'_>) -> anyhow::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    let path =
        std::fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).context("find the container's root")?;
    let (there, here) = (rustix::fs::fstat(root)?, stat(&path)?);
    if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
        || FileType::from_raw_mode(here.st_mode) != FileType::Directory
    {
        bail!("the container's root is not at {} any more", path.display());
    }
    Ok(path)
}

fn stat(path: &Path) -> anyhow::Result<rustix::fs::Stat> {
    rustix::fs::stat(path).with_context(|| format!("look at {}", path.display()))
}
