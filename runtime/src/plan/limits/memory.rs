//! Limits of memory, as more than one place reads them.

use anyhow::bail;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

/// What kernel and agent need besides the container, in MiB.
const RESERVE_MIB: u64 = 64;
/// The kernel describes each page of 4096 bytes with 64.
const PAGE_OVERHEAD: u64 = 64;
/// The limit of the container's memory in bytes, from wherever it is set.
pub fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let unified = resources.unified().as_ref().and_then(|files| files.get("memory.max"));
    let plain = resources.memory().as_ref().and_then(|memory| memory.limit());
    let plain = plain.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > 0);
    unified.and_then(|text| text.trim().parse().ok()).or(plain)
}

/// Version 1 limits memory and swap together, version 2 swap alone; -1 is no limit.
///
/// # Errors
/// A limit that is less than that of memory, or without one.
pub fn swap_only(memory: &LinuxMemory) -> anyhow::Result<Option<i64>> {
    let limit = memory.limit().unwrap_or_default();
    match memory.swap().unwrap_or_default() {
        0 if limit == -1 => Ok(Some(-1)),
        0 => Ok(None),
        swap if swap < 0 => Ok(Some(-1)),
        _ if limit <= 0 => bail!("unable to set swap limit without memory limit"),
        swap if swap < limit => bail!("memory+swap limit should be >= memory limit"),
        swap => Ok(swap.checked_sub(limit)),
    }
}

/// What a VM needs, in MiB, so that the container's cgroup reaches its limit (in bytes) before the VM runs out: the
/// limit, the guest kernel's description of that many pages, and the reserve, in steps of 2 MiB.
pub fn needed_mib(limit: u64) -> u64 {
    let limit_mib = limit.div_ceil(1 << 20);
    let needed = limit_mib.saturating_add(limit_mib.div_ceil(PAGE_OVERHEAD)).saturating_add(RESERVE_MIB);
    needed.checked_next_multiple_of(2).unwrap_or(u64::MAX)
}
