//! `runvm state`

use crate::cli::Global;
use crate::state::Dir;

/// Prints the state as runc does. Does not ask the VM, so never waits for it.
pub fn run(global: &Global, id: &str) -> anyhow::Result<u8> {
    let state = Dir::open(&global.root(), id)?.state()?;
    println!("{}", serde_json::to_string_pretty(&state.for_people())?);
    Ok(0)
}
