//! Commands of the command line, one file each.

pub mod completion;
pub mod create;
pub mod delete;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;

use anyhow::bail;

use crate::cli::{Cli, Command};

/// Runs the command of a command line; returns the exit code.
pub fn run(cli: Cli) -> anyhow::Result<u8> {
    let Cli { global, command } = cli;
    if global.version {
        println!("{}", crate::cli::version());
        return Ok(0);
    }
    let Some(command) = command else {
        bail!("no command given; runvm --help lists them");
    };
    match command {
        Command::Create(args) => create::run(&global, &args),
        Command::Start(args) => start::run(&global, &args.id),
        Command::Run(args) => run::run(&global, &args),
        Command::Exec(args) => exec::run(&global, &args),
        Command::Ps(args) => ps::run(&global, &args),
        Command::Events(args) => events::run(&global, &args),
        Command::Update(args) => update::run(&global, &args),
        Command::Pause(args) => pause::pause(&global, &args.id),
        Command::Resume(args) => pause::resume(&global, &args.id),
        Command::Checkpoint(_) | Command::Restore(_) => bail!("checkpoint and restore are not supported yet"),
        Command::Kill(args) => kill::run(&global, &args),
        Command::Delete(args) => delete::run(&global, &args),
        Command::State(args) => state::run(&global, &args.id),
        Command::List(args) => list::run(&global, &args),
        Command::Spec(args) => spec::run(&args).map(|()| 0),
        Command::Features => features::run().map(|()| 0),
        Command::Completion { shell } => completion::completion(shell),
        Command::Man => completion::man(),
        Command::Doctor => doctor::run().map(|healthy| u8::from(!healthy)),
    }
}
