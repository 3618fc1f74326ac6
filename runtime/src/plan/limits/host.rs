//! Limits of the whole VM: `linux.resources` as files of the host's cgroup.
//!
//! The guest limits the container. The host's cgroup limits guest's kernel, container and monitor together: to the same CPU time
//! and CPUs, and to the memory that a VM needs for the container's limit, with what the monitor needs beside it. The VM itself is
//! mostly larger, so that the limit can grow.

use anyhow::bail;
use oci_spec::runtime::{LinuxCpu, LinuxResources};
use protocol::KeyValue;

use super::block_io;
use super::host_files::{HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX};
use super::memory::{memory_limit, needed_mib, swap_only};

/// Memory in MiB that a guest may have touched beyond its needs. The kernel takes 64 MiB more whenever less than a watermark is
/// free, and keeps some pages for each CPU; freed memory returns after seconds.
const SPREAD_MIB: u64 = 128;
/// Memory in MiB beside that of the VM: the monitor's own, the host kernel's for the VM, file pages in use.
const MONITOR_MIB: u64 = 64;
/// The host's kernel needs one part in this many of the guest's memory to map it.
const MAPPING_PART: u64 = 128;

/// Limits of a VM with `memory_mib` of memory. `guest` are the files of the container's cgroup in the guest.
///
/// # Errors
/// Values contradict each other, in runc's words.
pub fn plan(resources: &LinuxResources, guest: &[KeyValue], memory_mib: u32) -> anyhow::Result<HostLimits> {
    let mut limits = HostLimits::default();
    let cpu_files = guest.iter().filter(|file| file.key.starts_with("cpu."));
    limits.unified.extend(cpu_files.map(|file| (file.key.clone(), file.value.clone())));
    if let Some(cpu) = resources.cpu() {
        limits.legacy_cpu(cpu);
        limits.cpu_set(cpu);
    }
    limits.memory(resources, memory_mib)?;
    if let Some(swappiness) = resources.memory().as_ref().and_then(|memory| memory.swappiness()) {
        // How readily the host swaps out the VM's memory; only version 1 has such a file.
        limits.legacy("memory.swappiness", swappiness);
    }
    block_io::plan(resources, &mut limits)?;
    Ok(limits)
}

/// Refuses a memory limit above the memory of the VM.
///
/// # Errors
/// Names both sizes.
pub fn check_memory(resources: &LinuxResources, memory_mib: u32) -> anyhow::Result<()> {
    match memory_limit(resources).map(|limit| limit >> 20) {
        Some(mib) if mib > u64::from(memory_mib) => bail!(
            "memory limit of {mib} MiB: the container's virtual machine has {memory_mib} MiB, fixed when it was \
             created; annotation io.runvm.memory-mib creates a larger one"
        ),
        _ => Ok(()),
    }
}

/// Refuses limits that cannot hold for one of several containers in a VM.
///
/// # Errors
/// Names the field.
pub fn check_member(resources: &LinuxResources, memory_mib: u32) -> anyhow::Result<()> {
    check_memory(resources, memory_mib)?;
    let mut limits = HostLimits::default();
    block_io::plan(resources, &mut limits)?;
    if limits != HostLimits::default() {
        bail!(
            "linux.resources.blockIO: this container shares the VM of another one, and the host accounts disk I/O for \
             the VM as a whole; set the limit on that container"
        );
    }
    Ok(())
}

impl HostLimits {
    fn legacy(&mut self, file: &str, value: impl ToString) {
        self.legacy.push((file.to_owned(), value.to_string()));
    }

    fn legacy_cpu(&mut self, cpu: &LinuxCpu) {
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            self.legacy("cpu.shares", shares);
        }
        if let Some(period) = cpu.period().filter(|&period| period != 0) {
            self.legacy("cpu.cfs_period_us", period);
        }
        if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
            self.legacy("cpu.cfs_quota_us", quota);
        }
        if let Some(burst) = cpu.burst().filter(|&burst| burst != 0) {
            self.legacy("cpu.cfs_burst_us", burst);
        }
        if let Some(idle) = cpu.idle() {
            self.legacy("cpu.idle", idle);
        }
    }

    /// Sets CPUs and memory nodes, whose files have the same names in both versions.
    fn cpu_set(&mut self, cpu: &LinuxCpu) {
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            let list = list.as_deref().map(str::trim).filter(|list| !list.is_empty() && !list.contains('\n'));
            if let Some(list) = list {
                self.unified.push((file.to_owned(), list.to_owned()));
                self.legacy(file, list);
            }
        }
    }

    fn memory(&mut self, resources: &LinuxResources, memory_mib: u32) -> anyhow::Result<()> {
        let asked = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or_default();
        let swap = resources.memory().as_ref().map(swap_only).transpose()?.flatten();
        if let Some(limit) = memory_limit(resources) {
            let mib = needed_mib(limit).saturating_add(SPREAD_MIB).min(memory_mib.into());
            let bytes = (mib + mib.div_ceil(MAPPING_PART) + MONITOR_MIB) << 20;
            self.unified.push((MEMORY_MAX.to_owned(), bytes.to_string()));
            // Neither may ever be above the other; an unlimited one never is.
            if swap.is_some() {
                self.legacy(LEGACY_SWAP_MAX, -1);
            }
            self.legacy(LEGACY_MEMORY_MAX, bytes);
            if let Some(swap) = swap.and_then(|swap| u64::try_from(swap).ok()) {
                self.unified.push(("memory.swap.max".to_owned(), swap.to_string()));
                self.legacy(LEGACY_SWAP_MAX, bytes.saturating_add(swap));
            }
        } else if asked < 0 {
            self.unified.push((MEMORY_MAX.to_owned(), "max".to_owned()));
            self.legacy(LEGACY_SWAP_MAX, -1);
            self.legacy(LEGACY_MEMORY_MAX, -1);
        }
        if swap == Some(-1) {
            self.unified.push(("memory.swap.max".to_owned(), "max".to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> (String, String) {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let guest = super::super::guest::files(&resources, 4, &mut Vec::new()).unwrap();
        let limits = plan(&resources, &guest, 1024).unwrap();
        let lines = |files: &[(String, String)]| {
            files.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
        };
        (lines(&limits.unified), lines(&limits.legacy))
    }

    #[test]
    fn both_versions() {
        // 66 MiB are needed and 128 more may be touched; 2 to map them and 64 for the monitor.
        let table = [
            ("{}", "", ""),
            (
                r#"{"cpu":{"shares":1024,"quota":5000,"period":10000,"cpus":"0-1","mems":"0"}}"#,
                "cpu.weight=39 cpu.max=5000 10000 cpuset.cpus=0-1 cpuset.mems=0",
                "cpu.shares=1024 cpu.cfs_period_us=10000 cpu.cfs_quota_us=5000 cpuset.cpus=0-1 cpuset.mems=0",
            ),
            (r#"{"memory":{"limit":1000}}"#, "memory.max=272629760", "memory.limit_in_bytes=272629760"),
            (
                r#"{"memory":{"limit":1000,"swap":3000}}"#,
                "memory.max=272629760 memory.swap.max=2000",
                "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=272629760 memory.memsw.limit_in_bytes=272631760",
            ),
            // All of the VM, 8 MiB to map it, and the monitor.
            (r#"{"memory":{"limit":1073741824}}"#, "memory.max=1149239296", "memory.limit_in_bytes=1149239296"),
            (
                r#"{"memory":{"limit":-1}}"#,
                "memory.max=max memory.swap.max=max",
                "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=-1",
            ),
            (r#"{"memory":{"swappiness":7}}"#, "", "memory.swappiness=7"),
            (r#"{"pids":{"limit":5},"unified":{"cpu.weight":"7"}}"#, "cpu.weight=7", ""),
        ];
        for (json, unified, legacy) in table {
            assert_eq!(of(json), (unified.to_owned(), legacy.to_owned()), "{json}");
        }
    }

    #[test]
    fn no_more_memory_than_the_vm_has() {
        let check = |limit: i64| {
            let json = format!(r#"{{"memory":{{"limit":{limit}}}}}"#);
            check_memory(&serde_json::from_str(&json).unwrap(), 1024)
        };
        check(1 << 30).unwrap();
        check(-1).unwrap();
        let error = check(2 << 30).unwrap_err().to_string();
        assert!(error.contains("2048 MiB") && error.contains("has 1024 MiB"), "{error}");
    }

    #[test]
    fn limits_of_disks_are_nothing_for_one_of_several() {
        let check = |json: &str| check_member(&serde_json::from_str(json).unwrap(), 1024).map_err(|e| e.to_string());
        for json in ["{}", r#"{"blockIO":{"weight":0}}"#, r#"{"cpu":{"quota":5000},"memory":{"limit":1000}}"#] {
            check(json).unwrap();
        }
        for json in [
            r#"{"blockIO":{"weight":10}}"#,
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}"#,
            r#"{"unified":{"io.weight":"10"}}"#,
        ] {
            assert!(check(json).unwrap_err().starts_with("linux.resources.blockIO: "), "{json}");
        }
        assert!(check(r#"{"memory":{"limit":2147483648}}"#).unwrap_err().starts_with("memory limit of 2048 MiB"));
    }
}
