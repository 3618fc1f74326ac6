//! What threads of the VM may do: those that a guest reaches without anybody in between.

use std::io;

use rustix::thread::CapabilitySet;
use vmm::{OnThread, ThreadKind};

use super::rights;
use super::seccomp::{self, Kind};

/// What each thread of a machine does before anything of the guest's reaches it.
pub fn on_thread() -> OnThread {
    OnThread::new(confine)
}

/// Takes from the main thread what it does not need once the VM's threads are there.
///
/// # Errors
/// The kernel's.
pub fn drop_rights() -> io::Result<()> {
    Ok(rights::keep(rights::MAIN)?)
}

/// Makes the calling process, which has one thread, one that makes device nodes and nothing else.
///
/// # Errors
/// The kernel's.
pub fn make_nodes_only() -> io::Result<()> {
    rights::fix_capabilities()?;
    rights::keep(rights::NODES)?;
    seccomp::confine(Kind::Nodes)
}

fn confine(thread: ThreadKind) -> io::Result<()> {
    let capabilities = if thread == ThreadKind::Fs { rights::FILES } else { CapabilitySet::empty() };
    rights::keep(capabilities)?;
    seccomp::confine(match thread {
        ThreadKind::Vcpu => Kind::Vcpu,
        ThreadKind::Vsock => Kind::Vsock,
        ThreadKind::Fs => Kind::Fs,
        ThreadKind::Net => Kind::Net,
        ThreadKind::Block => Kind::Block,
        ThreadKind::Rng | ThreadKind::Balloon | ThreadKind::Other(_) => Kind::Small,
    })
}
