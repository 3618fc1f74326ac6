//! Path of the container's cgroup on the host.

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;

use crate::plan::options::Options;
use crate::plan::{guest_path, nul};

/// The container's cgroup on the host; both versions of cgroups use the same path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlan {
    /// Path below the mount (absolute), or below this process's own cgroup (relative); never empty, without `..`.
    pub path: String,
    /// Unit of systemd that the cgroup belongs to (`--systemd-cgroup`).
    pub unit: Option<Unit>,
}

/// A unit of systemd for one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Name of the unit, mostly `PREFIX-NAME.scope`.
    pub name: String,
    /// Slice that the unit is in.
    pub slice: String,
}

impl Unit {
    /// Whether the unit is a slice, which has no processes that systemd knows of.
    pub fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }
}

/// Slice that systemd puts system services in.
const DEFAULT_SLICE: &str = "system.slice";
/// Prefix of scopes when the bundle has no path.
const DEFAULT_PREFIX: &str = "runvm";

/// Plans the path as runc does: `linux.cgroupsPath`, else the container's id below this process's own cgroup.
///
/// # Errors
/// The path is malformed, or the root cgroup.
pub fn plan(spec: &Spec, options: &Options) -> anyhow::Result<CgroupPlan> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let given = given.map(|path| nul::path("linux.cgroupsPath", path)).transpose()?.unwrap_or_default();
    if options.systemd_cgroup {
        return in_unit(&given, &options.id);
    }
    let path = if given.is_empty() { &options.id } else { &given };
    let clean = guest_path::clean(path);
    if clean == "/" {
        bail!("linux.cgroupsPath {given:?} is the root cgroup: name one below it");
    }
    let path = if path.starts_with('/') { clean } else { clean.trim_start_matches('/').to_owned() };
    Ok(CgroupPlan { path, unit: None })
}

/// The cgroup for `slice:prefix:name`: the unit, and the path at which systemd has it.
fn in_unit(given: &str, id: &str) -> anyhow::Result<CgroupPlan> {
    let default = format!(":{DEFAULT_PREFIX}:{id}");
    let path = if given.is_empty() { &default } else { given };
    let (slice, rest) = path.split_once(':').unwrap_or((path, ""));
    let format = || {
        format!("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead")
    };
    let (prefix, name) = rest.split_once(':').with_context(format)?;
    if name.is_empty() || name.contains([':', '/']) || prefix.contains('/') {
        bail!("{}", format());
    }
    let name = match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    let path = format!("{}/{name}", slice_path(slice)?);
    Ok(CgroupPlan { path, unit: Some(Unit { name, slice: slice.to_owned() }) })
}

/// Path of a slice: `/a.slice/a-b.slice` for `a-b.slice` (systemd.slice(5)); `-.slice` is the root.
fn slice_path(slice: &str) -> anyhow::Result<String> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/'));
    let Some(name) = name.filter(|name| !name.is_empty()) else { bail!("invalid slice name: {slice}") };
    if name == "-" {
        return Ok(String::new());
    }
    let (mut path, mut whole) = (String::new(), String::new());
    for part in name.split('-') {
        if part.is_empty() {
            bail!("invalid slice name: {slice}");
        }
        if !whole.is_empty() {
            whole.push('-');
        }
        whole.push_str(part);
        path.push_str(&format!("/{whole}.slice"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(given: &str, systemd_cgroup: bool) -> anyhow::Result<String> {
        let spec = serde_json::from_value(serde_json::json!({"linux": {"cgroupsPath": given}})).unwrap();
        let options = Options { id: "box".to_owned(), systemd_cgroup, ..Options::default() };
        plan(&spec, &options).map(|plan| plan.path)
    }

    #[test]
    fn plain_paths() {
        let table = [
            ("", "box"),
            ("/docker/abc", "/docker/abc"),
            ("a/b", "a/b"),
            ("/a/../../b", "/b"),
            ("../../x", "x"),
            ("a:b:c", "a:b:c"),
        ];
        for (given, expected) in table {
            assert_eq!(path(given, false).unwrap(), expected, "{given}");
        }
        for root in ["/", "/..", "a/..", "."] {
            assert!(path(root, false).unwrap_err().to_string().contains("is the root cgroup"), "{root}");
        }
    }

    #[test]
    fn scopes_of_systemd() {
        let table = [
            ("", "/system.slice/runvm-box.scope"),
            ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
            ("a-b.slice::abc", "/a.slice/a-b.slice/abc.scope"),
            ("-.slice:x:y", "/x-y.scope"),
            ("user.slice:x:own.slice", "/user.slice/own.slice"),
        ];
        for (given, expected) in table {
            assert_eq!(path(given, true).unwrap(), expected, "{given}");
        }
        for bad in ["/docker/abc", "a.slice:b", "a.slice:b:", "a.slice:b:c:d", "a.slice:../b:c"] {
            assert!(path(bad, true).unwrap_err().to_string().starts_with("expected cgroupsPath"), "{bad}");
        }
        for bad in ["a:b:c", "a--b.slice:b:c", ".slice:b:c", "../x.slice:b:c"] {
            assert!(path(bad, true).unwrap_err().to_string().starts_with("invalid slice name"), "{bad}");
        }
    }
}
