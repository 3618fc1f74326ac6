//! The memory of the process.

use anyhow::{Context, ensure};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Keeps the process's memory out of core files and from others of the same user, and has no program that it could execute give it
/// more rights.
///
/// # Errors
/// The kernel's.
pub fn hide_memory() -> anyhow::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).context("forbid core files")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid dumps")?;
    rustix::thread::set_no_new_privs(true).context("forbid new privileges")
}

/// Number of the allocator's arenas: all threads share the one that grows by brk(2). To count processors for more of them, and to see
/// whether one may shrink, the C library opens files.
const ARENAS: libc::c_int = 1;

/// Has the allocator open no files.
///
/// # Errors
/// It is another one than the C library's.
pub fn bound_arenas() -> anyhow::Result<()> {
    // SAFETY: sets a number of the allocator's.
    ensure!(unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) } == 1, "bound the arenas of the allocator");
    Ok(())
}
