//! Devices that the processes in a container's cgroups on the host may open: so few that a node of another one, found or made,
//! is of no use to them.
//!
//! The filter is there before the first process, and goes with the cgroup. Version 1 has a controller for that, version 2 a
//! program.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Resource, Rlimit};

use super::directory::Directory;
use super::layout::{Hierarchy, Layout};
use crate::host::requirements::{Missing, Requirement, unless_rootless};
use crate::plan::MonitorDevices;

/// Everything, as a cgroup of version 1 says it.
const EVERYTHING: &str = "a *:* rwm";

/// Has no process in these cgroups of a container open other devices than a monitor needs.
///
/// # Errors
/// The host's kernel cannot do that, or a cgroup is one of others, whom it would hit as well.
pub fn filter(cgroups: &[Directory]) -> Result<(), Missing> {
    unless_rootless((), filter_of(cgroups))
}

fn filter_of(cgroups: &[Directory]) -> Result<(), Missing> {
    let devices = MonitorDevices::rules();
    // A hybrid host has both; where the controller of version 1 is, it is the engine's way, too.
    if let Some(legacy) = cgroups.iter().find(|cgroup| cgroup.path.join("devices.deny").exists()) {
        return legacy.allow_lines(&devices.lines()).map_err(|error| legacy.unfiltered(&error));
    }
    let unified = cgroups.iter().find(|cgroup| cgroup.unified).ok_or_else(no_controller)?;
    let program = load(&devices)?;
    unified.run(&program).map_err(|error| unified.unfiltered(&error))
}

/// Says by what devices can be filtered, for `doctor`.
///
/// # Errors
/// By nothing.
pub fn device_filters() -> Result<String, Missing> {
    unless_rootless("none, and none needed in a user namespace".to_owned(), kind_of_filters())
}

fn kind_of_filters() -> Result<String, Missing> {
    let layout = Layout::detect().map_err(|error| Requirement::DeviceFilters.missing(format!("{error:#}")))?;
    if layout.hierarchies.iter().any(|hierarchy| hierarchy.has("devices")) {
        return Ok("devices controller of version 1".to_owned());
    }
    if !layout.hierarchies.iter().any(Hierarchy::is_unified) {
        return Err(no_controller());
    }
    load(&MonitorDevices::rules()).map(|_| "programs".to_owned())
}

fn load(devices: &MonitorDevices) -> Result<OwnedFd, Missing> {
    let program = devices.program();
    let loaded = device_filter::load(&program).or_else(|error| match error.kind() {
        // Before Linux 5.11 programs count as locked memory of the user's.
        ErrorKind::PermissionDenied => with_memory_to_lock(|| device_filter::load(&program)),
        _ => Err(error),
    });
    loaded.map_err(|error| Requirement::DeviceFilters.missing(format!("load a program for a cgroup: {error}")))
}

/// Does something without a limit of locked memory, which holds again afterwards: the monitor inherits it.
fn with_memory_to_lock<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let usual = rustix::process::getrlimit(Resource::Memlock);
    rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
    let done = act();
    rustix::process::setrlimit(Resource::Memlock, usual)?;
    done
}

fn no_controller() -> Missing {
    Requirement::DeviceFilters.missing("neither cgroup version 2 nor the devices controller of version 1 is mounted")
}

impl Directory {
    /// Allows nothing but what these lines say.
    fn allow_lines(&self, lines: &[String]) -> io::Result<()> {
        let write = |file: &str, line: &str| fs::write(self.path.join(file), line);
        self.leave_others(|path| Ok(fs::read_to_string(path.join("devices.list"))?.trim() != EVERYTHING))?;
        write("devices.deny", "a")?;
        lines.iter().try_for_each(|line| match write("devices.allow", line) {
            // A cgroup above allows less.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            done => done,
        })
    }

    /// Has a program decide.
    fn run(&self, program: &OwnedFd) -> io::Result<()> {
        let cgroup = fs::File::open(&self.path)?;
        self.leave_others(|_| Ok(device_filter::attached(&cgroup)? > 0))?;
        device_filter::attach(&cgroup, program)
    }

    /// Refuses a cgroup that was there before with processes that no filter holds yet: they are nobody's container.
    fn leave_others(&self, filtered: impl Fn(&Path) -> io::Result<bool>) -> io::Result<()> {
        if self.made || !self.is_populated()? || filtered(&self.path)? {
            return Ok(());
        }
        Err(io::Error::other("it was there before, and has processes of others"))
    }

    fn is_populated(&self) -> io::Result<bool> {
        let read = |file: &str| fs::read_to_string(self.path.join(file));
        match self.unified {
            true => Ok(read("cgroup.events")?.lines().any(|line| line == "populated 1")),
            false => Ok(!read("cgroup.procs")?.is_empty()),
        }
    }

    fn unfiltered(&self, error: &io::Error) -> Missing {
        Requirement::DeviceFilters.missing(format!("filter the devices of cgroup {}: {error}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_locked_memory_is_the_usual_one_afterwards() {
        let limit = || rustix::process::getrlimit(Resource::Memlock);
        let usual = limit();
        let lower = Rlimit { current: Some(4096), maximum: usual.maximum };
        rustix::process::setrlimit(Resource::Memlock, lower).unwrap();
        // Only root may be without one.
        let within = with_memory_to_lock(|| Ok(limit()));
        assert!(within.is_err() || within.is_ok_and(|within| within.current.is_none() && within.maximum.is_none()));
        assert_eq!(limit(), lower);
        rustix::process::setrlimit(Resource::Memlock, usual).unwrap();
    }
}
