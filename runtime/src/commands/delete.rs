//! `runvm delete`

use std::time::Duration;

use anyhow::bail;

use super::kill;
use crate::cli::{DeleteArgs, Global};
use crate::host::hooks::{self, Kind};
use crate::state::{Dir, State, Status};
use crate::{log, network, sandbox, status};

/// Time to wait for the lock: longer than any command holds it, unless it is stopped itself.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Deletes a stopped or merely created container, or any with `--force`.
pub fn run(global: &Global, args: &DeleteArgs) -> anyhow::Result<u8> {
    let is_gone = |error: &anyhow::Error| error.to_string().starts_with("container does not exist");
    let locked = Dir::open(&global.root(), &args.id).map(|dir| (dir.lock(PATIENCE), dir));
    let (_lock, dir) = match locked {
        Ok((Err(error), _)) | Err(error) if args.force && is_gone(&error) => return Ok(0),
        // A command that hangs while it holds the lock must not make a container undeletable.
        Ok((lock, dir)) if args.force => (lock.ok(), dir),
        Ok((lock, dir)) => (Some(lock?), dir),
        Err(error) => return Err(error),
    };
    let state = match dir.load() {
        Err(error) if args.force => {
            log::warning(&format!("{error:#}"));
            None
        }
        loaded => loaded?,
    };
    match state {
        Some(state) => stop_and_remove(&dir, &state, args.force)?,
        None if args.force => dir.remove()?,
        None => bail!("container {} was not fully created; remove it with delete --force", args.id),
    }
    Ok(0)
}

fn stop_and_remove(dir: &Dir, state: &State, force: bool) -> anyhow::Result<()> {
    // A monitor that is to be killed need not be asked.
    let status = if force { Status::Created } else { status::of(dir, state) };
    match status {
        Status::Stopped => {}
        Status::Created => kill::kill_monitor(state)?,
        status => bail!("cannot delete container {} that is not stopped: {}", state.id, status.as_str()),
    }
    remove(dir, state)
}

/// Undoes the effects on the host of a container whose monitor is gone.
pub fn remove(dir: &Dir, state: &State) -> anyhow::Result<()> {
    sandbox::wait_detached(dir, state);
    network::clean_after(state);
    if let Some(cgroup) = &state.cgroup {
        cgroup.remove()?;
    }
    dir.remove()?;
    // The specification: a poststop hook that fails is logged, and the container is deleted.
    if let Err(error) = hooks::run(Kind::Poststop, &state.hooks, &state.oci(Status::Stopped)) {
        log::warning(&format!("{error:#}"));
    }
    Ok(())
}
