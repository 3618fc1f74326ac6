//! Filters for threads. Who makes another call ends the process, and the log says which call it was.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::line::name_thread;
use super::program::Program;
use super::violation;

// linux/seccomp.h
const SET_MODE_FILTER: libc::c_uint = 1;
/// Flag of a filter that leaves speculation as it is.
const SPEC_ALLOW: libc::c_ulong = 1 << 2;

/// Whether the host's kernel has no filters, and the administrator goes on without.
static WITHOUT: AtomicBool = AtomicBool::new(false);

/// Prepares the process for threads that are confined; to be called once. Without filters there are none later either.
///
/// # Errors
/// The kernel's.
pub fn prepare(filters: bool) -> io::Result<()> {
    WITHOUT.store(!filters, Ordering::Relaxed);
    violation::report()
}

/// The calls of one kind of thread.
#[derive(Clone, Copy)]
pub struct Filter {
    /// Name of the kind, for messages.
    pub name: &'static str,
    /// Program that the kernel runs for each call.
    pub program: &'static Program,
}

impl Filter {
    /// Confines the calling thread, and threads that it starts, for good.
    ///
    /// # Errors
    /// The kernel has no seccomp filters.
    pub fn confine(&self) -> io::Result<()> {
        name_thread(self.name);
        if WITHOUT.load(Ordering::Relaxed) {
            return Ok(());
        }
        let instructions = self.program.instructions();
        let length = u16::try_from(instructions.len()).map_err(io::Error::other)?;
        // The kernel only reads it.
        let program = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut() };
        // SAFETY: the structure and the program it names live across the call.
        let set = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, SPEC_ALLOW, &raw const program) };
        if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
