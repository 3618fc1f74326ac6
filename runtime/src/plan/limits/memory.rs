//! Limits of memory: how to read them, and what a VM needs for one.

use anyhow::bail;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

/// Memory in MiB that kernel and agent need besides the container.
const RESERVE_MIB: u64 = 64;
/// The kernel describes this many bytes of memory with one byte (`struct page`: 64 bytes for 4096).
const PAGE_OVERHEAD: u64 = 64;

/// Limit of the container's memory in bytes, from either of the fields that set it.
pub fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let unified = resources.unified().as_ref().and_then(|files| files.get("memory.max"));
    let plain = resources.memory().as_ref().and_then(|memory| memory.limit());
    let plain = plain.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit > 0);
    unified.and_then(|text| text.trim().parse().ok()).or(plain)
}

/// Limit of swap alone, as version 2 has it; the bundle, as version 1, limits memory and swap together. -1 is no limit.
///
/// # Errors
/// The limit is below that of memory, or there is none of memory.
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

/// Memory in MiB that a VM needs so that the container's cgroup reaches its limit, in bytes, before the VM runs out: the limit, the
/// guest kernel's description of that many pages, and the reserve, in steps of 2 MiB.
pub fn needed_mib(limit: u64) -> u64 {
    let limit_mib = limit.div_ceil(1 << 20);
    let needed = limit_mib.saturating_add(limit_mib.div_ceil(PAGE_OVERHEAD)).saturating_add(RESERVE_MIB);
    needed.checked_next_multiple_of(2).unwrap_or(u64::MAX)
}
