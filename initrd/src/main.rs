//! `pack-guest`: agent and kernel in, the files that the runtime boots out.

use clap::Parser;
use std::path::PathBuf;

/// Packs the agent and a kernel into the files that runvm starts guests from.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The agent, a static program
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// The guest's kernel, an uncompressed ELF; a file `patches` beside it names the patches in it
    #[arg(long, value_name = "VMLINUX")]
    kernel: PathBuf,
    /// Where initrd, vmlinux and manifest.json go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let manifest = initrd::pack(&arguments.agent, &arguments.kernel, &arguments.out)?;
    println!("{}: Linux {}, protocol {}", arguments.out.display(), manifest.kernel.release, manifest.protocol);
    Ok(())
}
