//! The directories and files of the host that a container sees, as open descriptors.
//!
//! The command opens them; the monitor only ever holds `O_PATH` descriptors and walks below them. A bind mount is a copy of
//! the host's mounts at that place, as mount(2) makes one, not attached anywhere: mounted below are the same file systems
//! that were there, and those that come later only where the bundle asks for that (`rslave`, `rshared`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use serde::{Deserialize, Serialize};
use vmm::virtio::fs;

use super::live_mounts::{self, LiveMounts, Source};
use super::{file_id, monitor_namespaces, mount_attributes};
use crate::ipc::Descriptor;
use crate::log;
use crate::plan::{CachePlan, CommonPlan, FileRights, IdRanges, SharePlan, ShareRole, Tree};

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
    /// With which other shares it has files and directories in common.
    pub common: CommonPlan,
    /// The file system of the host, if somebody else may have to answer for it.
    pub remote: Option<String>,
    /// `O_PATH` descriptor of its root.
    pub root: Descriptor,
    /// The same place among the host's mounts, where the root is not there; for the command alone.
    #[serde(skip)]
    pub place: Option<Descriptor>,
}

impl Share {
    /// Where the share is among the host's mounts, for whoever mounts it once more.
    pub fn in_place(&self) -> Descriptor {
        self.place.as_ref().unwrap_or(&self.root).clone()
    }

    /// The share as the file-system device takes it, for a container that is yet to be set up.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn into_device(self, rights: &FileRights) -> io::Result<fs::Share> {
        let CachePlan { valid_ms, exclusive, host_locks } = self.cache;
        let cache = fs::Cache { valid: Duration::from_millis(valid_ms), exclusive, host_locks };
        let (root, policy) = (self.root.into_owned()?, setup_policy(self.role, rights));
        let common = match self.common {
            CommonPlan::Nothing => fs::Common::Nothing,
            CommonPlan::Files(system) => fs::Common::Files(system),
            CommonPlan::All(system) => fs::Common::All(system),
            CommonPlan::Live(system) => fs::Common::Live(system),
        };
        Ok(fs::Share { name: self.name, root, read_only: self.read_only, cache, policy, common })
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

/// Shares, and what keeps those that hear of the host's later mounts.
pub struct Opened {
    /// The shares.
    pub shares: Vec<Share>,
    /// The mount namespace of some of them, which has to be kept as long as they are used.
    pub namespace: Option<Descriptor>,
}

/// Opens the root of every share, following symlinks in the path the bundle gave, as mount(2) does. The monitor of the container's
/// own VM has the first one in a mount namespace of its own; `joined` says that it is to be in another one's.
///
/// # Errors
/// The path that cannot be opened, or leads to another file by now, or the mount that cannot have its ids mapped.
pub fn open(plans: &[SharePlan], joined: bool) -> anyhow::Result<Opened> {
    let mut shares = plans.iter().map(open_one).collect::<anyhow::Result<Vec<_>>>()?;
    let skipped = usize::from(!joined);
    let live: Vec<_> =
        shares.iter_mut().zip(plans).skip(skipped).filter(|(_, plan)| matches!(plan.tree, Tree::Live { .. })).collect();
    let namespace = if live.is_empty() { None } else { move_apart(live)? };
    Ok(Opened { shares, namespace })
}

fn open_one(plan: &SharePlan) -> anyhow::Result<Share> {
    let root = open_root(plan)?;
    file_id::check(&root, plan.id, &plan.source)?;
    let SharePlan { read_only, cache, role, .. } = *plan;
    let (name, common, remote) = (plan.name.clone(), plan.common.clone(), plan.remote.clone());
    Ok(Share { name, read_only, cache, role, common, remote, root: root.into(), place: None })
}

/// Gives shares that hear of the host's later mounts a root from which no way leads up. Where that cannot be, they stay as they
/// are; returns the namespace that they are in.
fn move_apart(live: Vec<(&mut Share, &SharePlan)>) -> anyhow::Result<Option<Descriptor>> {
    let source = |plan: &SharePlan| Source {
        path: plan.source.clone(),
        read_only: plan.read_only,
        recursive: matches!(plan.tree, Tree::Live { recursive: true }),
    };
    let sources: Vec<_> = live.iter().map(|(_, plan)| source(plan)).collect();
    let LiveMounts { namespace, roots } = match live_mounts::open(&sources) {
        Ok(mounts) => mounts,
        Err(error) => {
            log::debug(&format!("shares stay among the host's mounts: {error:#}"));
            return Ok(None);
        }
    };
    for ((share, plan), root) in live.into_iter().zip(roots) {
        file_id::check(&root, plan.id, &plan.source)?;
        share.place = Some(std::mem::replace(&mut share.root, root.into()));
    }
    Ok(Some(namespace.into()))
}

fn open_root(plan: &SharePlan) -> anyhow::Result<OwnedFd> {
    let what = || format!("open {} to share it with the container", plan.source.display());
    let (recursive, ids) = match &plan.tree {
        Tree::Live { recursive: true } => return live(plan).with_context(what),
        // For now: it may have to stay without what was there before.
        Tree::Live { recursive: false } => (&false, &None),
        Tree::Copy { recursive, ids } => (recursive, ids),
    };
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
    mount_attributes::detach(mount.as_fd(), plan.read_only).with_context(what)?;
    if let Some(maps) = ids {
        map_ids(mount.as_fd(), maps, *recursive)
            .with_context(|| format!("map the ids of {} (mount_setattr)", plan.source.display()))?;
    }
    Ok(mount)
}

fn live(plan: &SharePlan) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(&plan.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Maps the ids of a copied mount by those of a user namespace made for that.
fn map_ids(mount: BorrowedFd<'_>, maps: &[String; 2], recursive: bool) -> anyhow::Result<()> {
    let namespace = monitor_namespaces::user_namespace(maps)?;
    let (attr_set, userns_fd) = (libc::MOUNT_ATTR_IDMAP, namespace.as_raw_fd() as u64);
    Ok(mount_attributes::set(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd }, recursive)?)
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
        for tree in
            [Tree::Live { recursive: true }, Tree::Live { recursive: false }, Tree::Copy { recursive: true, ids: None }]
        {
            let plan = SharePlan {
                name: "m0".to_owned(),
                source: source.clone(),
                id,
                read_only: false,
                cache: CachePlan::VOLUME,
                tree,
                role: ShareRole::default(),
                common: CommonPlan::Nothing,
                remote: None,
            };
            assert!(open(std::slice::from_ref(&plan), false).is_ok());
            std::fs::rename(&source, dir.path().join("moved")).unwrap();
            std::os::unix::fs::symlink("/etc", &source).unwrap();
            let error = format!("{:#}", open(&[plan], false).err().unwrap());
            assert!(error.contains("has been replaced by another file"), "{error}");
            std::fs::remove_file(&source).unwrap();
            std::fs::rename(dir.path().join("moved"), &source).unwrap();
        }
    }
}
