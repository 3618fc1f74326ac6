//! What commands do on the host, each with its undo.

pub mod cgroup;
pub mod facts;
pub mod hooks;
