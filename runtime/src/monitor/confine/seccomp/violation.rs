//! What becomes of a thread that makes a call it may not make: a line in the log, and the end of the process.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use syscalls::Sysno;

use crate::cli::LogFormat;
use crate::log;

/// Exit code of a container whose VM died.
const VM_DIED: i32 = 255;

/// Longest line.
const LINE: usize = 256;

/// Where lines go.
static LOG: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);
/// Whether they are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Kind of the thread, for the line. Neither made nor dropped: a signal's handler reads it.
    static NAME: Cell<&'static str> = const { Cell::new("main") };
}

/// Says what kind of thread the calling one is.
pub fn name_thread(name: &'static str) {
    NAME.set(name);
}

/// Has forbidden calls reported from now on.
///
/// # Errors
/// The kernel's.
pub fn report() -> io::Result<()> {
    if let Some(file) = log::file() {
        LOG.store(file.as_fd().as_raw_fd(), Ordering::Relaxed);
    }
    JSON.store(log::settings().format == LogFormat::Json, Ordering::Relaxed);
    // SAFETY: a structure of numbers and pointers, for which zeros are good.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = end as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler makes nothing but system calls, and does not return.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Handler of SIGSYS. Nothing in here allocates or locks.
extern "C" fn end(_: libc::c_int, information: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO its information; for SIGSYS the number of the call is an int
    // after the address of the call, 24 bytes from the beginning.
    let number = unsafe { information.cast::<i32>().add(6).read() };
    let name = Sysno::new(number as usize).map_or("unknown", |call| call.name());
    let mut line = Line { bytes: [0; LINE], length: 0 };
    let json = JSON.load(Ordering::Relaxed);
    line.push(if json { r#"{"level":"error","msg":"# } else { "level=error msg=" });
    line.push("\"runvm: thread ");
    line.push(NAME.get());
    line.push(" made system call ");
    line.push_number(number.unsigned_abs());
    line.push(" (");
    line.push(name);
    line.push("), which is not one of its own: the VM ends\"");
    line.push(if json { "}\n" } else { "\n" });
    // SAFETY: the bytes are there, and the process ends.
    unsafe {
        libc::write(LOG.load(Ordering::Relaxed), line.bytes.as_ptr().cast(), line.length);
        libc::_exit(VM_DIED)
    }
}

struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &str) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(text.bytes()) {
            *to = from;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut rest, mut count) = (number, 0);
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            (rest, count) = (rest / 10, count + 1);
            if rest == 0 {
                break;
            }
        }
        let digits = digits.get(digits.len() - count..).unwrap_or_default();
        self.push(std::str::from_utf8(digits).unwrap_or_default());
    }
}
