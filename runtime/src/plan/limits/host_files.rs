//! Files of the host's cgroup for one VM.

/// The file with the limit of memory.
pub const MEMORY_MAX: &str = "memory.max";
/// The same in version 1.
pub const LEGACY_MEMORY_MAX: &str = "memory.limit_in_bytes";

/// The file with the limit of memory and swap together in version 1.
pub const LEGACY_SWAP_MAX: &str = "memory.memsw.limit_in_bytes";

/// Files of the host's cgroup and their values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// With cgroup version 2.
    pub unified: Vec<(String, String)>,
    /// With version 1.
    pub legacy: Vec<(String, String)>,
    /// With either: of each group the first file that this host has.
    pub one_of: Vec<Vec<(String, String)>>,
}

impl HostLimits {
    /// For a VM with several containers: each has its limit in the guest, all together have none.
    pub fn leave_memory_out(&mut self) {
        self.unified.retain(|(file, _)| !file.starts_with("memory."));
        self.legacy.retain(|(file, _)| !file.starts_with("memory."));
    }
}
