//! `runvm run`

use anyhow::{Context, bail};

use super::{delete, start};
use crate::cli::{Global, RunArgs};
use crate::control::{self, Request};
use crate::exec_proxy::TerminalCopy;
use crate::host::console;
use crate::launch::{self, Launch, Terminal};
use crate::signals::Signals;

/// Creates and starts a container; unless detached, stays, forwards signals, and exits with the container's code.
pub fn run(global: &Global, args: &RunArgs) -> anyhow::Result<u8> {
    if args.detach {
        let launch = launch::create(global, &args.create, Terminal::Detached(args.create.console_socket.as_deref()))?;
        return start_or_delete(&launch).map(|()| 0);
    }
    if args.create.console_socket.is_some() {
        bail!("cannot use console socket if runvm will not detach or allocate tty");
    }
    let signals = Signals::block()?;
    let mut launch = launch::create(global, &args.create, Terminal::Foreground)?;
    let copy = launch.master.as_ref().map(TerminalCopy::start).transpose()?;
    start_or_delete(&launch)?;
    launch.unlock();
    let code = wait(&mut launch, &signals)?;
    drop(copy);
    if !args.keep {
        delete_ended(&launch)?;
    }
    Ok(code)
}

/// Deletes the container, unless somebody else has done so.
fn delete_ended(launch: &Launch) -> anyhow::Result<()> {
    let lock = launch.dir.lock(delete::PATIENCE);
    match launch.dir.load() {
        Ok(None) => Ok(()),
        _ => lock.and_then(|_lock| delete::remove(&launch.dir, &launch.state)),
    }
}

/// Deletes a container that could not be started.
fn start_or_delete(launch: &Launch) -> anyhow::Result<()> {
    let Err(error) = start::start(&launch.dir, &launch.state) else { return Ok(()) };
    let killed = super::kill::kill_monitor(&launch.state);
    killed.and_then(|()| delete::remove(&launch.dir, &launch.state)).context(format!("{error:#}"))?;
    Err(error)
}

fn wait(launch: &mut Launch, signals: &Signals) -> anyhow::Result<u8> {
    loop {
        if let Some(code) = launch.wait()? {
            return Ok(code);
        }
        let (dir, master) = (launch.dir.path(), launch.master.as_ref());
        signals.wait(None, |signal| match (signal, master) {
            (libc::SIGCHLD, _) | (libc::SIGWINCH, None) => {}
            (libc::SIGWINCH, Some(master)) => console::copy_size(rustix::stdio::stdin(), master),
            (signal, _) => forward(dir, signal as u32),
        })?;
    }
}

fn forward(dir: &std::path::Path, signal: u32) {
    let sent = control::call(dir, &Request::Kill { signal, all: false }, std::time::Duration::from_secs(5));
    if let Err(error) = sent {
        crate::log::debug(&format!("signal {signal} not delivered: {error:#}"));
    }
}
