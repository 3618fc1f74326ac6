//! Mounts that hear of what the host mounts below them later: bind mounts of directories that are not private, as they are where
//! the bundle says nothing else, and the root file system of a container that joins a VM.
//!
//! A mount hears of others only while it is in a mount namespace. These are in one of their own, in which no process is, each at
//! a folder of an empty file system; there is nothing else. So no way leads up from them but to that file system.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::mount_attributes;

/// A directory whose mount is to be copied.
pub struct Source {
    /// The directory.
    pub path: PathBuf,
    /// Whether the copy is read-only.
    pub read_only: bool,
    /// Whether it comes with the mounts that are below it now.
    pub recursive: bool,
}

/// Mounts in a namespace of their own.
pub struct LiveMounts {
    /// Keeps the namespace; whoever has it and no right over the host can do nothing with it.
    pub namespace: OwnedFd,
    /// The mounts, in the order of their sources.
    pub roots: Vec<OwnedFd>,
}

/// Copies the mounts of these directories.
///
/// # Errors
/// The kernel knows no such copies (before Linux 5.2), or the process's root directory cannot be changed.
pub fn open(sources: &[Source]) -> anyhow::Result<LiveMounts> {
    // A thread cannot leave that namespace again.
    let opened = std::thread::scope(|scope| scope.spawn(|| open_here(sources)).join());
    opened.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

fn open_here(sources: &[Source]) -> anyhow::Result<LiveMounts> {
    nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let namespace = File::open("/proc/thread-self/ns/mnt").context("open the mount namespace")?.into();
    // What the host mounts and unmounts comes here as well; nothing goes back.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("detach its mounts from the host's")?;
    let roots = sources.iter().map(copy).collect::<anyhow::Result<Vec<_>>>()?;
    let base = empty_file_system().context("mount an empty file system")?;
    attach(&base, CWD, "/").context("attach an empty file system")?;
    for (number, root) in roots.iter().enumerate() {
        let place = number.to_string();
        rustix::fs::mkdirat(&base, &place, Mode::empty())?;
        attach(root, &base, &place).context("attach a copy")?;
    }
    leave_all_but(&base).context("leave the host's mounts")?;
    Ok(LiveMounts { namespace, roots })
}

fn copy(source: &Source) -> anyhow::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, source.recursive);
    let mount = rustix::mount::open_tree(CWD, &source.path, flags);
    let mount = mount.with_context(|| format!("copy the mount of {}", source.path.display()))?;
    // Only while it is attached nowhere, or in this namespace.
    mount_attributes::restrict(mount.as_fd(), source.read_only).context("forbid devices")?;
    Ok(mount)
}

fn empty_file_system() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "0500")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(mount: &OwnedFd, directory: impl AsFd, path: &str) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", directory, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Leaves nothing in the namespace but this mount, and those in it.
fn leave_all_but(mount: &OwnedFd) -> rustix::io::Result<()> {
    rustix::process::fchdir(mount)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies on top of the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    // Nobody keeps anything there.
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount_remount("/", flags, c"")
}
