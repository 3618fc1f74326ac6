//! Size of the VM, and `linux.resources` as files of the guest's cgroup v2.

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use protocol::KeyValue;

use super::{MachinePlan, key_value};
use crate::facts::Facts;

/// Memory of a VM without a limit, lazily backed.
const DEFAULT_MIB: u64 = 2048;

/// What the guest's kernel and agent need besides the container's own limit.
const RESERVE_MIB: u64 = 64;

/// The least that a guest boots with.
const MINIMUM_MIB: u64 = 128;

/// Most CPUs of a guest: what its kernel is built for.
const MAX_VCPUS: usize = 64;

/// Size of the VM: annotations win over limits, limits over the host's size.
pub fn machine(spec: &Spec, facts: &Facts) -> anyhow::Result<MachinePlan> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory = annotation(spec, "io.runvm.memory-mib")?.map_or_else(|| memory_mib(resources, facts), Ok)?;
    let cpus = annotation(spec, "io.runvm.vcpus")?.map_or_else(|| Ok(vcpus(resources, facts)), usize::try_from)?;
    if !(MINIMUM_MIB..=1 << 20).contains(&memory) {
        bail!("io.runvm.memory-mib: {memory} is not between {MINIMUM_MIB} and {}", 1 << 20);
    }
    if !(1..=MAX_VCPUS).contains(&cpus) {
        bail!("io.runvm.vcpus: {cpus} is not between 1 and {MAX_VCPUS}");
    }
    // The agent brings the other CPUs up once the container's process runs.
    let cmdline = if cpus > 1 { "maxcpus=1" } else { "" }.to_owned();
    Ok(MachinePlan { memory_mib: u32::try_from(memory)?, vcpus: u8::try_from(cpus)?, cmdline })
}

fn annotation(spec: &Spec, key: &str) -> anyhow::Result<Option<u64>> {
    let text = spec.annotations().as_ref().and_then(|all| all.get(key));
    let parse = |text: &String| text.parse().with_context(|| format!("{key}: {text:?} is not a number"));
    text.map(parse).transpose()
}

fn memory_mib(resources: Option<&LinuxResources>, facts: &Facts) -> anyhow::Result<u64> {
    let limit = resources.and_then(|all| all.memory().as_ref()).and_then(LinuxMemory::limit);
    match limit.filter(|&limit| limit > 0).and_then(|limit| u64::try_from(limit).ok()) {
        // A limit above what the host has limits nothing.
        Some(limit) if limit >> 20 < facts.memory_mib => Ok((limit.div_ceil(1 << 20) + RESERVE_MIB).max(MINIMUM_MIB)),
        Some(_) => Ok(facts.memory_mib.max(MINIMUM_MIB)),
        None => Ok(DEFAULT_MIB.min(facts.memory_mib).max(MINIMUM_MIB)),
    }
}

fn vcpus(resources: Option<&LinuxResources>, facts: &Facts) -> usize {
    let cpu = resources.and_then(|all| all.cpu().as_ref());
    let quota = cpu.and_then(|cpu| {
        let quota = u64::try_from(cpu.quota()?).ok().filter(|&quota| quota > 0)?;
        let period = cpu.period().filter(|&period| period > 0).unwrap_or(100_000);
        usize::try_from(quota.div_ceil(period)).ok()
    });
    facts.cpus.min(quota.unwrap_or(usize::MAX)).clamp(1, MAX_VCPUS)
}

/// The guest's cgroup files, in the order they are written.
pub fn cgroup_files(
    resources: Option<&LinuxResources>,
    vcpus: u8,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<KeyValue>> {
    let Some(resources) = resources else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_files(memory, &mut files)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_files(cpu, vcpus, &mut files, notes);
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()) {
        files.push(key_value("pids.max", &limited(limit)));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') {
            bail!("linux.resources.unified: {file:?} is no file of a cgroup");
        }
        files.push(key_value(file, value));
    }
    if resources.block_io().is_some() {
        notes.push("linux.resources.blockIO is accepted and has no effect yet".to_owned());
    }
    Ok(files)
}

/// Zero and less mean no limit in the specification's v1 language.
fn limited(value: i64) -> String {
    if value > 0 { value.to_string() } else { "max".to_owned() }
}

fn memory_files(memory: &LinuxMemory, files: &mut Vec<KeyValue>) -> anyhow::Result<()> {
    if let Some(limit) = memory.limit().filter(|&limit| limit != 0) {
        files.push(key_value("memory.max", &limited(limit)));
    }
    if let Some(low) = memory.reservation().filter(|&low| low > 0) {
        files.push(key_value("memory.low", &low.to_string()));
    }
    // v1 counts memory and swap together, v2 swap alone.
    match (memory.swap(), memory.limit()) {
        (Some(swap), _) if swap < 0 => files.push(key_value("memory.swap.max", "max")),
        (Some(swap), Some(limit)) if swap > 0 && limit > 0 => {
            let alone = swap.checked_sub(limit).filter(|&alone| alone >= 0);
            let alone = alone.with_context(|| format!("linux.resources.memory: swap {swap} below limit {limit}"))?;
            files.push(key_value("memory.swap.max", &alone.to_string()));
        }
        _ => {}
    }
    Ok(())
}

fn cpu_files(cpu: &LinuxCpu, vcpus: u8, files: &mut Vec<KeyValue>, notes: &mut Vec<String>) {
    if let Some(shares) = cpu.shares().filter(|&shares| shares > 0) {
        files.push(key_value("cpu.weight", &weight(shares).to_string()));
    }
    let quota = cpu.quota().filter(|&quota| quota > 0);
    if quota.is_some() || cpu.period().is_some_and(|period| period > 0) {
        let period = cpu.period().filter(|&period| period > 0).unwrap_or(100_000);
        files.push(key_value("cpu.max", &format!("{} {period}", limited(quota.unwrap_or(-1)))));
    }
    if cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty()) {
        notes.push(format!("linux.resources.cpu.cpus has no effect on the {vcpus} CPUs of the VM yet"));
    }
}

/// Shares (2 to 262144) as a weight (1 to 10000), the conversion that runc documents.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_runc_says() {
        assert_eq!([2, 1024, 262_144, u64::MAX].map(weight), [1, 39, 10_000, 10_000]);
    }
}
