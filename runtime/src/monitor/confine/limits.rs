//! What holds for the whole process from its beginning.

use anyhow::Context;
use nix::sys::signal::{SigHandler, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::host::requirements::Confinement;
use crate::{confinement, log};

/// Descriptors that a monitor takes even where its caller may have fewer: a container of the host would have them, too.
const LEAST_DESCRIPTORS: u64 = 1 << 16;
/// With fewer descriptors programs notice that there are few.
const FEW_DESCRIPTORS: u64 = 4096;
/// Limits of the caller's that mean the processes of a container. The monitor has the guest's memory, writes its files and spends
/// its time.
const OF_PROCESSES: [Resource; 6] =
    [Resource::As, Resource::Cpu, Resource::Data, Resource::Fsize, Resource::Memlock, Resource::Nproc];

/// Takes as many descriptors as the caller's hard limit permits, since a container can have as many files open as its monitor, and
/// lifts limits that are not meant for this process.
/// The process's memory, which is the guest's, is nobody else's to see.
///
/// # Errors
/// The kernel's.
pub fn harden(host: Confinement) -> anyhow::Result<()> {
    take_descriptors()?;
    OF_PROCESSES.iter().try_for_each(|&resource| lift(resource))?;
    // Where that one could not be lifted, what is written beyond it fails.
    // SAFETY: the signal is ignored, so no handler of ours runs.
    unsafe { nix::sys::signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.context("ignore SIGXFSZ")?;
    confinement::hide_memory()?;
    confinement::bound_arenas()?;
    confinement::prepare(host.seccomp).context("have forbidden system calls reported")
}

fn take_descriptors() -> anyhow::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let few = most.filter(|&most| most < LEAST_DESCRIPTORS);
    if few.is_some() && raise(Resource::Nofile, Some(LEAST_DESCRIPTORS)).is_ok() {
        return Ok(());
    }
    raise(Resource::Nofile, most).context("raise RLIMIT_NOFILE to its hard limit")?;
    if let Some(few) = few.filter(|&few| few < FEW_DESCRIPTORS) {
        log::warning(&format!(
            "the caller's hard limit of open files is {few}, so all processes of the container together can have about {} \
             files open: raise it (LimitNOFILE= of the engine's unit)",
            few / 5
        ));
    }
    Ok(())
}

/// Lifts a limit as far as this process may.
fn lift(resource: Resource) -> anyhow::Result<()> {
    if getrlimit(resource).current.is_none() {
        return Ok(());
    }
    let lifted = raise(resource, None).or_else(|_| raise(resource, getrlimit(resource).maximum));
    lifted.with_context(|| format!("lift the limit {resource:?}"))
}

fn raise(resource: Resource, to: Option<u64>) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: to, maximum: to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_processes_are_lifted() {
        let before = OF_PROCESSES.map(getrlimit);
        setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 30), ..getrlimit(Resource::Fsize) }).unwrap();
        OF_PROCESSES.iter().for_each(|&resource| lift(resource).unwrap());
        let after = OF_PROCESSES.map(|resource| getrlimit(resource).current);
        // Without privileges the hard limits stay.
        for (after, before) in after.iter().zip(before) {
            assert!(after.is_none() || *after == before.maximum, "{after:?} {before:?}");
        }
    }
}
