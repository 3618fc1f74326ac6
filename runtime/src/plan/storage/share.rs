//! What a VM gets of the host's files: shares, and sockets to connect to.

use std::path::PathBuf;

use super::cache::CachePlan;
use super::mount_options::MountOptions;

/// Part of the host's file system that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharePlan {
    /// Its name in the guest.
    pub name: String,
    /// Directory or file on the host.
    pub source: PathBuf,
    /// Whether the guest may change it.
    pub read_only: bool,
    /// What the guest may keep of it.
    pub cache: CachePlan,
    /// What of the host's mounts there it is.
    pub tree: Tree,
}

/// What of the host's mounts at a place a share has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// All there are at any moment.
    Live,
    /// What was mounted there when the container was created.
    Copy {
        /// With all that is mounted below.
        recursive: bool,
        /// `uid_map` and `gid_map` of a user namespace whose ids the container sees (mount_setattr(2)).
        ids: Option<[String; 2]>,
    },
}

impl Tree {
    /// That of a bind mount: who is to hear of later mounts, sees all of them.
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
    /// Its path on the host.
    pub source: PathBuf,
}
