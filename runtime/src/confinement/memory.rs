//! The memory of the process.

use anyhow::{Context, ensure};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// The process's memory gets into no core file and is not shown to others of the same user, and no program that it could execute
/// would give it more rights.
///
/// # Errors
/// The kernel's.
pub fn hide_memory() -> anyhow::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).context("forbid core files")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid dumps")?;
    rustix::thread::set_no_new_privs(true).context("forbid new privileges")
}

/// Most arenas of the allocator: threads share them. Without this bound the C library opens files to count the processors, as
/// soon as there are more than these.
const ARENAS: libc::c_int = 8;

/// Has the allocator open no files.
///
/// # Errors
/// It is another one than the C library's.
pub fn bound_arenas() -> anyhow::Result<()> {
    // SAFETY: sets a number of the allocator's.
    ensure!(unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) } == 1, "bound the arenas of the allocator");
    Ok(())
}
