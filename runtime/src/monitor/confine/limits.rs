//! What holds for the whole process from its beginning.

use anyhow::Context;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use super::seccomp;
use crate::host::requirements::Confinement;

/// Takes as many descriptors as the caller's hard limit permits, since a container can have as many files open as its monitor.
/// The process's memory, which is the guest's, gets into no core file and is not shown to others of the same user, and no
/// program that it could execute would give it more rights.
///
/// # Errors
/// The kernel's.
pub fn harden(confinement: Confinement) -> anyhow::Result<()> {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    let descriptors = Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(Resource::Nofile, descriptors).context("raise RLIMIT_NOFILE to its hard limit")?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).context("forbid core files")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid dumps")?;
    rustix::thread::set_no_new_privs(true).context("forbid new privileges")?;
    seccomp::prepare(confinement.seccomp).context("have forbidden system calls reported")
}
