//! Columns of ps(1): names, headers and values.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::ProcessEntry;

/// Reference values of a listing.
pub struct Now {
    /// Uptime of the guest in 1/100 s.
    pub uptime: u64,
    /// Memory of the guest in bytes.
    pub memory: u64,
    /// Time on the host.
    pub time: SystemTime,
}

/// A column of the table.
#[derive(Debug)]
pub struct Column {
    names: &'static [&'static str],
    /// Header.
    pub header: &'static str,
    /// Minimum width.
    pub width: usize,
    /// Whether values are aligned to the right.
    pub right: bool,
    /// Formats the value of a process.
    pub value: Value,
}

type Value = fn(&ProcessEntry, &Now) -> String;

const fn right(names: &'static [&'static str], header: &'static str, width: usize, value: Value) -> Column {
    Column { names, header, width, right: true, value }
}

const fn left(names: &'static [&'static str], header: &'static str, width: usize, value: Value) -> Column {
    Column { names, header, width, right: false, value }
}

/// All columns, with the names and headers of procps.
static COLUMNS: [Column; 20] = [
    // Names of users are the image's own affair: numbers are right for every image.
    left(&["user", "euser", "ruser", "uname"], "UID", 8, |process, _| process.uid.to_string()),
    right(&["uid", "euid"], "UID", 5, |process, _| process.uid.to_string()),
    right(&["pid", "tgid"], "PID", 7, |process, _| process.pid.to_string()),
    right(&["ppid"], "PPID", 7, |process, _| process.ppid.to_string()),
    right(&["pgid", "pgrp"], "PGID", 7, |process, _| process.pgid.to_string()),
    right(&["sid", "sess", "session"], "SID", 7, |process, _| process.sid.to_string()),
    right(&["c"], "C", 2, |process, now| (per_mille(process, now) / 10).to_string()),
    right(&["%cpu", "pcpu"], "%CPU", 4, |process, now| tenths(per_mille(process, now))),
    right(&["%mem", "pmem"], "%MEM", 4, |process, now| {
        tenths(process.rss.saturating_mul(1000).checked_div(now.memory).unwrap_or(0))
    }),
    right(&["vsz", "vsize"], "VSZ", 6, |process, _| (process.vsize / 1024).to_string()),
    right(&["rss", "rssize", "rsz"], "RSS", 5, |process, _| (process.rss / 1024).to_string()),
    right(&["ni", "nice"], "NI", 3, |process, _| process.nice.to_string()),
    right(&["nlwp", "thcount"], "NLWP", 4, |process, _| process.threads.to_string()),
    left(&["tty", "tt", "tname"], "TTY", 8, |process, _| process.terminal.clone()),
    left(&["stat", "s", "state"], "STAT", 4, |process, _| process.state.clone()),
    right(&["etime"], "ELAPSED", 11, |process, now| elapsed(age(process, now))),
    right(&["time", "cputime"], "TIME", 8, |process, _| clock(process.cpu_time / 100)),
    left(&["comm", "ucmd", "ucomm"], "COMMAND", 0, |process, _| process.comm.clone()),
    left(&["args", "command"], "COMMAND", 0, command),
    left(&["cmd"], "CMD", 0, command),
];

/// Start time of a process, for the columns STIME and START.
static STARTED: [Column; 2] =
    [left(&["stime"], "STIME", 5, started), left(&["start", "start_time", "bsdstart"], "START", 5, started)];

/// Every column.
#[cfg(feature = "fuzz")]
pub fn all() -> Vec<&'static Column> {
    COLUMNS.iter().chain(&STARTED).collect()
}

/// Column with a name.
pub fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().chain(&STARTED).find(|column| column.names.contains(&name))
}

/// Command line of a process; its name in brackets if it has none, as ps writes it.
fn command(process: &ProcessEntry, _: &Now) -> String {
    match (process.args.is_empty(), process.state.as_str()) {
        (false, _) => process.args.clone(),
        (true, "Z") => format!("[{}] <defunct>", process.comm),
        (true, _) => format!("[{}]", process.comm),
    }
}

/// Time since a process was started, in 1/100 s.
fn age(process: &ProcessEntry, now: &Now) -> u64 {
    now.uptime.saturating_sub(process.started)
}

/// CPU usage since the start of a process, in thousandths of one CPU.
fn per_mille(process: &ProcessEntry, now: &Now) -> u64 {
    process.cpu_time.saturating_mul(1000).checked_div(age(process, now)).unwrap_or(0)
}

fn tenths(per_mille: u64) -> String {
    format!("{}.{}", per_mille / 10, per_mille % 10)
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Formats a duration as `[[DD-]hh:]mm:ss`.
fn elapsed(hundredths: u64) -> String {
    let seconds = hundredths / 100;
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// Formats a time as `HH:MM` if it is within the last day, else as `Mon DD`, in the host's time zone.
fn started(process: &ProcessEntry, now: &Now) -> String {
    const DAY: Duration = Duration::from_secs(86400);
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let age = Duration::from_millis(age(process, now).saturating_mul(10));
    let Some(local) = now.time.checked_sub(age).and_then(local_time) else { return "?".to_owned() };
    match age < DAY {
        true => format!("{:02}:{:02}", local.tm_hour, local.tm_min),
        false => format!("{}{:02}", MONTHS.get(local.tm_mon as usize).unwrap_or(&"?"), local.tm_mday),
    }
}

fn local_time(time: SystemTime) -> Option<libc::tm> {
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs() as libc::time_t;
    // SAFETY: `tm` is a plain C structure of integers and a pointer, for which zeroes are valid.
    let mut local = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right type.
    let converted = unsafe { libc::localtime_r(&seconds, &mut local) };
    (!converted.is_null()).then_some(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { uptime: 9_000_000, memory: 1 << 30, time: UNIX_EPOCH };

    fn value(name: &str, process: &ProcessEntry) -> String {
        (find(name).unwrap().value)(process, &NOW)
    }

    #[test]
    fn values_as_ps_writes_them() {
        let process = ProcessEntry {
            started: 8_999_000,
            cpu_time: 366_150,
            rss: 1 << 26,
            comm: "sh".into(),
            state: "Z".into(),
            ..Default::default()
        };
        for (name, wanted) in
            [("time", "01:01:01"), ("etime", "00:10"), ("%mem", "6.2"), ("cmd", "[sh] <defunct>"), ("rss", "65536")]
        {
            assert_eq!(value(name, &process), wanted, "{name}");
        }
        let old = ProcessEntry { cpu_time: 900_000, ..Default::default() };
        assert_eq!((value("etime", &old).as_str(), value("pcpu", &old).as_str()), ("1-01:00:00", "10.0"));
    }

    #[test]
    fn a_start_on_another_day_has_a_date() {
        let now = Now { uptime: 20_000_000, time: UNIX_EPOCH + Duration::from_secs(40 * 86400), ..NOW };
        let at = |started| (find("stime").unwrap().value)(&ProcessEntry { started, ..Default::default() }, &now);
        assert_eq!(at(19_999_000).chars().nth(2), Some(':'));
        assert!(at(0).starts_with("Feb"), "{}", at(0));
    }
}
