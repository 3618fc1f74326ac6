//! `runvm pause` and `runvm resume`

use std::time::Duration;

use anyhow::bail;

use crate::cli::Global;
use crate::control::{self, Request};
use crate::state::{Dir, Status};

/// Time for the monitor's answer: a virtual CPU pauses at its next exit.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pauses a container: no virtual CPU of its VM runs.
pub fn pause(global: &Global, id: &str) -> anyhow::Result<u8> {
    change(global, id, true)
}

/// Resumes a paused container.
pub fn resume(global: &Global, id: &str) -> anyhow::Result<u8> {
    change(global, id, false)
}

fn change(global: &Global, id: &str, pause: bool) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), id)?;
    let _lock = dir.lock(PATIENCE)?;
    let mut state = dir.state()?;
    let lives = matches!(state.status(), Status::Created | Status::Running | Status::Paused);
    // Whether it stands still, the monitor knows better than the file, which a killed command did not write.
    let request = match (pause, lives) {
        (true, true) => Request::Pause,
        (true, false) => bail!("container not running"),
        (false, true) => Request::Resume,
        (false, false) => bail!("container not paused"),
    };
    control::call(dir.path(), &request, PATIENCE)?;
    state.paused = pause;
    dir.save(&state)?;
    Ok(0)
}
