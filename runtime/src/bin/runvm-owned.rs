//! The program with a monitor that an attacker owns, for tests alone: see `confinement/owned.rs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    runvm::main()
}
