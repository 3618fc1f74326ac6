//! `runvm start`

use std::time::Duration;

use anyhow::bail;

use crate::cli::Global;
use crate::control::{self, Request};
use crate::host::hooks::{self, Kind};
use crate::log;
use crate::state::{Dir, State, Status};

/// Time for the monitor's answer: the guest answers after execve(2), which reads the program from the host's disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the process of a created container.
pub fn run(global: &Global, id: &str) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), id)?;
    let _lock = dir.lock(PATIENCE)?;
    let mut state = dir.state()?;
    match state.status() {
        Status::Created => start(&dir, &mut state)?,
        Status::Running => bail!("cannot start an already running container"),
        Status::Stopped => bail!("cannot start a container that has stopped"),
        status => bail!("cannot start a container in the {} state", status.as_str()),
    }
    Ok(0)
}

/// Starts a created container whose lock the caller holds, and saves the state.
pub fn start(dir: &Dir, state: &mut State) -> anyhow::Result<()> {
    control::call(dir.path(), &Request::Start, PATIENCE)?;
    state.reached = Status::Running;
    dir.save(state)?;
    // The specification: a poststart hook that fails is logged, and the container goes on.
    if let Err(error) = hooks::run(Kind::Poststart, &state.hooks, &state.oci(Status::Running)) {
        log::warning(&format!("{error:#}"));
    }
    Ok(())
}
