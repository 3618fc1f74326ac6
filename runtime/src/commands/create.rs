//! `runvm create`

use crate::cli::{CreateArgs, Global};
use crate::launch::{self, Terminal};

/// Creates a container and exits; the monitor keeps running.
pub fn run(global: &Global, args: &CreateArgs) -> anyhow::Result<u8> {
    launch::create(global, args, Terminal::Detached(args.console_socket.as_deref()))?;
    Ok(0)
}
