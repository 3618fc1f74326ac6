//! Limits of block I/O, which hold on the host, where the disks are.
//!
//! The monitor reads and writes files for the container. So these limits belong to the monitor's cgroup on the host, and the
//! bundle's device numbers, which are the host's, are right.

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxResources};

use super::host_files::HostLimits;

/// Prefix of the files of version 2 for such limits.
pub const PREFIX: &str = "io.";

/// Adds the files for `linux.resources.blockIO`.
///
/// # Errors
/// A device number is invalid.
pub fn plan(resources: &LinuxResources, limits: &mut HostLimits) -> anyhow::Result<()> {
    if let Some(block_io) = resources.block_io() {
        weights(block_io, limits)?;
        throttles(block_io, limits)?;
    }
    let unified = resources.unified().iter().flatten().filter(|(file, _)| file.starts_with(PREFIX));
    let mut unified: Vec<_> = unified.map(|(file, value)| (file.clone(), value.clone())).collect();
    unified.sort();
    // A host of version 1 has no such file, and says so.
    limits.legacy.extend(unified.iter().cloned());
    limits.unified.extend(unified);
    Ok(())
}

/// Adds weights. Which file exists depends on the host's version of cgroups and its I/O scheduler: BFQ has its own.
fn weights(block_io: &LinuxBlockIo, limits: &mut HostLimits) -> anyhow::Result<()> {
    // `of` says whose weight it is: of a device, in files of their own in version 1, or of all.
    let files = |legacy: &str, of: &str, weight: u16| {
        let unified = ("io.weight".to_owned(), format!("{of}{}", unified_weight(weight)));
        let plain = |name: String| (name, format!("{of}{weight}"));
        let [bfq, other] = ["blkio.bfq", "blkio"].map(|name| plain(format!("{name}.{legacy}")));
        vec![plain("io.bfq.weight".to_owned()), unified, bfq, other]
    };
    let all = block_io.weight().filter(|&weight| weight != 0);
    limits.one_of.extend(all.map(|weight| files("weight", "", weight)));
    for device in block_io.weight_device().iter().flatten() {
        let Some(weight) = device.weight().filter(|&weight| weight != 0) else { continue };
        let name = number(device.major(), device.minor()).context("linux.resources.blockIO.weightDevice")?;
        limits.one_of.push(files("weight_device", &format!("{name} "), weight));
    }
    Ok(())
}

fn throttles(block_io: &LinuxBlockIo, limits: &mut HostLimits) -> anyhow::Result<()> {
    let kinds = [
        ("rbps", "read_bps", block_io.throttle_read_bps_device()),
        ("wbps", "write_bps", block_io.throttle_write_bps_device()),
        ("riops", "read_iops", block_io.throttle_read_iops_device()),
        ("wiops", "write_iops", block_io.throttle_write_iops_device()),
    ];
    for (key, legacy, devices) in kinds {
        for device in devices.iter().flatten() {
            let name = number(device.major(), device.minor()).context("linux.resources.blockIO throttles")?;
            let rate = device.rate();
            // 0 is no limit in version 1; version 2 has a word for it.
            let word = if rate == 0 { "max".to_owned() } else { rate.to_string() };
            limits.unified.push(("io.max".to_owned(), format!("{name} {key}={word}")));
            limits.legacy.push((format!("blkio.throttle.{legacy}_device"), format!("{name} {rate}")));
        }
    }
    Ok(())
}

fn number(major: i64, minor: i64) -> anyhow::Result<String> {
    if u32::try_from(major).is_err() || u32::try_from(minor).is_err() {
        bail!("{major}:{minor} is not a device number");
    }
    Ok(format!("{major}:{minor}"))
}

/// Weight of version 2 (1…10000) for a weight of version 1 (10…1000), linearly.
fn unified_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: &str) -> Result<HostLimits, String> {
        let mut limits = HostLimits::default();
        plan(&serde_json::from_str(json).unwrap(), &mut limits).map_err(|error| format!("{error:#}"))?;
        Ok(limits)
    }

    fn lines(files: &[(String, String)]) -> String {
        files.iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>().join(";")
    }

    #[test]
    fn weights_go_to_the_file_there_is() {
        let limits = planned(r#"{"blockIO":{"weight":100,"weightDevice":[{"major":8,"minor":16,"weight":1000}]}}"#);
        let [all, one] = &limits.unwrap().one_of[..] else { panic!("two of them") };
        assert_eq!(lines(all), "io.bfq.weight=100;io.weight=910;blkio.bfq.weight=100;blkio.weight=100");
        assert!(lines(one).starts_with("io.bfq.weight=8:16 1000;io.weight=8:16 10000;blkio.bfq.weight_device=8:16"));
        assert_eq!((unified_weight(10), unified_weight(500)), (1, 4950));
        assert!(planned(r#"{"blockIO":{"weight":0}}"#).unwrap().one_of.is_empty());
    }

    #[test]
    fn throttles_are_lines() {
        let limits = planned(
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
                "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#,
        )
        .unwrap();
        assert_eq!(lines(&limits.unified), "io.max=8:0 rbps=1000;io.max=8:0 wiops=max");
        assert_eq!(
            lines(&limits.legacy),
            "blkio.throttle.read_bps_device=8:0 1000;blkio.throttle.write_iops_device=8:0 0"
        );
        let error = planned(r#"{"blockIO":{"throttleWriteBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#).unwrap_err();
        assert_eq!(error, "linux.resources.blockIO throttles: -1:0 is not a device number");
    }

    #[test]
    fn unified_ones_are_the_hosts_too() {
        let limits = planned(r#"{"unified":{"io.max":"8:0 rbps=1","memory.high":"5"}}"#).unwrap();
        assert_eq!(
            (lines(&limits.unified), lines(&limits.legacy)),
            ("io.max=8:0 rbps=1".into(), "io.max=8:0 rbps=1".into())
        );
    }
}
