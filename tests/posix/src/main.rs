//! What POSIX and Linux promise of a file system, case by case. `tests/tests/posix.rs` runs it inside of containers.
//!
//! ```text
//!  posix-cases SET DIR [WORD]     runs the cases of a set, each in a new directory below DIR and in a process of its own;
//!                                 with WORD only those whose names contain it
//! ```
//!
//! One line per case: `ok GROUP::NAME N ms`, or `FAILED GROUP::NAME: why`. Needs root, and no user or group 1000 to 1003
//! but those that it makes up. Exit code 0 if all passed and there were any.
//!
//! What a case says comes from POSIX.1-2017 and the manual pages of Linux, not from any file system's behaviour; where
//! those leave something open, a case accepts all that they allow.

mod cases;
mod check;
mod helper;
mod process;
mod runner;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let Some(code) = helper::run(&args) {
        return code;
    }
    let (set, dir, word) = match args[..] {
        [set, dir] => (set, dir, ""),
        [set, dir, word] => (set, dir, word),
        _ => return usage(),
    };
    match cases::set(set) {
        Some(cases) => runner::run(&cases, Path::new(dir), word),
        None => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: posix-cases common|full|many|quota DIR [WORD]");
    ExitCode::from(2)
}
