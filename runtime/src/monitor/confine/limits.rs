//! What holds for the whole process from its beginning.

use anyhow::Context;
use rustix::process::{Resource, Rlimit};

use crate::confinement;
use crate::host::requirements::Confinement;

/// Takes as many descriptors as the caller's hard limit permits, since a container can have as many files open as its monitor.
/// The process's memory, which is the guest's, is nobody else's to see.
///
/// # Errors
/// The kernel's.
pub fn harden(host: Confinement) -> anyhow::Result<()> {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    let descriptors = Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(Resource::Nofile, descriptors).context("raise RLIMIT_NOFILE to its hard limit")?;
    confinement::hide_memory()?;
    confinement::bound_arenas()?;
    confinement::prepare(host.seccomp).context("have forbidden system calls reported")
}
