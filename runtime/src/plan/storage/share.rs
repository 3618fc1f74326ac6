//! What a VM gets of the host's files: shares, and sockets to connect to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cache::CachePlan;
use super::mount_options::MountOptions;
use crate::plan::facts::FileId;

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
    /// All mounts that exist at any moment.
    Live,
    /// The mounts that existed when the container was created.
    Copy {
        /// Whether mounts below the path are included.
        recursive: bool,
        /// `uid_map` and `gid_map` of a user namespace whose ids the container sees (mount_setattr(2)).
        ids: Option<[String; 2]>,
    },
}

impl Tree {
    /// The tree of a bind mount: one that receives later mounts of the host sees all of them.
    pub fn of(options: &MountOptions, ids: Option<[String; 2]>) -> Self {
        let hears = options.propagation & (libc::MS_SLAVE | libc::MS_SHARED) != 0 || options.propagation == 0;
        match ids {
            None if hears && options.recursive => Self::Live,
            ids => Self::Copy { recursive: options.recursive, ids },
        }
    }
}

/// A socket of the host that processes of the container may connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPlan {
    /// Path on the host.
    pub source: PathBuf,
    /// The socket that is there.
    pub id: FileId,
}
