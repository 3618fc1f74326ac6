//! Limits of the container: `linux.resources` as files of the guest's cgroup (version 2).

use anyhow::bail;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use protocol::{CreateContainerRequest, KeyValue};

use super::cpus::{DEFAULT_PERIOD, cpu_list};
use super::memory::swap_only;
use super::{block_io, limit_validation};
use crate::plan::nul;

/// Size of the guest's huge pages; other sizes exist only when asked for at boot.
const HUGE_PAGE: &str = "2MB";

/// Fills in the files of the guest's cgroup.
///
/// # Errors
/// Values contradict each other, in runc's words, or no container could run with them.
pub fn plan(
    spec: &Spec,
    vcpus: u8,
    request: &mut CreateContainerRequest,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    if let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        limit_validation::check(resources)?;
        request.cgroup_files = files(resources, vcpus, notes)?;
    }
    Ok(())
}

/// Files of the guest's cgroup for these limits, in the order in which they are to be written.
///
/// # Errors
/// Values contradict each other, in runc's words.
pub fn files(resources: &LinuxResources, vcpus: u8, notes: &mut Vec<String>) -> anyhow::Result<Vec<KeyValue>> {
    let mut files = Files { files: Vec::new(), notes };
    if let Some(memory) = resources.memory() {
        files.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        files.cpu(cpu, vcpus);
    }
    files.limit("pids.max", resources.pids().as_ref().map(|pids| pids.limit()));
    files.huge_pages(resources);
    files.ignored(resources);
    files.unified(resources)?;
    Ok(files.files)
}

struct Files<'a> {
    files: Vec<KeyValue>,
    notes: &'a mut Vec<String>,
}

impl Files<'_> {
    fn push(&mut self, key: &str, value: String) {
        self.files.push(KeyValue { key: key.to_owned(), value, ..Default::default() });
    }

    /// Sets a limit as runc does: 0 stands for not set, a negative number for no limit.
    fn limit(&mut self, key: &str, value: Option<i64>) {
        match value.unwrap_or_default() {
            0 => {}
            value if value < 0 => self.push(key, "max".to_owned()),
            value => self.push(key, value.to_string()),
        }
    }

    fn ignore(&mut self, name: &str, given: bool) {
        if given {
            self.notes.push(format!("linux.resources.{name}: no effect in the guest"));
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) -> anyhow::Result<()> {
        self.limit("memory.max", memory.limit());
        self.limit("memory.low", memory.reservation());
        self.limit("memory.swap.max", swap_only(memory)?);
        // A limit of no swap at all is 0 in version 2 and has to be said.
        if memory.limit().is_some_and(|limit| limit > 0) && memory.swap() == memory.limit() {
            self.push("memory.swap.max", "0".to_owned());
        }
        self.ignore("memory.swappiness", memory.swappiness().is_some());
        self.ignore("memory.disableOOMKiller", memory.disable_oom_killer() == Some(true));
        self.ignore("memory.kernelTCP", memory.kernel_tcp().is_some_and(|limit| limit != 0));
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu, vcpus: u8) {
        if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
            self.push("cpu.weight", weight(shares).to_string());
        }
        self.bandwidth(cpu);
        if let Some(idle) = cpu.idle() {
            self.push("cpu.idle", idle.to_string());
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.trim().is_empty()) {
            match cpu_list(cpus).filter(|set| set.highest < u32::from(vcpus)) {
                Some(_) => self.push("cpuset.cpus", cpus.trim().to_owned()),
                None => self.notes.push(format!("cpuset {cpus}: the VM has as many CPUs, numbered from 0")),
            }
        }
        // Memory nodes are the host's: see there.
        let real_time = [cpu.realtime_runtime().is_some_and(|n| n != 0), cpu.realtime_period().is_some_and(|n| n != 0)];
        self.ignore("cpu.realtimeRuntime and realtimePeriod", real_time.contains(&true));
    }

    fn bandwidth(&mut self, cpu: &LinuxCpu) {
        let quota = cpu.quota().filter(|&quota| quota != 0);
        let period = cpu.period().filter(|&period| period != 0);
        if quota.is_some() || period.is_some() {
            let period = period.unwrap_or(DEFAULT_PERIOD);
            let quota = quota.filter(|&quota| quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
            self.push("cpu.max", format!("{quota} {period}"));
        }
        if let Some(burst) = cpu.burst().filter(|&burst| burst != 0) {
            self.push("cpu.max.burst", burst.to_string());
        }
    }

    fn huge_pages(&mut self, resources: &LinuxResources) {
        for limit in resources.hugepage_limits().iter().flatten() {
            if limit.page_size() == HUGE_PAGE && limit.limit() >= 0 {
                self.push(&format!("hugetlb.{HUGE_PAGE}.max"), limit.limit().to_string());
            } else {
                let size = limit.page_size();
                self.notes.push(format!("hugepageLimits: the VM has no pages of {size:?} to limit"));
            }
        }
    }

    fn ignored(&mut self, resources: &LinuxResources) {
        let leaf = resources.block_io().as_ref().and_then(|block_io| block_io.leaf_weight());
        self.ignore("blockIO.leafWeight", leaf.is_some_and(|weight| weight != 0));
        self.ignore("network", resources.network().is_some());
        self.ignore("rdma", resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()));
    }

    fn unified(&mut self, resources: &LinuxResources) -> anyhow::Result<()> {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        for (key, value) in files {
            if key.is_empty() || key.contains('/') || key.starts_with('.') {
                bail!("unified resource {key:?} must be a file name (no slashes)");
            }
            let (key, value) = (nul::checked("unified", key)?, nul::checked("unified", value)?);
            // Those name disks, which only the host has: see there.
            if !key.starts_with(block_io::PREFIX) {
                self.push(&key, value);
            }
        }
        Ok(())
    }
}

/// Weight of version 2 (1…10000) for shares of version 1 (2…262144), linearly.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(json: &str) -> anyhow::Result<(String, Vec<String>)> {
        let spec = serde_json::from_str(&format!(r#"{{"linux":{{"resources":{json}}}}}"#)).unwrap();
        let (mut request, mut notes) = (CreateContainerRequest::new(), Vec::new());
        plan(&spec, 4, &mut request, &mut notes)?;
        let lines: Vec<String> =
            request.cgroup_files.iter().map(|file| format!("{}={}", file.key, file.value)).collect();
        Ok((lines.join(" "), notes))
    }

    #[test]
    fn limits_become_files() {
        let table = [
            ("{}", ""),
            (
                r#"{"memory":{"limit":1000000000,"swap":3000000000,"reservation":500}}"#,
                "memory.max=1000000000 memory.low=500 memory.swap.max=2000000000",
            ),
            (r#"{"memory":{"limit":2000000,"swap":2000000}}"#, "memory.max=2000000 memory.swap.max=0"),
            (r#"{"memory":{"limit":2000000,"swap":-1}}"#, "memory.max=2000000 memory.swap.max=max"),
            (r#"{"memory":{"limit":-1}}"#, "memory.max=max memory.swap.max=max"),
            (r#"{"cpu":{"shares":1024}}"#, "cpu.weight=39"),
            (r#"{"cpu":{"shares":2}}"#, "cpu.weight=1"),
            (r#"{"cpu":{"shares":9999999}}"#, "cpu.weight=10000"),
            (r#"{"cpu":{"quota":5000,"period":10000}}"#, "cpu.max=5000 10000"),
            (r#"{"cpu":{"quota":5000}}"#, "cpu.max=5000 100000"),
            (r#"{"cpu":{"quota":-1,"period":10000}}"#, "cpu.max=max 10000"),
            (r#"{"cpu":{"cpus":"0-3"}}"#, "cpuset.cpus=0-3"),
            (r#"{"cpu":{"cpus":"4"}}"#, ""),
            (r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":"0"}}"#, ""),
            (r#"{"pids":{"limit":100}}"#, "pids.max=100"),
            (r#"{"pids":{"limit":-1}}"#, "pids.max=max"),
            (r#"{"pids":{"limit":0}}"#, ""),
            (r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#, "hugetlb.2MB.max=0"),
            (r#"{"unified":{"memory.high":"5","cpu.idle":"1","io.max":"8:0 rbps=1"}}"#, "cpu.idle=1 memory.high=5"),
        ];
        for (json, expected) in table {
            assert_eq!(files(json).unwrap().0, expected, "{json}");
        }
    }

    #[test]
    fn what_has_no_effect_is_noted() {
        for json in [
            r#"{"blockIO":{"weight":50,"leafWeight":50}}"#,
            r#"{"cpu":{"cpus":"9"}}"#,
            r#"{"hugepageLimits":[{"pageSize":"1GB","limit":0}]}"#,
            r#"{"memory":{"swappiness":5}}"#,
        ] {
            let (files, notes) = files(json).unwrap();
            assert_eq!((files.as_str(), notes.len()), ("", 1), "{json}");
        }
    }

    #[test]
    fn contradictions_are_refused_in_runcs_words() {
        let table = [
            (r#"{"memory":{"swap":5}}"#, "unable to set swap limit without memory limit"),
            (r#"{"memory":{"limit":9000000,"swap":5}}"#, "memory+swap limit should be >= memory limit"),
            (r#"{"unified":{"a/b":"5"}}"#, "unified resource \"a/b\" must be a file name (no slashes)"),
        ];
        for (json, text) in table {
            assert_eq!(files(json).unwrap_err().to_string(), text);
        }
    }
}
