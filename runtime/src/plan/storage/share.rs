//! What a VM gets of the host's files: shares, and sockets to connect to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cache::CachePlan;
use super::mount_options::{self, MountOptions};
use crate::plan::facts::{FileId, SourceFact};

/// A directory or file of the host that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharePlan {
    /// Name in the guest.
    pub name: String,
    /// Path on the host.
    pub source: PathBuf,
    /// The file that is there.
    pub id: FileId,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What the guest may cache.
    pub cache: CachePlan,
    /// Which of the host's mounts below the path belong to the share.
    pub tree: Tree,
    /// How the container uses it.
    pub role: ShareRole,
    /// With which other shares it has files and directories in common.
    pub common: CommonPlan,
    /// The file system of the host, if somebody else may have to answer for it.
    pub remote: Option<String>,
}

impl SharePlan {
    /// Where the guest finds it among the shares.
    pub fn place(&self) -> String {
        self.common.place(&self.name)
    }
}

/// The file system that a source is on, if somebody else may have to answer for it.
pub fn remote(fact: &SourceFact) -> Option<String> {
    fact.remote.then(|| fact.system.clone())
}

/// With which other shares of its VM a share has objects in common, which are then one to the guest however it comes to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommonPlan {
    /// None.
    #[default]
    Nothing,
    /// Whatever is no directory, with all shares on this file system of the host.
    Files(String),
    /// Directories as well, with all shares that say so: nothing was mounted below them.
    All(String),
    /// The same among shares that hear of what the host mounts later.
    Live(String),
}

impl CommonPlan {
    /// What a bind mount of this source and tree has in common with others.
    pub fn of(fact: &SourceFact, tree: &Tree) -> Self {
        let system = fact.system.clone();
        match tree {
            // Files have other owners there.
            Tree::Copy { ids: Some(_), .. } => Self::Nothing,
            _ if fact.has_mounts => Self::Files(system),
            Tree::Copy { .. } => Self::All(system),
            Tree::Live { .. } => Self::Live(system),
        }
    }

    /// What it has in common where directories are not the same.
    pub fn files(fact: &SourceFact) -> Self {
        Self::Files(fact.system.clone())
    }

    /// The file system of the host.
    pub fn system(&self) -> Option<&str> {
        match self {
            Self::Nothing => None,
            Self::Files(system) | Self::All(system) | Self::Live(system) => Some(system),
        }
    }

    /// Where the guest finds a share of this name.
    pub fn place(&self, name: &str) -> String {
        self.system().map_or_else(|| name.to_owned(), |system| format!("{system}/{name}"))
    }
}

/// What the container does with a share, as far as it bears on what may be done to its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRole {
    /// Whether it is mounted `nosuid`.
    pub nosuid: bool,
    /// Whether the container's device nodes are made in it, before the container starts.
    pub gets_devices: bool,
}

/// Which of the host's mounts below its path a share contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Mounts of the moment: the share hears of what the host mounts and unmounts.
    Live {
        /// Whether mounts that were below the path before the container was created are included.
        recursive: bool,
    },
    /// The mounts that existed when the container was created.
    Copy {
        /// Whether mounts below the path are included.
        recursive: bool,
        /// `uid_map` and `gid_map` of a user namespace whose ids the container sees (mount_setattr(2)).
        ids: Option<[String; 2]>,
    },
}

impl Tree {
    /// The tree of a bind mount. `hears` says whether its source can tell it of anything: see [`hears`].
    ///
    /// A bind mount copies a mount of the container's namespace and hears of what that one does, `bind` like `rbind`, until a word
    /// makes it private. `rslave` and `rshared` add nothing to that but what goes back to the host, which no VM can do.
    pub fn of(options: &MountOptions, hears: bool, ids: Option<[String; 2]>) -> Self {
        let recursive = options.recursive;
        match ids {
            None if hears && !is_private(options.propagation) => Self::Live { recursive },
            ids => Self::Copy { recursive, ids },
        }
    }
}

/// Whether mounts of a container hear of the host's, with this `rootfsPropagation`.
///
/// Runc makes all mounts of the container's namespace slaves of the host's (`rslave`) where nothing is said, and otherwise what is
/// said. What is private there has nothing to pass on to a bind mount, whatever the propagation of that one.
pub fn hears(rootfs_propagation: &str) -> bool {
    !is_private(mount_options::parse(&[rootfs_propagation.to_owned()]).propagation)
}

fn is_private(propagation: u64) -> bool {
    propagation & (libc::MS_PRIVATE | libc::MS_UNBINDABLE) != 0
}

/// A socket of the host that processes of the container may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPlan {
    /// Path on the host.
    pub source: PathBuf,
    /// The socket that is there.
    pub id: FileId,
}
