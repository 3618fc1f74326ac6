//! What becomes of a thread that makes a call it may not make: a line in the log, and the end of the process.

use std::io;

use super::line::{self, Line};
#[cfg(feature = "owned")]
use super::owned;

/// Exit code of a container whose VM died.
const VM_DIED: i32 = 255;

/// Has forbidden calls reported from now on.
///
/// # Errors
/// The kernel's.
pub fn report() -> io::Result<()> {
    line::follow_log();
    #[cfg(feature = "owned")]
    owned::listen()?;
    // SAFETY: a structure of numbers and pointers, for which zeros are good.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = end as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler makes nothing but system calls, and does not return.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Handler of SIGSYS. Nothing in here allocates or locks.
extern "C" fn end(_: libc::c_int, information: *const libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO its information; for SIGSYS the number of the call is an int
    // after the address of the call, 24 bytes from the beginning.
    let number = unsafe { information.cast::<i32>().add(6).read() }.unsigned_abs();
    #[cfg(feature = "owned")]
    if owned::is_attack(number, _context) {
        return;
    }
    let mut line = Line::begin("error");
    line.push("runvm: thread ");
    line.push_thread();
    line.push(" made system call ");
    line.push_number(number);
    line.push(" (");
    line.push_call(number);
    line.push("), which is not one of its own: its process ends");
    line.write();
    // SAFETY: the process ends.
    unsafe { libc::_exit(VM_DIED) }
}
