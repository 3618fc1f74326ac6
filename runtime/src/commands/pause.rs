//! `runvm pause` and `runvm resume`

use std::time::Duration;

use anyhow::bail;

use crate::cli::Global;
use crate::control::{self, Request};
use crate::state::{Dir, Life};

/// Time for the monitor's answer: a virtual CPU pauses at its next exit.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pauses a container: no process of it runs until `resume`.
pub fn pause(global: &Global, id: &str) -> anyhow::Result<u8> {
    change(global, id, &Request::Pause, "container not running")
}

/// Resumes a paused container.
pub fn resume(global: &Global, id: &str) -> anyhow::Result<u8> {
    change(global, id, &Request::Resume, "container not paused")
}

fn change(global: &Global, id: &str, request: &Request, refusal: &'static str) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), id)?;
    let _lock = dir.lock(PATIENCE)?;
    if dir.state()?.life() != Life::Alive {
        bail!(refusal);
    }
    control::call(dir.path(), request, PATIENCE)?;
    Ok(0)
}
