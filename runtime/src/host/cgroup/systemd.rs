//! Cgroups that systemd manages (`--systemd-cgroup`), by calls of org.freedesktop.systemd1(5).
//!
//! A scope that systemd does not know would lose its limits whenever systemd applies its own settings. So systemd gets to know the
//! scope, the process in it and the limits that have properties.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustbus::connection::Timeout;
use rustbus::connection::ll_conn::force_finish_on_error;
use rustbus::message_builder::{MarshalledMessage, MessageBuilder, MessageType};
use rustbus::wire::ObjectPath;
use rustbus::{RpcConn, standard_messages};

use crate::plan::{LEGACY_MEMORY_MAX, MEMORY_MAX, MonitorDevices, Unit, cpus};

/// Time that systemd may take for one job, as with runc.
const PATIENCE: Duration = Duration::from_secs(30);
/// Value of "no limit" in properties that are numbers.
const INFINITY: u64 = u64::MAX;
/// Microseconds per second of the smallest quota step: systemd keeps quotas in hundredths of a CPU.
const QUOTA_STEP: u64 = 10_000;

rustbus::dbus_variant_sig!(Value, Text => String; List => Vec<String>; Flag => bool; Number => u64; Pids => Vec<u32>; Mask => Vec<u8>; Devices => Vec<(String, String)>);

type Properties = Vec<(String, Value)>;

/// Whether systemd manages this host (sd_booted(3)).
pub fn booted() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}

/// Starts a unit, with a process in it if it is a scope.
///
/// # Errors
/// Systemd cannot be reached or refuses.
pub fn start(unit: &Unit, pid: i32) -> anyhow::Result<()> {
    let mut properties = vec![
        property("Description", Value::Text("runvm container".to_owned())),
        property("DefaultDependencies", Value::Flag(false)),
    ];
    let accounting = ["MemoryAccounting", "CPUAccounting", "IOAccounting", "BlockIOAccounting", "TasksAccounting"];
    properties.extend(accounting.map(|name| property(name, Value::Flag(true))));
    // Else systemd allows all again, in version 1, whenever it applies its own settings.
    properties.push(property("DevicePolicy", Value::Text("strict".to_owned())));
    properties.push(property("DeviceAllow", Value::Devices(MonitorDevices::rules().entries())));
    if unit.is_slice() {
        properties.push(property("Wants", Value::List(vec![unit.slice.clone()])));
    } else {
        let pid = u32::try_from(pid).context("pid of the monitor")?;
        properties.push(property("Slice", Value::Text(unit.slice.clone())));
        properties.push(property("Delegate", Value::Flag(true)));
        properties.push(property("PIDs", Value::Pids(vec![pid])));
    }
    let started = || -> anyhow::Result<()> {
        let mut bus = Bus::connect()?;
        match bus.start_transient_unit(&unit.name, &properties) {
            // One that failed earlier keeps its name until it is forgotten.
            Err(error) if format!("{error:#}").contains("UnitExists") => {
                bus.forget(&unit.name)?;
                bus.start_transient_unit(&unit.name, &properties)
            }
            done => done,
        }
    };
    started().with_context(|| format!("have systemd start {}", unit.name))
}

/// Sets limits, given as files of either version of cgroups, as properties of a unit.
///
/// # Errors
/// Systemd cannot be reached or refuses.
pub fn limit(unit: &str, files: &[(String, String)]) -> anyhow::Result<()> {
    let properties = properties(files);
    if properties.is_empty() {
        return Ok(());
    }
    let set = || -> anyhow::Result<()> {
        let mut call = manager("SetUnitProperties");
        call.body.push_param2(unit, true)?;
        call.body.push_param(&properties)?;
        Bus::connect()?.call(&mut call).map(drop)
    };
    set().with_context(|| format!("have systemd limit {unit}"))
}

/// Stops a unit and has systemd forget it; one that is gone already is no error.
///
/// # Errors
/// Systemd cannot be reached or refuses.
pub fn stop(unit: &str) -> anyhow::Result<()> {
    let stopped = || -> anyhow::Result<()> {
        let mut bus = Bus::connect()?;
        match bus.stop_unit(unit) {
            Err(error) if !format!("{error:#}").contains("NoSuchUnit") => return Err(error),
            _ => {}
        }
        // Only a unit that failed is still there.
        let _ = bus.forget(unit);
        Ok(())
    };
    stopped().with_context(|| format!("have systemd stop {unit}"))
}

fn property(name: &str, value: Value) -> (String, Value) {
    (name.to_owned(), value)
}

/// Properties for the limits that systemd knows; it leaves the other files alone.
fn properties(files: &[(String, String)]) -> Properties {
    let file = |name: &str| files.iter().rev().find(|(file, _)| file == name).map(|(_, value)| value.as_str());
    let number = |name: &str| file(name).and_then(number);
    let (quota, period) = match file("cpu.max").and_then(|value| value.split_once(' ')) {
        Some((quota, period)) => (self::number(quota), self::number(period)),
        None => (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")),
    };
    let numbers = [
        ("MemoryMax", number(MEMORY_MAX)),
        ("MemorySwapMax", number("memory.swap.max")),
        ("MemoryLimit", number(LEGACY_MEMORY_MAX)),
        ("CPUWeight", number("cpu.weight")),
        ("CPUShares", number("cpu.shares")),
        ("CPUQuotaPeriodUSec", period),
        ("CPUQuotaPerSecUSec", quota.map(|quota| per_second(quota, period.unwrap_or(100_000)))),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, value)| Some(property(name, Value::Number(value?))));
    let masks = [("AllowedCPUs", "cpuset.cpus"), ("AllowedMemoryNodes", "cpuset.mems")];
    let masks = masks.into_iter().filter_map(|(name, list)| Some(property(name, Value::Mask(mask(file(list)?)?))));
    numbers.chain(masks).collect()
}

fn number(text: &str) -> Option<u64> {
    match text {
        "max" | "-1" => Some(INFINITY),
        text => text.parse().ok(),
    }
}

fn per_second(quota: u64, period: u64) -> u64 {
    if quota == INFINITY || period == 0 {
        return INFINITY;
    }
    quota.saturating_mul(1_000_000).div_ceil(period).div_ceil(QUOTA_STEP).saturating_mul(QUOTA_STEP)
}

/// Bit mask of a list of CPUs like `0-3,8`; the first CPU is the lowest bit of the first byte.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut present = cpus(list)?;
    present.truncate(present.iter().rposition(|&is| is)? + 1);
    let byte = |cpus: &[bool]| cpus.iter().rev().fold(0, |bits, &is| bits << 1 | u8::from(is));
    Some(present.chunks(8).map(byte).collect())
}

fn manager(method: &str) -> MarshalledMessage {
    let call = MessageBuilder::new().call(method).with_interface("org.freedesktop.systemd1.Manager");
    call.on("/org/freedesktop/systemd1").at("org.freedesktop.systemd1").build()
}

/// Connection to the system's message bus.
struct Bus {
    connection: RpcConn,
    deadline: Instant,
}

impl Bus {
    fn connect() -> anyhow::Result<Self> {
        let connection = RpcConn::system_conn(Timeout::Duration(PATIENCE)).context("connect to the system's D-Bus")?;
        Ok(Self { connection, deadline: Instant::now() + PATIENCE })
    }

    fn left(&self) -> Timeout {
        Timeout::Duration(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn call(&mut self, message: &mut MarshalledMessage) -> anyhow::Result<MarshalledMessage> {
        let left = self.left();
        let serial = self.connection.send_message(message)?.write(left).map_err(force_finish_on_error)?;
        let reply = self.connection.wait_response(serial, left)?;
        if matches!(reply.typ, MessageType::Error) {
            let name = reply.dynheader.error_name.clone().unwrap_or_default();
            bail!("{name}: {}", reply.body.parser().get::<String>().unwrap_or_default());
        }
        Ok(reply)
    }

    fn start_transient_unit(&mut self, unit: &str, properties: &Properties) -> anyhow::Result<()> {
        let mut call = manager("StartTransientUnit");
        call.body.push_param2(unit, "replace")?;
        call.body.push_param(properties)?;
        // No other units beside it.
        call.body.push_param::<&[(String, &[(String, Value)])]>(&[])?;
        self.job(&mut call)
    }

    fn stop_unit(&mut self, unit: &str) -> anyhow::Result<()> {
        let mut call = manager("StopUnit");
        call.body.push_param2(unit, "replace")?;
        self.job(&mut call)
    }

    fn forget(&mut self, unit: &str) -> anyhow::Result<()> {
        let mut call = manager("ResetFailedUnit");
        call.body.push_param(unit)?;
        self.call(&mut call).map(drop)
    }

    /// Calls a method that answers with a job, and waits until the job is done.
    fn job(&mut self, call: &mut MarshalledMessage) -> anyhow::Result<()> {
        let removed = "type='signal',sender='org.freedesktop.systemd1',member='JobRemoved'";
        self.call(&mut standard_messages::add_match(removed))?;
        self.call(&mut manager("Subscribe"))?;
        let reply = self.call(call)?;
        let job = reply.body.parser().get::<ObjectPath<String>>()?;
        loop {
            let signal = self.connection.wait_signal(self.left()).context("wait for the job's end")?;
            let ours = signal.dynheader.member.as_deref() == Some("JobRemoved");
            let parse = || signal.body.parser().get4::<u32, ObjectPath<String>, String, String>();
            match parse() {
                Ok((_, path, _, result)) if ours && path.as_ref() == job.as_ref() => {
                    return if result == "done" { Ok(()) } else { Err(anyhow!("the job's result is {result:?}")) };
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> String {
        let files: Vec<_> = files.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        format!("{:?}", properties(&files))
    }

    #[test]
    fn limits_as_properties() {
        let table: [(&[(&str, &str)], &str); 6] = [
            (
                &[("memory.max", "1000"), ("memory.swap.max", "max")],
                r#"[("MemoryMax", Number(1000)), ("MemorySwapMax", Number(18446744073709551615))]"#,
            ),
            (&[("memory.limit_in_bytes", "-1")], r#"[("MemoryLimit", Number(18446744073709551615))]"#),
            // Half of one percent is rounded up.
            (
                &[("cpu.max", "1234 100000")],
                r#"[("CPUQuotaPeriodUSec", Number(100000)), ("CPUQuotaPerSecUSec", Number(20000))]"#,
            ),
            (
                &[("cpu.max", "max 50000")],
                r#"[("CPUQuotaPeriodUSec", Number(50000)), ("CPUQuotaPerSecUSec", Number(18446744073709551615))]"#,
            ),
            (
                &[("cpu.shares", "512"), ("cpu.cfs_quota_us", "150000")],
                r#"[("CPUShares", Number(512)), ("CPUQuotaPerSecUSec", Number(1500000))]"#,
            ),
            (
                &[("cpuset.cpus", "0-2,9"), ("cpuset.mems", "0"), ("io.max", "x")],
                r#"[("AllowedCPUs", Mask([7, 2])), ("AllowedMemoryNodes", Mask([1]))]"#,
            ),
        ];
        for (files, expected) in table {
            assert_eq!(of(files), expected, "{files:?}");
        }
    }

    #[test]
    fn lists_of_cpus_that_are_none() {
        for list in ["", "a", "1-", "3-1x"] {
            assert_eq!(mask(list), None, "{list}");
        }
        // As the plan: more than any kernel has.
        assert_eq!(mask("0-99999999"), None);
        assert_eq!(mask("0-8191").map(|bits| bits.len()), Some(1024));
    }
}
