//! Limit validation: refuses limits that no container could run with, before anything exists that would have half of them.

use anyhow::bail;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources};

use super::cpus::cpus;
use super::memory::memory_limit;

/// Least memory in bytes: somewhat more than it takes to make a process.
const LEAST_MEMORY: u64 = 1 << 20;
/// Periods that the kernel takes, in microseconds; the first is also the least quota (kernel/sched/core.c).
const PERIODS: std::ops::RangeInclusive<u64> = 1000..=1_000_000;
/// Weights of version 1's blkio.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Checks `linux.resources`.
///
/// # Errors
/// Names field and value.
pub fn check(resources: &LinuxResources) -> anyhow::Result<()> {
    if let Some(limit) = memory_limit(resources).filter(|&limit| limit < LEAST_MEMORY) {
        bail!("linux.resources.memory.limit {limit}: too low: a container needs at least {LEAST_MEMORY} bytes");
    }
    if let Some(swappiness) = resources.memory().as_ref().and_then(|memory| memory.swappiness())
        && swappiness > 100
    {
        bail!("invalid memory swappiness value: {swappiness} (valid range is 0-100)");
    }
    resources.cpu().as_ref().map_or(Ok(()), check_cpu)?;
    resources.block_io().as_ref().map_or(Ok(()), check_block_io)?;
    for limit in resources.hugepage_limits().iter().flatten() {
        if !is_page_size(limit.page_size()) {
            bail!("linux.resources.hugepageLimits.pageSize {:?} is not a size like 2MB", limit.page_size());
        }
    }
    Ok(())
}

fn check_cpu(cpu: &LinuxCpu) -> anyhow::Result<()> {
    if let Some(period) = cpu.period().filter(|period| *period != 0 && !PERIODS.contains(period)) {
        bail!("linux.resources.cpu.period {period}: must be {} to {} microseconds", PERIODS.start(), PERIODS.end());
    }
    if let Some(quota) = cpu.quota().and_then(|quota| u64::try_from(quota).ok())
        && quota != 0
        && quota < *PERIODS.start()
    {
        bail!("linux.resources.cpu.quota {quota}: at least {} microseconds are needed", PERIODS.start());
    }
    if let Some(idle) = cpu.idle().filter(|idle| !matches!(idle, 0 | 1)) {
        bail!("linux.resources.cpu.idle {idle}: must be 0 or 1");
    }
    for (field, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        let list = list.as_deref().map(str::trim).filter(|list| !list.is_empty());
        if let Some(list) = list.filter(|list| cpus(list).is_none()) {
            bail!("linux.resources.cpu.{field} {list:?} is not a list of numbers like 0-2,5");
        }
    }
    Ok(())
}

fn check_block_io(block_io: &LinuxBlockIo) -> anyhow::Result<()> {
    let of_devices = block_io.weight_device().iter().flatten().map(|device| ("weightDevice.weight", device.weight()));
    for (field, weight) in of_devices.chain([("weight", block_io.weight())]) {
        if let Some(weight) = weight.filter(|weight| *weight != 0 && !WEIGHTS.contains(weight)) {
            bail!("linux.resources.blockIO.{field} {weight}: must be {} to {}", WEIGHTS.start(), WEIGHTS.end());
        }
    }
    Ok(())
}

/// Whether a text is a number with KB, MB or GB.
fn is_page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"].into_iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| number.parse::<u64>().is_ok_and(|number| number > 0 && !text.starts_with('+')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        check(&serde_json::from_str(json).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_nothing_could_run_with_is_named() {
        let table = [
            (r#"{"memory":{"limit":4096}}"#, "linux.resources.memory.limit 4096: too low"),
            (r#"{"unified":{"memory.max":"0"}}"#, "linux.resources.memory.limit 0: too low"),
            (r#"{"memory":{"swappiness":101}}"#, "invalid memory swappiness value: 101"),
            (r#"{"cpu":{"period":999}}"#, "linux.resources.cpu.period 999"),
            (r#"{"cpu":{"period":18446744073709551615}}"#, "linux.resources.cpu.period 18446744073709551615"),
            (r#"{"cpu":{"quota":999}}"#, "linux.resources.cpu.quota 999"),
            (r#"{"cpu":{"idle":2}}"#, "linux.resources.cpu.idle 2"),
            (r#"{"cpu":{"cpus":"all"}}"#, "linux.resources.cpu.cpus \"all\""),
            (r#"{"cpu":{"cpus":"3-1"}}"#, "linux.resources.cpu.cpus \"3-1\""),
            (r#"{"cpu":{"mems":"0,,1"}}"#, "linux.resources.cpu.mems \"0,,1\""),
            (r#"{"blockIO":{"weight":9}}"#, "linux.resources.blockIO.weight 9"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":1001}]}}"#,
                "linux.resources.blockIO.weightDevice.weight 1001",
            ),
            (r#"{"hugepageLimits":[{"pageSize":"big","limit":1}]}"#, "linux.resources.hugepageLimits.pageSize \"big\""),
        ];
        for (json, text) in table {
            assert!(error(json).starts_with(text), "{}", error(json));
        }
    }

    #[test]
    fn what_engines_give_passes() {
        for json in [
            "{}",
            r#"{"memory":{"limit":6291456,"swappiness":60},"cpu":{"quota":-1,"period":0,"cpus":"","mems":" 0 "}}"#,
            r#"{"memory":{"limit":-1},"cpu":{"quota":1000,"period":1000,"idle":1},"blockIO":{"weight":0}}"#,
            r#"{"hugepageLimits":[{"pageSize":"1GB","limit":0},{"pageSize":"64KB","limit":0}],"blockIO":{"weight":10}}"#,
        ] {
            check(&serde_json::from_str(json).unwrap()).unwrap();
        }
    }
}
