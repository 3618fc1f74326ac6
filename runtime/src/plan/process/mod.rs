//! The container's processes and what holds for all of them: namespaces, ids, kernel settings, seccomp.

mod capabilities;
pub mod id_mappings;
mod message;
pub mod namespaces;
mod personality;
mod scheduling;
pub mod seccomp;
mod sysctls;

pub use capabilities::{NAMES as CAPABILITIES, add as add_capabilities};
pub use message::{exec, init};
