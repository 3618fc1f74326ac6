//! Files of the host's cgroup for one VM.

/// File with the limit of memory.
pub const MEMORY_MAX: &str = "memory.max";
/// File with the limit of memory in version 1.
pub const LEGACY_MEMORY_MAX: &str = "memory.limit_in_bytes";

/// File with the limit of memory and swap together in version 1.
pub const LEGACY_SWAP_MAX: &str = "memory.memsw.limit_in_bytes";

/// Limits of a VM: files of the host's cgroup and their values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Files of cgroup version 2.
    pub unified: Vec<(String, String)>,
    /// Files of version 1.
    pub legacy: Vec<(String, String)>,
    /// Groups of files of either version; of each group the first that the host has is written.
    pub one_of: Vec<Vec<(String, String)>>,
}

impl HostLimits {
    /// Drops the limits of memory, for a VM with several containers: the guest limits each of them.
    pub fn leave_memory_out(&mut self) {
        self.unified.retain(|(file, _)| !file.starts_with("memory."));
        self.legacy.retain(|(file, _)| !file.starts_with("memory."));
    }
}
