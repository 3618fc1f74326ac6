//! `runvm update`

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Value, json};

use crate::cli::{Global, UpdateArgs};
use crate::control::{self, Request};
use crate::plan::HostLimits;
use crate::state::{Dir, Status};
use crate::{log, plan, status};

/// Time for the monitor's answer: the guest only writes a few files.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes the limits of a container: first those of the whole VM on the host, which are wider and must hold before the container
/// may use more, then those of its cgroup in the guest.
pub fn run(global: &Global, args: &UpdateArgs) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), &args.id)?;
    let _lock = dir.lock(PATIENCE)?;
    let state = dir.state()?;
    match status::of(&dir, &state) {
        Status::Created | Status::Running => {}
        Status::Paused => bail!("cannot update a paused container"),
        Status::Stopped | Status::Creating => bail!("container not running"),
    }
    let resources = match &args.resources {
        Some(file) => read(file)?,
        None => serde_json::from_value(from_flags(args)?).context("update")?,
    };
    plan::check_limits(&resources)?;
    let check = if state.sandbox.is_some() { plan::check_member } else { plan::check_memory };
    check(&resources, state.memory_mib)?;
    let mut notes = Vec::new();
    let files = plan::cgroup_files(&resources, state.vcpus, &mut notes)?;
    let mut limits = plan::host_limits(&resources, &files, state.memory_mib)?;
    if state.shared {
        limits.leave_memory_out();
    }
    if state.sandbox.is_some() {
        limits = HostLimits::default();
    }
    notes.iter().for_each(|note| log::debug(note));
    let files = files.into_iter().map(|file| (file.key, file.value)).collect();
    state.cgroup.map_or(Ok(()), |cgroup| cgroup.limit(&limits))?;
    control::call(dir.path(), &Request::Update(files), PATIENCE).map(|_| 0)
}

/// Reads `linux.resources` from a file, or from standard input for `-`.
fn read(file: &Path) -> anyhow::Result<LinuxResources> {
    const MOST: u64 = 1 << 20;
    let mut text = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().take(MOST).read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MOST).read_to_end(&mut text))
    };
    read.with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse the resources in {}", file.display()))
}

fn from_flags(args: &UpdateArgs) -> anyhow::Result<Value> {
    let (memory, cpu) = (&args.memory, &args.cpu);
    let size = |flag: &str, value: &Option<String>| value.as_deref().map(|text| bytes(flag, text)).transpose();
    Ok(json!({
        "memory": {
            "limit": size("memory", &memory.memory)?,
            "reservation": size("memory-reservation", &memory.memory_reservation)?,
            "swap": size("memory-swap", &memory.memory_swap)?,
        },
        "cpu": {
            "shares": cpu.cpu_share,
            "quota": cpu.cpu_quota,
            "period": cpu.cpu_period,
            "burst": cpu.cpu_burst,
            "realtimeRuntime": cpu.cpu_rt_runtime,
            "realtimePeriod": cpu.cpu_rt_period,
            "cpus": cpu.cpuset_cpus,
            "mems": cpu.cpuset_mems,
            "idle": cpu.cpu_idle,
        },
        "blockIO": args.blkio_weight.map(|weight| json!({"weight": weight})),
        "pids": args.pids_limit.map(|limit| json!({"limit": limit})),
    }))
}

/// Parses a size as runc and Docker do: bytes, or with b, k, m, g or t for powers of 1024; -1 stands for no limit.
fn bytes(flag: &str, text: &str) -> anyhow::Result<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = lower.split_at(lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len()));
    let shift = match unit {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    let number = number.trim().parse::<i64>().ok();
    let value = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    value.with_context(|| format!("invalid value for {flag}: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, value) in
            [("0", 0), ("-1", -1), ("64m", 64 << 20), ("1GiB", 1 << 30), ("12 kb", 12 << 10), ("7B", 7)]
        {
            assert_eq!(bytes("memory", text).unwrap(), value, "{text}");
        }
        for text in ["", "m", "1x", "1.5.5g", "99999999999t"] {
            let error = bytes("memory", text).unwrap_err().to_string();
            assert_eq!(error, format!("invalid value for memory: {text:?}"));
        }
    }
}
