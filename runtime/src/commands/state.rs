//! `runvm state`

use crate::cli::Global;
use crate::state::Dir;
use crate::status;

/// Prints the state as runc does. Never asks the guest, and waits for the monitor only for a moment.
pub fn run(global: &Global, id: &str) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), id)?;
    let state = dir.state()?;
    let status = status::of(&dir, &state);
    println!("{}", serde_json::to_string_pretty(&state.for_people(status))?);
    Ok(0)
}
