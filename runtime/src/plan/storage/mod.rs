//! Storage: mounts, and what of the host's files they need.

mod cache;
mod file_rights;
mod guest_mounts;
mod mount_options;
mod mounts;
mod share;

pub use cache::CachePlan;
pub use file_rights::{FileRights, IdRanges, may_make_device_nodes};
pub use mount_options::names as mount_option_names;
pub use mounts::{bind_source, plan, rootfs_path};
pub use share::{CommonPlan, SharePlan, ShareRole, SocketPlan, Tree};
