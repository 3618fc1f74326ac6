//! The memory of the process.

use anyhow::Context;
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
