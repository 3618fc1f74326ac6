//! An engine's daemon, for as long as the test program lives.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{place, process};

/// A start takes 25 s in the lab; longer than other things may.
const START: Duration = Duration::from_secs(120);
/// What the end may take before it is forced.
const END: Duration = Duration::from_secs(30);

/// A daemon; one `static` for each.
pub struct Daemon {
    name: &'static str,
    pid: AtomicI32,
}

impl Daemon {
    /// One that has not been started.
    pub const fn new(name: &'static str) -> Self {
        Self { name, pid: AtomicI32::new(0) }
    }

    /// A folder for its files.
    pub fn dir(&self) -> PathBuf {
        place::work().join(self.name)
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Starts it and waits until it answers.
    pub fn start(&self, command: &mut Command, ready: impl Fn() -> bool) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.pid.store(
            command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.name)).id() as i32,
            Ordering::Relaxed,
        );
        let deadline = Instant::now() + START;
        while !ready() {
            assert!(process::lives(self.pid()), "{} has ended: {}", self.name, self.log_end());
            assert!(Instant::now() < deadline, "{} is not ready: {}", self.name, self.log_end());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends it; by force if it does not follow the signal.
    pub fn end(&self, signal: Signal) {
        process::signal(self.pid(), signal);
        if !process::wait_end(self.pid(), END) {
            process::signal(self.pid(), Signal::KILL);
            process::wait_end(self.pid(), END);
        }
        process::reap();
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir().join("log")
    }
}
