//! Limits: in the guest for the container, on the host for its VM.

mod block_io;
mod cgroup_path;
mod cpus;
mod guest;
mod host;
mod host_files;
mod limit_validation;
mod memory;

pub use cgroup_path::{CgroupPlan, Unit, plan as cgroup_path};
pub use cpus::{DEFAULT_PERIOD, cpu_list, cpus};
pub use guest::{files, plan};
pub use host::{check_member, check_memory, plan as host_limits};
pub use host_files::{HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX};
pub use limit_validation::check as check_limits;
pub use memory::{memory_limit, needed_mib};
