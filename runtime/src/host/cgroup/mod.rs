//! The container's cgroup on the host, which accounts the monitor and with it the whole VM.
//!
//! Engines read statistics and out-of-memory events from the monitor's cgroup, so `create` makes it. The guest's cgroup enforces
//! the bundle's limits. Those of the host's cgroup are wider, since the monitor and the guest's kernel need memory and threads
//! beyond the container's.

mod devices;
mod directory;
mod layout;
mod systemd;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::host::requirements::Missing;
use crate::plan::{CgroupPlan, HostLimits, LEGACY_MEMORY_MAX, LEGACY_SWAP_MAX, MEMORY_MAX, Unit};
pub use devices::device_filters;
use directory::Directory;
use layout::Hierarchy;
pub use layout::Layout;

/// How long a cgroup may stay busy after its last process was reaped.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes by which a limit of memory stays above what is in use.
const SLACK: u64 = 64 << 20;

/// Cgroups of a container, one in each hierarchy. Part of the container's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    directories: Vec<Directory>,
    /// Unit of systemd that the cgroups belong to.
    #[serde(default)]
    unit: Option<String>,
}

/// Makes the cgroups of a container.
///
/// # Errors
/// A cgroup cannot be made; those made before it are removed again.
pub fn create(plan: &CgroupPlan) -> anyhow::Result<HostCgroup> {
    create_in(&Layout::detect()?, plan)
}

/// Refuses a unit of systemd where there is no systemd.
///
/// # Errors
/// Runc's sentence.
pub fn check(plan: &CgroupPlan) -> anyhow::Result<()> {
    if plan.unit.is_some() && !systemd::booted() {
        bail!("systemd not running on this host, cannot use systemd cgroups manager: leave --systemd-cgroup out");
    }
    Ok(())
}

/// Has systemd make the cgroups with this process in them, and makes those that systemd leaves to others.
///
/// # Errors
/// Systemd refuses, or a cgroup cannot be made; then none is left.
pub fn create_unit(unit: &Unit, plan: &CgroupPlan, pid: i32) -> anyhow::Result<HostCgroup> {
    systemd::start(unit, pid)?;
    let made = create(plan).and_then(|cgroup| cgroup.add(pid).map(|()| cgroup));
    match made {
        Ok(mut cgroup) => {
            // The unit has them alone, although systemd made them.
            cgroup.directories.iter_mut().for_each(|directory| directory.made = true);
            cgroup.unit = Some(unit.name.clone());
            Ok(cgroup)
        }
        Err(error) => {
            // The error at hand says more than one of cleaning up.
            let _ = systemd::stop(&unit.name);
            Err(error)
        }
    }
}

fn create_in(layout: &Layout, plan: &CgroupPlan) -> anyhow::Result<HostCgroup> {
    let mut cgroup = HostCgroup::default();
    for hierarchy in &layout.hierarchies {
        let path = hierarchy.directory(&plan.path);
        match make(hierarchy, &path) {
            Ok(made) => cgroup.directories.push(Directory { path, made, unified: hierarchy.is_unified() }),
            Err(error) => {
                // The error at hand says more than one of cleaning up.
                let _ = cgroup.remove();
                return Err(error).with_context(|| format!("make cgroup {}", path.display()));
            }
        }
    }
    Ok(cgroup)
}

impl HostCgroup {
    /// Directories of the cgroups.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.directories.iter().map(|directory| directory.path.clone()).collect()
    }

    /// Opens the one cgroup of a host of version 2, for clone3(2) to create a process in.
    pub fn open(&self) -> Option<OwnedFd> {
        let [directory] = self.directories.as_slice() else { return None };
        directory.unified.then(|| fs::File::open(&directory.path).ok().map(OwnedFd::from)).flatten()
    }

    /// Has no process in the cgroups open other devices than a monitor needs.
    ///
    /// # Errors
    /// The host's kernel cannot do that, or a cgroup is one of others, whom it would hit as well.
    pub fn filter_devices(&self) -> Result<(), Missing> {
        devices::filter(&self.directories)
    }

    /// Moves a process into all cgroups.
    ///
    /// # Errors
    /// Names the cgroup that refuses the process.
    pub fn add(&self, pid: i32) -> anyhow::Result<()> {
        self.directories.iter().try_for_each(|directory| {
            let file = directory.path.join("cgroup.procs");
            fs::write(&file, pid.to_string()).with_context(|| format!("move process {pid} into {}", file.display()))
        })
    }

    /// Sets limits for everything in the cgroups together.
    ///
    /// # Errors
    /// Names the first limit that cannot be set; those before it hold.
    pub fn limit(&self, limits: &HostLimits) -> anyhow::Result<()> {
        let unified = matches!(self.directories.as_slice(), [only] if only.unified);
        let files = if unified { &limits.unified } else { &limits.legacy };
        let files = files.iter().map(|(name, value)| {
            let value = match name.as_str() {
                MEMORY_MAX => self.lowered(name, value, "memory.current"),
                LEGACY_MEMORY_MAX => self.lowered(name, value, "memory.usage_in_bytes"),
                LEGACY_SWAP_MAX => self.lowered(name, value, "memory.memsw.usage_in_bytes"),
                _ => value.clone(),
            };
            (name.clone(), value)
        });
        let files: Vec<_> = files.collect();
        self.tell_systemd(&files)?;
        files.into_iter().try_for_each(|file| self.write(&[file]))?;
        limits.one_of.iter().try_for_each(|files| self.write(files))
    }

    /// Removes the limit of memory.
    ///
    /// # Errors
    /// Names the file that refuses.
    pub fn lift_memory_limit(&self) -> anyhow::Result<()> {
        // Neither of version 1's may ever be above the other.
        let files = [(LEGACY_SWAP_MAX, "-1"), (LEGACY_MEMORY_MAX, "-1"), (MEMORY_MAX, "max")];
        self.tell_systemd(&files.map(|(name, value)| (name.to_owned(), value.to_owned())))?;
        let there = files.into_iter().filter_map(|(name, value)| Some((self.file(name)?, value)));
        there.into_iter().try_for_each(|(file, value)| {
            fs::write(&file, value).with_context(|| format!("write {value} to {}", file.display()))
        })
    }

    fn tell_systemd(&self, files: &[(String, String)]) -> anyhow::Result<()> {
        self.unit.as_ref().map_or(Ok(()), |unit| systemd::limit(unit, files))
    }

    /// Value for a limit of memory that is to be lowered: never below what the VM uses, since the kernel would kill the VM. The
    /// guest frees memory by its own limit, returns it within seconds, and gets no more than this until the next update.
    fn lowered(&self, name: &str, limit: &str, usage: &str) -> String {
        let number = |name: &str| fs::read_to_string(self.file(name)?).ok()?.trim().parse::<u64>().ok();
        let (Ok(limit), Some(used)) = (limit.parse::<u64>(), number(usage)) else { return limit.to_owned() };
        // What there is now may be "max".
        let now = number(name).unwrap_or(u64::MAX);
        limit.max(used.saturating_add(SLACK).min(now)).to_string()
    }

    /// Path of a file, in the hierarchy that has it.
    fn file(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|directory| directory.path.join(name)).find(|file| file.exists())
    }

    /// Writes the first of these files that exists.
    fn write(&self, files: &[(String, String)]) -> anyhow::Result<()> {
        if let Some((file, value)) = files.iter().find_map(|(name, value)| Some((self.file(name)?, value))) {
            return fs::write(&file, value).with_context(|| format!("write {value:?} to {}", file.display()));
        }
        let names: Vec<String> = files.iter().map(|(name, value)| format!("{name} to {value:?}")).collect();
        bail!(
            "set {}: the host's cgroup of the container has no such file (controller not enabled?)",
            names.join(" or ")
        );
    }

    /// Removes the cgroups, and waits briefly for processes that are still exiting. A cgroup that is gone already is no error; one
    /// that was there before stays if somebody else uses it.
    ///
    /// # Errors
    /// Names the first cgroup that cannot be removed.
    pub fn remove(&self) -> anyhow::Result<()> {
        // Where systemd is gone, there is nothing of the unit but its directories.
        let stopped = self.unit.as_ref().filter(|_| systemd::booted()).map_or(Ok(()), |unit| systemd::stop(unit));
        let deadline = Instant::now() + PATIENCE;
        let results = self.directories.iter().rev().map(|directory| directory.remove(deadline));
        // All are tried, whatever becomes of one.
        results.collect::<Vec<_>>().into_iter().collect::<anyhow::Result<()>>().and(stopped)
    }
}

/// Makes a directory and those above it; says whether it is new.
fn make(hierarchy: &Hierarchy, path: &Path) -> io::Result<bool> {
    let mut above = path.ancestors().take_while(|above| *above != hierarchy.mount).collect::<Vec<_>>();
    above.reverse();
    let mut made = false;
    let mut parent = hierarchy.mount.as_path();
    for directory in above {
        if hierarchy.is_unified() {
            enable_controllers(parent);
        }
        made = match fs::create_dir(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        if hierarchy.has("cpuset") {
            inherit_cpuset(parent, directory)?;
        }
        parent = directory;
    }
    Ok(made)
}

/// Enables every controller for children. One that cannot be enabled (a cgroup with processes, a delegated tree) only means
/// less accounting.
fn enable_controllers(directory: &Path) {
    let available = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file).unwrap_or_default();
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    for controller in available.split_whitespace().filter(|controller| !enabled.contains(controller)) {
        let _ = fs::write(&file, format!("+{controller}"));
    }
}

/// Copies CPUs and memory nodes from the parent: a new cpuset of version 1 has none, and takes no process until it has some.
fn inherit_cpuset(parent: &Path, child: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let read = |directory: &Path| fs::read_to_string(directory.join(file));
        let given = read(parent)?;
        if read(child)?.trim().is_empty() && !given.trim().is_empty() {
            fs::write(child.join(file), given.trim())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
