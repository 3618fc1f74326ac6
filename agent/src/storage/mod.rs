//! Files of a container: its root file system, mounts, device nodes and disks.

pub mod copy_up;
pub mod devices;
pub mod disks;
pub mod files;
pub mod mounts;
pub mod path;
pub mod rootfs;
