//! `runvm`: runc with a virtual machine around every container.
//!
//! ```text
//!  engine ─▶ runvm create ──spawns──▶ runvm monitor (the pid that engines see)
//!            runvm start  ──control─▶   ├─ VMM: vCPU and device threads ◀─virtio─▶ guest kernel
//!            runvm kill   ──socket──▶   ├─ agent client ◀──────ttrpc/vsock──────▶ agent (PID 1)
//!            runvm exec   ──────────▶   └─ stdio pumps  ◀──────streams/vsock────▶ container
//! ```
//!
//! Commands are short-lived and do every privileged thing on the host, each with its undo; the monitor
//! lives as long as the container, holds open descriptors and exits with the container's code.

mod artifacts;
mod bundle;
mod cli;
mod commands;
mod control;
mod directory;
mod exec_proxy;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod guest_text;
mod host;
mod ipc;
mod launch;
mod log;
mod monitor;
mod network;
mod parcel;
mod plan;
mod sandbox;
mod signals;
mod state;
mod status;
mod streams;
mod timeline;

use std::process::ExitCode;

use clap::Parser;

/// Carries out the command line, or is the process that a command spawned.
pub fn main() -> ExitCode {
    timeline::begin();
    // No command of a user's, so clap has no part in it: describing all commands to it costs more than the rest
    // of the monitor's start.
    if let Some(socket) = host::spawn::is_monitor() {
        return finish(monitor::main(socket));
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if let Err(error) = log::init(&cli.global) {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    finish(commands::run(cli))
}

fn finish(result: anyhow::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::fatal(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Help and version are answers (exit code 0); anything else is an error of one line, as from runc.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    log::init_from_arguments(std::env::args_os());
    log::fatal(line.strip_prefix("error: ").unwrap_or(line));
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{text}");
    }
    ExitCode::FAILURE
}
