//! Personality and time offsets: what the container takes its machine for. Refuses settings about hardware that a VM has no
//! part in.

use std::fmt::Write;

use anyhow::bail;
use oci_spec::runtime::{Linux, LinuxPersonalityDomain, LinuxTimeOffset};
use protocol::{CreateContainerRequest, NamespaceKind};

/// `PER_LINUX32` (linux/personality.h): uname(2) reports a machine of 32 bits.
const LINUX32: u32 = 8;

/// Fills in time offsets and personality. Needs the request's namespaces.
///
/// # Errors
/// Offsets without a time namespace, or of a clock that has none; settings about the host's hardware.
pub fn plan(linux: &Linux, request: &mut CreateContainerRequest) -> anyhow::Result<()> {
    refuse_hardware(linux)?;
    let time = request.namespaces.iter().any(|namespace| namespace.kind == NamespaceKind::TIME.into());
    request.time_offsets = time_offsets(linux, time)?;
    request.personality = personality(linux)?;
    Ok(())
}

fn refuse_hardware(linux: &Linux) -> anyhow::Result<()> {
    if linux.intel_rdt().is_some() {
        bail!("linux.intelRdt: cache allocation on the host's processors is not possible in a VM; leave it out");
    }
    if linux.memory_policy().is_some() {
        bail!("linux.memoryPolicy: a VM has one memory node; leave it out, or name nodes in resources.cpu.mems");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        bail!("linux.netDevices: an interface of the host cannot be moved into a VM; use --network bridge");
    }
    Ok(())
}

/// Lines of `timens_offsets`, one for each clock, in a fixed order.
fn time_offsets(linux: &Linux, time_namespace: bool) -> anyhow::Result<String> {
    let mut offsets: Vec<_> = linux.time_offsets().iter().flatten().collect();
    if !offsets.is_empty() && !time_namespace {
        bail!("time namespace offsets specified, but time namespace isn't enabled in the config");
    }
    offsets.sort_by_key(|(clock, _)| clock.as_str());
    offsets.into_iter().try_fold(String::new(), |mut text, (clock, offset)| {
        let (seconds, nanoseconds) = checked(clock, offset)?;
        writeln!(text, "{clock} {seconds} {nanoseconds}")?;
        Ok(text)
    })
}

fn checked(clock: &str, offset: &LinuxTimeOffset) -> anyhow::Result<(i64, u32)> {
    if !matches!(clock, "monotonic" | "boottime") {
        bail!("linux.timeOffsets {clock:?}: only the clocks monotonic and boottime have an offset");
    }
    let nanoseconds = offset.nanosecs().unwrap_or_default();
    if nanoseconds >= 1_000_000_000 {
        bail!("linux.timeOffsets.{clock}.nanosecs {nanoseconds} is a second or more: put that into secs");
    }
    Ok((offset.secs().unwrap_or_default(), nanoseconds))
}

fn personality(linux: &Linux) -> anyhow::Result<u32> {
    let Some(personality) = linux.personality() else { return Ok(0) };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        bail!("linux.personality.flags {flag:?}: the specification has no flags yet; leave them out");
    }
    match personality.domain() {
        LinuxPersonalityDomain::PerLinux => Ok(0),
        LinuxPersonalityDomain::PerLinux32 => Ok(LINUX32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: &str) -> Result<CreateContainerRequest, String> {
        let linux = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let time = protocol::Namespace { kind: NamespaceKind::TIME.into(), ..Default::default() };
        let mut request = CreateContainerRequest { namespaces: vec![time], ..Default::default() };
        plan(&linux, &mut request).map_err(|error| error.to_string())?;
        Ok(request)
    }

    #[test]
    fn offsets_are_lines() {
        let offsets = r#"{"timeOffsets":{"monotonic":{"secs":-5,"nanosecs":7},"boottime":{"secs":3}}}"#;
        assert_eq!(planned(offsets).unwrap().time_offsets, "boottime 3 0\nmonotonic -5 7\n");
        let linux = serde_json::from_str(offsets).unwrap();
        let error = plan(&linux, &mut CreateContainerRequest::new()).unwrap_err().to_string();
        assert_eq!(error, "time namespace offsets specified, but time namespace isn't enabled in the config");
    }

    #[test]
    fn personalities_are_numbers() {
        let of = |domain: &str| planned(&format!(r#"{{"personality":{{"domain":"{domain}"}}}}"#));
        assert_eq!(of("LINUX").unwrap().personality, 0);
        assert_eq!(of("LINUX32").unwrap().personality, 8);
        assert!(of("BSD").unwrap_err().contains("unknown variant `BSD`"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let table = [
            (r#"{"timeOffsets":{"realtime":{"secs":1}}}"#, "linux.timeOffsets \"realtime\": only the clocks"),
            (
                r#"{"timeOffsets":{"boottime":{"nanosecs":1000000000}}}"#,
                "linux.timeOffsets.boottime.nanosecs 1000000000",
            ),
            (r#"{"personality":{"domain":"LINUX","flags":["X"]}}"#, "linux.personality.flags \"X\""),
            (r#"{"intelRdt":{"closID":"a"}}"#, "linux.intelRdt"),
            (r#"{"memoryPolicy":{"mode":"MPOL_BIND","nodes":"0"}}"#, "linux.memoryPolicy"),
            (r#"{"netDevices":{"eth1":{}}}"#, "linux.netDevices"),
        ];
        for (json, text) in table {
            let error = planned(json).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
