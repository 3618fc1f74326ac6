//! What commands do on the host, each with its undo.

pub mod cgroup;
pub mod console;
pub mod disks;
pub mod facts;
pub mod file_id;
pub mod hooks;
pub mod live_mounts;
pub mod monitor_namespaces;
pub mod mount_attributes;
pub mod mounted;
pub mod network_helper;
pub mod node_maker;
pub mod passt;
pub mod publish;
pub mod requirements;
pub mod shares;
pub mod sockets;
pub mod spawn;
pub mod users;
