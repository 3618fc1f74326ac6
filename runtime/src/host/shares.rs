//! The directories and files of the host that a container sees, as open descriptors.
//!
//! The command opens them; the monitor only ever holds `O_PATH` descriptors and walks below them. A bind mount is a copy of
//! the host's mounts at that place, as mount(2) makes one, not attached anywhere: mounted below are the same file systems
//! that were there, and those that come later only where the bundle asks for that (`rslave`, `rshared`).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};
use vmm::virtio::fs;

use super::file_id;
use crate::ipc::Descriptor;
use crate::log;
use crate::plan::{CachePlan, FileRights, IdRanges, SharePlan, ShareRole, Tree};

/// A directory or file of the host that the container sees.
#[derive(Debug, Serialize, Deserialize)]
pub struct Share {
    /// Its name in the guest.
    pub name: String,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// What the guest may keep of it.
    pub cache: CachePlan,
    /// How the container uses it.
    pub role: ShareRole,
    /// `O_PATH` descriptor of its root.
    pub root: Descriptor,
}

impl Share {
    /// The share as the file-system device takes it, for a container that is yet to be set up.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn into_device(self, rights: &FileRights) -> io::Result<fs::Share> {
        let CachePlan { valid_ms, exclusive, host_locks } = self.cache;
        let cache = fs::Cache { valid: Duration::from_millis(valid_ms), exclusive, host_locks };
        let (root, policy) = (self.root.into_owned()?, setup_policy(self.role, rights));
        Ok(fs::Share { name: self.name, root, read_only: self.read_only, cache, policy })
    }
}

/// What the guest may do to the files of a share while the container is being set up.
pub fn setup_policy(role: ShareRole, rights: &FileRights) -> fs::Policy {
    if role.gets_devices {
        return fs::Policy::unrestricted();
    }
    let (later, makers) = (policy(role, rights), policy(role, &rights.of_setup()).own);
    // Whatever root makes then is not the container's to change, and nothing of it is setuid.
    if makers == later.own { later } else { fs::Policy { makers, set_id: false, ..later } }
}

/// What the guest may do to the files of a share.
pub fn policy(role: ShareRole, rights: &FileRights) -> fs::Policy {
    let some = |[uids, gids]: [IdRanges; 2]| fs::Ids { uids: fs::IdSet::of(uids), gids: fs::IdSet::of(gids) };
    let known = rights.known().map_or_else(fs::Ids::all, some);
    let [uids, gids] = rights.own().map(|ids| ids.map(fs::IdSet::of));
    let (uids, gids) = (uids.unwrap_or_else(|| known.uids.clone()), gids.unwrap_or_else(|| known.gids.clone()));
    let own = fs::Ids { uids, gids };
    fs::Policy {
        device_nodes: rights.device_nodes,
        file_capabilities: rights.file_capabilities,
        any_owner: rights.any_owner,
        keeps_set_id: rights.keeps_set_id,
        set_id: !(role.nosuid && rights.plain),
        makers: own.clone(),
        known,
        own,
    }
}

/// Opens the root of every share, following symlinks in the path the bundle gave, as mount(2) does.
///
/// # Errors
/// The path that cannot be opened, or leads to another file by now, or the mount that cannot have its ids mapped.
pub fn open(plans: &[SharePlan]) -> anyhow::Result<Vec<Share>> {
    let open = |plan: &SharePlan| {
        let root = open_one(plan)?;
        file_id::check(&root, plan.id, &plan.source)?;
        let SharePlan { read_only, cache, role, .. } = *plan;
        anyhow::Ok(Share { name: plan.name.clone(), read_only, cache, role, root: root.into() })
    };
    plans.iter().map(open).collect()
}

fn open_one(plan: &SharePlan) -> anyhow::Result<OwnedFd> {
    let what = || format!("open {} to share it with the container", plan.source.display());
    let Tree::Copy { recursive, ids } = &plan.tree else { return live(plan).with_context(what) };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, *recursive);
    let mount = match rustix::mount::open_tree(CWD, &plan.source, flags) {
        // Before Linux 5.2, or where a sandbox forbids it: what is mounted there is seen as it comes and goes.
        Err(error @ (Errno::NOSYS | Errno::PERM)) if ids.is_none() => {
            log::debug(&format!("copy the mount of {}: {error}", plan.source.display()));
            return live(plan).with_context(what);
        }
        mount => mount.with_context(what)?,
    };
    detach(mount.as_fd(), plan.read_only).with_context(what)?;
    if let Some(maps) = ids {
        map_ids(mount.as_fd(), maps, *recursive)
            .with_context(|| format!("map the ids of {} (mount_setattr)", plan.source.display()))?;
    }
    Ok(mount)
}

fn live(plan: &SharePlan) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(&plan.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Has a copied mount, and those below it, hear of no later mounts, and makes them read-only. The guest cannot write there in
/// any case, and the monitor opens no devices.
fn detach(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_NODEV | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    set_where_known(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 })
}

/// Has no device be opened by its node on a mount, and those below it.
///
/// # Errors
/// The kernel's.
pub fn forbid_devices(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_NODEV;
    set_where_known(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Sets attributes where the kernel knows how to.
fn set_where_known(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    match set_attributes(mount, attributes, true) {
        // Before Linux 5.12.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            log::debug(&format!("mount_setattr: {error}"));
            Ok(())
        }
        done => done,
    }
}

/// Makes a copied mount, and those below it, read-only.
///
/// # Errors
/// The kernel's.
pub fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_RDONLY;
    set_attributes(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 }, true)
}

/// Maps the ids of a copied mount by those of a user namespace made for that.
fn map_ids(mount: BorrowedFd<'_>, maps: &[String; 2], recursive: bool) -> anyhow::Result<()> {
    let namespace = user_namespace(maps)?;
    let (attr_set, userns_fd) = (libc::MOUNT_ATTR_IDMAP, namespace.as_raw_fd() as u64);
    Ok(set_attributes(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd }, recursive)?)
}

/// `mount_setattr(2)`, for which there is no wrapper.
fn set_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (size, path) = (size_of_val(attributes), c"".as_ptr());
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the path is an empty C string; the attributes live through the call, and their size is given.
    let done = unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), path, flags, attributes, size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace with these lines of `uid_map` and `gid_map`. Only a process can make one: a child, which ends when it has
/// been looked at.
fn user_namespace(maps: &[String; 2]) -> anyhow::Result<OwnedFd> {
    let (mut ready, made) = io::pipe()?;
    let (wait, done) = io::pipe()?;
    // SAFETY: a command has no other threads, and the child only makes system calls before it exits.
    let child = unsafe { nix::unistd::fork() }.context("fork")?;
    let nix::unistd::ForkResult::Parent { child } = child else {
        drop((ready, done));
        if nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok() && (&made).write_all(b"y").is_ok() {
            // Until the parent has what it wants, or is gone.
            let _ = (&wait).read(&mut [0]);
        }
        // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
        unsafe { libc::_exit(0) }
    };
    drop((made, wait));
    let namespace = (|| {
        ready.read_exact(&mut [0]).context("make a user namespace")?;
        for (file, map) in [("uid_map", &maps[0]), ("gid_map", &maps[1])] {
            let path = format!("/proc/{child}/{file}");
            std::fs::write(&path, map).with_context(|| format!("write {map:?} to {path}"))?;
        }
        anyhow::Ok(OwnedFd::from(std::fs::File::open(format!("/proc/{child}/ns/user"))?))
    })();
    drop(done);
    let _ = nix::sys::wait::waitpid(child, None);
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_judged_is_what_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("volume");
        std::fs::create_dir(&source).unwrap();
        let id = file_id::of(&rustix::fs::stat(&source).unwrap());
        for tree in [Tree::Live, Tree::Copy { recursive: true, ids: None }] {
            let plan = SharePlan {
                name: "m0".to_owned(),
                source: source.clone(),
                id,
                read_only: false,
                cache: CachePlan::VOLUME,
                tree,
                role: ShareRole::default(),
            };
            assert!(open(std::slice::from_ref(&plan)).is_ok());
            std::fs::rename(&source, dir.path().join("moved")).unwrap();
            std::os::unix::fs::symlink("/etc", &source).unwrap();
            let error = format!("{:#}", open(&[plan]).unwrap_err());
            assert!(error.contains("has been replaced by another file"), "{error}");
            std::fs::remove_file(&source).unwrap();
            std::fs::rename(dir.path().join("moved"), &source).unwrap();
        }
    }
}
