//! Lines of the log by a signal's handler: nothing in here allocates or locks.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::SystemTime;

use syscalls::Sysno;

use crate::cli::LogFormat;
use crate::log;

/// Longest line.
const LINE: usize = 256;

/// Descriptor that lines go to.
static LOG: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);
/// Whether lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Kind of the thread, for the line. Neither made nor dropped: a signal's handler reads it.
    static NAME: Cell<&'static str> = const { Cell::new("main") };
}

/// Says what kind of thread the calling one is.
pub fn name_thread(name: &'static str) {
    NAME.set(name);
}

/// Has lines go to the log from now on.
pub fn follow_log() {
    if let Some(file) = log::file() {
        LOG.store(file.as_fd().as_raw_fd(), Ordering::Relaxed);
    }
    JSON.store(log::settings().format == LogFormat::Json, Ordering::Relaxed);
}

/// A line in the making. What is too much is left out.
pub struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

impl Line {
    /// Begins a line of this level.
    pub fn begin(level: &str) -> Self {
        let (mut line, json) = (Self { bytes: [0; LINE], length: 0 }, JSON.load(Ordering::Relaxed));
        line.push(if json { r#"{"time":""# } else { "time=\"" });
        // Too long a line is cut.
        let _ = write!(line, "{}", humantime::format_rfc3339_seconds(SystemTime::now()));
        line.push(if json { r#"","level":""# } else { "\" level=" });
        line.push(level);
        line.push(if json { r#"","msg":""# } else { " msg=\"" });
        line
    }

    /// Writes the line.
    pub fn write(mut self) {
        self.push(if JSON.load(Ordering::Relaxed) { "\"}\n" } else { "\"\n" });
        // SAFETY: the bytes are there.
        unsafe { libc::write(LOG.load(Ordering::Relaxed), self.bytes.as_ptr().cast(), self.length) };
    }

    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        for (to, from) in self.bytes.iter_mut().skip(self.length).zip(text.bytes()) {
            *to = from;
            self.length += 1;
        }
    }

    /// Adds the name of the thread.
    pub fn push_thread(&mut self) {
        self.push(NAME.get());
    }

    /// Adds the name of a system call.
    pub fn push_call(&mut self, number: u32) {
        self.push(Sysno::new(number as usize).map_or("unknown", |call| call.name()));
    }

    /// Adds a number.
    pub fn push_number(&mut self, number: u32) {
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
