//! The container's cgroup on the host, where the monitor lives: v1, v2 and hybrid hosts.
//!
//! Limits are not applied here yet: the guest's own cgroup holds the container to them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The cgroup hierarchies of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Root of the cgroup2 mount, when it carries the host's controllers (a "unified" host).
    pub unified: Option<PathBuf>,
    /// Roots of the v1 mounts, each once.
    pub legacy: Vec<PathBuf>,
}

impl Hierarchy {
    /// Reads what is mounted at `root`, normally `/sys/fs/cgroup`.
    pub fn find(root: &Path) -> anyhow::Result<Self> {
        if root.join("cgroup.controllers").exists() {
            return Ok(Self { unified: Some(root.to_owned()), legacy: Vec::new() });
        }
        let entries = std::fs::read_dir(root).with_context(|| format!("no cgroups mounted at {}", root.display()))?;
        let mut legacy = Vec::new();
        for entry in entries {
            let path = entry?.path();
            // `cpu` and `cpuacct` may be links to one `cpu,cpuacct`; the hybrid's cgroup2 counts as one more.
            let real = !path.is_symlink() && path.join("cgroup.procs").exists();
            legacy.extend(real.then_some(path));
        }
        legacy.sort();
        Ok(Self { unified: None, legacy })
    }

    /// A word for people.
    pub fn describe(&self) -> String {
        match &self.unified {
            Some(_) => "v2".to_owned(),
            None => format!("v1 ({} hierarchies)", self.legacy.len()),
        }
    }
}

/// Where the container's cgroup shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlan {
    /// Below the root of each hierarchy, without a leading slash and without `..`.
    pub path: PathBuf,
    /// The hierarchies.
    pub hierarchy: Hierarchy,
}

/// Cgroups that were created for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    dirs: Vec<PathBuf>,
}

/// Creates the cgroup in every hierarchy; undoes what it did when one fails.
pub fn create(plan: &CgroupPlan) -> anyhow::Result<HostCgroup> {
    let mut created = HostCgroup::default();
    for root in plan.hierarchy.unified.iter().chain(&plan.hierarchy.legacy) {
        let dir = root.join(&plan.path);
        created.dirs.push(dir.clone());
        if let Err(error) = prepare(root, &plan.path) {
            let _ = created.remove();
            return Err(error).with_context(|| format!("create cgroup {}", dir.display()));
        }
    }
    Ok(created)
}

/// Creates one cgroup with its parents. A v1 cpuset takes no process until it has CPUs and memory nodes.
fn prepare(root: &Path, path: &Path) -> std::io::Result<()> {
    let mut dir = root.to_owned();
    for component in path.components() {
        let parent = dir.clone();
        dir.push(component);
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => created?,
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            inherit(&parent, &dir, file)?;
        }
    }
    Ok(())
}

fn inherit(parent: &Path, dir: &Path, file: &str) -> std::io::Result<()> {
    // On v2 an empty value means "as the parent".
    let is_v2 = dir.join("cgroup.type").exists() || dir.join("cgroup.controllers").exists();
    let own = dir.join(file);
    if is_v2 || !own.exists() || !std::fs::read_to_string(&own)?.trim().is_empty() {
        return Ok(());
    }
    std::fs::write(own, std::fs::read_to_string(parent.join(file))?.trim())
}

impl HostCgroup {
    /// Moves a process into the cgroup of every hierarchy.
    pub fn add(&self, pid: i32) -> anyhow::Result<()> {
        for dir in &self.dirs {
            let file = dir.join("cgroup.procs");
            std::fs::write(&file, pid.to_string()).with_context(|| format!("write {pid} to {}", file.display()))?;
        }
        Ok(())
    }

    /// Removes the cgroups; what is gone already is no error. A process that is just exiting keeps its
    /// cgroup busy for a moment.
    pub fn remove(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        for dir in &self.dirs {
            loop {
                match std::fs::remove_dir(dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == ErrorKind::NotFound => break,
                    Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => return Err(error).with_context(|| format!("remove cgroup {}", dir.display())),
                }
            }
        }
        Ok(())
    }
}

/// Where `cgroupsPath` points, as runc's cgroupfs driver reads it: absolute below the hierarchy's root,
/// relative below it too, empty means a cgroup named after the container.
pub fn path(cgroups_path: Option<&Path>, id: &str, systemd: bool) -> anyhow::Result<PathBuf> {
    let given = cgroups_path.and_then(Path::to_str).unwrap_or_default();
    if systemd {
        return systemd_path(given, id);
    }
    let path = if given.is_empty() { id } else { given.trim_start_matches('/') };
    clean(path)
}

/// `slice:prefix:name` as a path: `a-b.slice` lies in `a.slice`.
fn systemd_path(given: &str, id: &str) -> anyhow::Result<PathBuf> {
    let given = if given.is_empty() { format!(":runvm:{id}") } else { given.to_owned() };
    let parts: Vec<&str> = given.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        bail!("cgroupsPath {given:?}: expected slice:prefix:name with --systemd-cgroup");
    };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let Some(stem) = slice.strip_suffix(".slice") else {
        bail!("cgroupsPath {given:?}: {slice:?} does not end in .slice");
    };
    let mut path = PathBuf::new();
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    path.extend(ends.filter(|_| stem != "-").map(|end| format!("{}.slice", &stem[..end])));
    path.push(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}.scope") });
    clean(&path.to_string_lossy())
}

fn clean(path: &str) -> anyhow::Result<PathBuf> {
    use std::path::Component;
    let path = Path::new(path);
    if path.components().any(|part| !matches!(part, Component::Normal(_))) || path.as_os_str().is_empty() {
        bail!("cgroupsPath {} must name a cgroup below the root, without \"..\"", path.display());
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_runc_reads_them() {
        let path =
            |given: &str, systemd| path(Some(Path::new(given)), "id", systemd).map(|path| path.display().to_string());
        assert_eq!(path("/docker/abc", false).unwrap(), "docker/abc");
        assert_eq!(path("abc", false).unwrap(), "abc");
        assert_eq!(path("", false).unwrap(), "id");
        assert_eq!(path("system.slice:docker:abc", true).unwrap(), "system.slice/docker-abc.scope");
        assert_eq!(path("a-b.slice:cri:x", true).unwrap(), "a.slice/a-b.slice/cri-x.scope");
        assert!(path("/a/../../b", false).is_err());
        assert!(path("/docker/abc", true).is_err());
        assert!(path("/", false).is_err());
    }

    #[test]
    fn a_v2_tree_is_created_and_removed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "memory pids").unwrap();
        let hierarchy = Hierarchy::find(root.path()).unwrap();
        assert_eq!(hierarchy.unified.as_deref(), Some(root.path()));
        let cgroup = create(&CgroupPlan { path: "docker/abc".into(), hierarchy }).unwrap();
        assert!(root.path().join("docker/abc").is_dir());
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert!(!root.path().join("docker/abc").exists());
    }

    #[test]
    fn a_legacy_cpuset_inherits_what_it_needs() {
        let root = tempfile::tempdir().unwrap();
        let cpuset = root.path().join("cpuset");
        std::fs::create_dir_all(cpuset.join("abc")).unwrap();
        for (file, text) in [
            ("cgroup.procs", ""),
            ("cpuset.cpus", "0-1\n"),
            ("cpuset.mems", "0\n"),
            ("abc/cpuset.cpus", ""),
            ("abc/cpuset.mems", ""),
        ] {
            std::fs::write(cpuset.join(file), text).unwrap();
        }
        create(&CgroupPlan { path: "abc".into(), hierarchy: Hierarchy::find(root.path()).unwrap() }).unwrap();
        assert_eq!(std::fs::read_to_string(cpuset.join("abc/cpuset.cpus")).unwrap(), "0-1");
    }
}
