//! Statistics as runc's `events` prints them (`types.Stats`), from the guest's cgroup v2 files.

use serde_json::{Map, Value, json};

/// Files of the guest's cgroup that the statistics need.
pub const FILES: &[&str] = &[
    "cpu.stat",
    "cpuset.cpus.effective",
    "cpuset.mems.effective",
    "memory.stat",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.events",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.max",
    "io.stat",
    "hugetlb.2MB.current",
    "hugetlb.2MB.max",
    "hugetlb.2MB.events",
];

/// Statistics as JSON. A file that the guest's kernel does not have counts as zero, as with runc.
pub fn stats(files: &[(String, String)]) -> Value {
    let files = Files(files);
    json!({
        "cpu": cpu(&files),
        "cpuset": {
            "cpus": numbers(files.text("cpuset.cpus.effective")),
            "cpu_exclusive": 0,
            "mems": numbers(files.text("cpuset.mems.effective")),
            "mem_hardwall": 0,
            "mem_exclusive": 0,
            "memory_migrate": 0,
            "memory_spread_page": 0,
            "memory_spread_slab": 0,
            "memory_pressure": 0,
            "sched_load_balance": 0,
            "sched_relax_domain_level": 0,
        },
        "memory": memory(&files),
        "pids": {"current": files.number("pids.current"), "limit": files.limit("pids.max").unwrap_or(0)},
        "blkio": block_io(files.text("io.stat")),
        "hugetlb": {"2MB": {
            "usage": files.number("hugetlb.2MB.current"),
            "failcnt": files.entry("hugetlb.2MB.events", "max"),
        }},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu(files: &Files) -> Value {
    // cpu.stat counts microseconds, runc nanoseconds.
    let nanoseconds = |key| files.entry("cpu.stat", key).saturating_mul(1000);
    json!({
        "usage": {
            "total": nanoseconds("usage_usec"),
            "kernel": nanoseconds("system_usec"),
            "user": nanoseconds("user_usec"),
        },
        "throttling": {
            "periods": files.entry("cpu.stat", "nr_periods"),
            "throttledPeriods": files.entry("cpu.stat", "nr_throttled"),
            "throttledTime": nanoseconds("throttled_usec"),
        },
    })
}

fn memory(files: &Files) -> Value {
    let limit = files.limit("memory.max").unwrap_or(u64::MAX);
    let usage = files.number("memory.current");
    let swap_limit = files.limit("memory.swap.max").unwrap_or(u64::MAX);
    let raw: Map<String, Value> = pairs(files.text("memory.stat")).map(|(key, n)| (key.to_owned(), n.into())).collect();
    json!({
        "cache": files.entry("memory.stat", "file"),
        "usage": {
            "limit": limit,
            "usage": usage,
            "max": files.number("memory.peak"),
            "failcnt": files.entry("memory.events", "max"),
        },
        // As in cgroup v1, memory and swap together.
        "swap": {
            "limit": limit.saturating_add(swap_limit),
            "usage": usage.saturating_add(files.number("memory.swap.current")),
            "failcnt": 0,
        },
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
        "raw": raw,
    })
}

/// Parses lines of `MAJOR:MINOR rbytes=… wbytes=… rios=… wios=… dbytes=… dios=…`, one for each device.
fn block_io(text: &str) -> Value {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse::<u64>(), b.parse::<u64>())) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "dbytes" => (&mut bytes, "Discard"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                "dios" => (&mut operations, "Discard"),
                _ => continue,
            };
            list.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
        }
    }
    json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations})
}

struct Files<'a>(&'a [(String, String)]);

impl Files<'_> {
    fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, text)| text.trim())
    }

    /// Value of a file with one number.
    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// Value of a file with a number or `max`.
    fn limit(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }

    /// Value of a key in a file of `key number` lines.
    fn entry(&self, name: &str, key: &str) -> u64 {
        pairs(self.text(name)).find(|(found, _)| *found == key).map_or(0, |(_, number)| number)
    }
}

fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, number) = line.split_once(' ')?;
        Some((key, number.trim().parse().ok()?))
    })
}

/// Numbers of a list like `0-2,4`. Limited, since a hostile guest could name any range.
fn numbers(list: &str) -> Vec<u16> {
    const MOST: usize = 4096;
    let ranges = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?)
    });
    ranges.flatten().take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Value {
        let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        stats(&files)
    }

    #[test]
    fn files_become_runcs_statistics() {
        let stats = of(&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 1\nthrottled_usec 5\n",
            ),
            ("cpuset.cpus.effective", "0-1,3\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "8192\n"),
            ("memory.stat", "anon 100\nfile 200\n"),
            ("memory.swap.max", "max\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n"),
        ]);
        assert_eq!(stats["cpu"]["usage"], json!({"total": 30000, "kernel": 10000, "user": 20000}));
        assert_eq!(stats["cpu"]["throttling"], json!({"periods": 3, "throttledPeriods": 1, "throttledTime": 5000}));
        assert_eq!(stats["cpuset"]["cpus"], json!([0, 1, 3]));
        assert_eq!(stats["memory"]["usage"], json!({"limit": 8192, "usage": 4096, "max": 0, "failcnt": 0}));
        assert_eq!(stats["memory"]["swap"]["limit"], json!(u64::MAX));
        assert_eq!((&stats["memory"]["cache"], &stats["memory"]["raw"]["anon"]), (&json!(200), &json!(100)));
        assert_eq!(stats["pids"], json!({"current": 2, "limit": 0}));
        let first = &stats["blkio"]["ioServiceBytesRecursive"][0];
        assert_eq!(*first, json!({"major": 8, "minor": 0, "op": "Read", "value": 5}));
    }

    #[test]
    fn nonsense_from_the_guest_is_nothing_worse_than_zeroes() {
        let stats = of(&[
            ("cpu.stat", "usage_usec 18446744073709551615\nx\n\n y z"),
            ("cpuset.cpus.effective", "0-65535,0-65535,9-1,-,a"),
            ("memory.max", "-5"),
            ("io.stat", "8 rbytes=1\n8:x rbytes=1\n8:1 rbytes rbytes=x =\n"),
        ]);
        assert_eq!(stats["cpu"]["usage"]["total"], json!(u64::MAX));
        assert_eq!(stats["cpuset"]["cpus"].as_array().unwrap().len(), 4096);
        assert_eq!(stats["blkio"]["ioServicedRecursive"], json!([]));
    }
}
