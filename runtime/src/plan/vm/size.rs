//! Size of the VM.

use anyhow::Context;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::pod;
use super::settings::{self, Setting};
use crate::plan::annotations::{self, Allowed};
use crate::plan::facts::Facts;
use crate::plan::limits::{DEFAULT_PERIOD, cpu_list, memory_limit, needed_mib};

/// Memory of a VM in MiB on a host that has as much: room for a limit to grow, and the memory of a container without a limit.
/// The host backs only what the guest touches, and up to this size unused memory costs nothing.
const ROOM_MIB: u64 = 3072;
/// Least memory of a VM in MiB, on the smallest of hosts.
const LEAST_MIB: u64 = 128;
/// Least memory in MiB that the annotation may ask for: kernel and agent start with that.
const LEAST_ASKED_MIB: u64 = 64;
/// Most memory of a VM in MiB.
const MOST_MIB: u64 = 1 << 20;
/// Most virtual CPUs of a VM.
const MOST_VCPUS: u32 = 64;
/// File-system devices in reserve: of a pod's VM, which is made to be joined, and of another one.
const SPARES_OF_POD: usize = 4;
const SPARES: usize = 1;

/// Size of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Whether the guest may run virtual machines itself.
    pub nested: bool,
    /// Number of file-system devices in reserve, for what containers bring that join the VM.
    pub spare_file_systems: usize,
    /// Arguments for the kernel besides the usual ones.
    pub cmdline: String,
    /// What the guest's kernel takes over from the host's.
    pub settings: Vec<Setting>,
}

/// Plans the size of a VM for one container.
///
/// # Errors
/// An annotation is no number, out of range, or not allowed.
pub fn plan(spec: &Spec, facts: &Facts, allowed: Allowed<'_>, notes: &mut Vec<String>) -> anyhow::Result<MachinePlan> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let (limit, host_mib) = (resources.and_then(memory_limit), facts.host_memory >> 20);
    // Without a limit a container may use all that its host has.
    let most = || match limit {
        None => host_mib.clamp(LEAST_MIB, MOST_MIB),
        limit => memory_mib(limit, host_mib, &mut Vec::new()),
    };
    let memory = match annotations::number(spec, annotations::MEMORY, LEAST_ASKED_MIB..=MOST_MIB, most, allowed)? {
        Some(mib) => mib,
        // The host backs what is used: a pod's may be as large as its host.
        None if pod::is_of_pod(spec) => host_mib.clamp(LEAST_MIB, MOST_MIB),
        None => memory_mib(limit, host_mib, notes),
    };
    let usual = || u64::from(vcpus(resources, facts.host_cpus));
    let count = annotations::number(spec, annotations::VCPUS, 1..=u64::from(MOST_VCPUS), usual, allowed)?;
    let vcpus = count.unwrap_or_else(usual);
    let memory_mib = u32::try_from(memory).context("memory of the VM")?;
    let vcpus = u8::try_from(vcpus).context("virtual CPUs of the VM")?;
    // The agent brings the other CPUs up once the container's process runs.
    let cmdline = if vcpus > 1 { "maxcpus=1" } else { "" }.to_owned();
    let nested = annotations::switch(spec, annotations::NESTED)?;
    let spare_file_systems = if pod::is_of_pod(spec) { SPARES_OF_POD } else { SPARES };
    Ok(MachinePlan { memory_mib, vcpus, nested, spare_file_systems, cmdline, settings: settings::plan(facts, notes) })
}

/// Memory of the VM: the usual size, or what the limit needs if that is more, and never more than the host has.
fn memory_mib(limit: Option<u64>, host_mib: u64, notes: &mut Vec<String>) -> u64 {
    let most = host_mib.clamp(LEAST_MIB, MOST_MIB);
    let needed = limit.map_or(0, needed_mib);
    if needed > most {
        notes.push(format!("the memory limit needs a VM of {needed} MiB; it gets {most} MiB, all that the host has"));
    }
    needed.max(ROOM_MIB).min(most)
}

/// Number of virtual CPUs: all of the host's, unless quota or CPU set let fewer be busy.
fn vcpus(resources: Option<&LinuxResources>, host: u32) -> u32 {
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let quota = cpu.and_then(|cpu| {
        let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok()).filter(|&quota| quota > 0)?;
        let period = cpu.period().filter(|&period| period > 0).unwrap_or(DEFAULT_PERIOD);
        Some(u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX))
    });
    let set = cpu.and_then(|cpu| cpu.cpus().as_deref()).and_then(cpu_list).map(|cpus| cpus.count);
    let limits = [Some(host), Some(MOST_VCPUS), quota, set];
    limits.into_iter().flatten().min().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_room_or_limit_and_reserve() {
        let table = [
            (None, 16_000, 3072),
            (None, 1000, 1000),
            (None, 10, 128),
            (Some(1), 16_000, 3072),
            (Some(512 << 20), 1000, 1000),
            (Some(4096 << 20), 16_000, 4224),
            (Some((4096 << 20) + 1), 16_000, 4226),
            (Some(1 << 40), 16_000, 16_000),
            (Some(u64::MAX), u64::MAX, 1 << 20),
        ];
        for (limit, host, mib) in table {
            assert_eq!(memory_mib(limit, host, &mut Vec::new()), mib, "{limit:?} of {host}");
        }
    }

    #[test]
    fn cpus_are_limited_by_quota_and_set() {
        let table = [
            ("{}", 8, 8),
            ("{}", 500, 64),
            ("{}", 0, 1),
            (r#"{"quota":150000,"period":100000}"#, 8, 2),
            (r#"{"quota":50000}"#, 8, 1),
            (r#"{"quota":-1,"period":0}"#, 8, 8),
            (r#"{"quota":100,"period":0}"#, 8, 1),
            (r#"{"quota":9223372036854775807,"period":1}"#, 8, 8),
            (r#"{"cpus":"4-6,8"}"#, 16, 4),
            (r#"{"cpus":"nonsense"}"#, 3, 3),
        ];
        for (cpu, host, count) in table {
            let resources = serde_json::from_str(&format!(r#"{{"cpu":{cpu}}}"#)).unwrap();
            assert_eq!(vcpus(Some(&resources), host), count, "{cpu}");
        }
    }
}
