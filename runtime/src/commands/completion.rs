//! `runvm completion` and `runvm man`: generated from the definition of the command line.

use std::io;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Prints a completion script for a shell.
pub fn completion(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "runvm", &mut script);
    print(&script)
}

/// Prints the manual page as roff.
pub fn man() -> anyhow::Result<u8> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).section("8").render(&mut page).context("render the manual page")?;
    print(&page)
}

fn print(bytes: &[u8]) -> anyhow::Result<u8> {
    match io::Write::write_all(&mut io::stdout(), bytes) {
        // `runvm completion bash | head`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        written => written.map(|()| 0).context("write to standard output"),
    }
}
