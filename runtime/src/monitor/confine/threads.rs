//! What threads of the VM may do: those that a guest reaches without anybody in between.

use std::io;

use rustix::thread::CapabilitySet;
use vmm::{OnThread, ThreadKind};

use super::rights;
use super::tables::Kind;
use crate::confinement::{empty_bounding_set, fix_capabilities, keep};

/// Says what each thread of a machine is to do before anything of the guest's reaches it.
pub fn on_thread() -> OnThread {
    OnThread::new(confine)
}

/// Takes from the main thread what it does not need once the VM's threads are there. Threads that it starts later have no more.
///
/// # Errors
/// The kernel's.
pub fn confine_main() -> io::Result<()> {
    keep(rights::MAIN)?;
    Kind::Main.filter().confine()
}

/// Takes from a join proxy what it does not need once the container's parcel is passed on.
///
/// # Errors
/// The kernel's.
pub fn confine_proxy() -> io::Result<()> {
    keep(CapabilitySet::empty())?;
    Kind::Proxy.filter().confine()
}

/// Makes the calling process, which has one thread, one that makes device nodes and nothing else.
///
/// # Errors
/// The kernel's.
pub fn make_nodes_only() -> io::Result<()> {
    fix_capabilities()?;
    empty_bounding_set();
    keep(rights::NODES)?;
    Kind::Nodes.filter().confine()
}

fn confine(thread: ThreadKind) -> io::Result<()> {
    let serves_files = matches!(thread, ThreadKind::Fs | ThreadKind::ServingVcpu);
    keep(if serves_files { rights::FILES } else { CapabilitySet::empty() })?;
    let kind = match thread {
        ThreadKind::Vcpu | ThreadKind::ServingVcpu => Kind::Vcpu,
        ThreadKind::Vsock => Kind::Vsock,
        ThreadKind::Fs => Kind::Fs,
        ThreadKind::Net => Kind::Net,
        ThreadKind::Block => Kind::Block,
        ThreadKind::Rng | ThreadKind::Balloon | ThreadKind::Other(_) => Kind::Small,
    };
    kind.filter().confine()
}
