//! The kernel's log is the agent's: errors always, more with `agent.debug` on the kernel's command line.
//!
//! Each character that reaches the console costs, so there is little.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUG: AtomicBool = AtomicBool::new(false);

/// Reads the kernel's command line; /proc has to be mounted.
pub fn init() {
    let words = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    DEBUG.store(words.split_whitespace().any(|word| word == "agent.debug"), Ordering::Relaxed);
}

/// Logs a failure that no caller is told.
pub fn error(text: &str) {
    write(3, text);
}

/// Logs a text when the kernel's command line has `agent.debug`.
pub fn debug(text: impl FnOnce() -> String) {
    if DEBUG.load(Ordering::Relaxed) {
        write(6, &text());
    }
}

fn write(level: u8, text: &str) {
    // There is nowhere to complain about a log that can't be written.
    if let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<{level}>agent: {text}\n").as_bytes());
    }
}
