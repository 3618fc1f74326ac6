//! `runvm start`

use std::time::Duration;

use anyhow::bail;

use crate::cli::Global;
use crate::control::{self, Request};
use crate::host::hooks::{self, Kind};
use crate::log;
use crate::state::{Dir, Life, State, Status};

/// Time for the monitor's answer: the guest answers after execve(2), which reads the program from the host's disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the process of a created container.
pub fn run(global: &Global, id: &str) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), id)?;
    let _lock = dir.lock(PATIENCE)?;
    let state = dir.state()?;
    match state.life() {
        Life::Alive => start(&dir, &state).map(|()| 0),
        Life::Stopped => bail!("cannot start a container that has stopped"),
        Life::Creating => bail!("cannot start a container in the creating state"),
    }
}

/// Starts a created container whose lock the caller holds.
pub fn start(dir: &Dir, state: &State) -> anyhow::Result<()> {
    control::call(dir.path(), &Request::Start, PATIENCE)?;
    // The specification: a poststart hook that fails is logged, and the container goes on.
    if let Err(error) = hooks::run(Kind::Poststart, &state.hooks, &state.oci(Status::Running)) {
        log::warning(&format!("{error:#}"));
    }
    Ok(())
}
