//! The command that stays in the foreground: it stands for a process in the guest.
//!
//! Signals that arrive here go to that process, a new size of the terminal goes to its pty, and its exit
//! code becomes ours. For `exec --detach` a forked child of the command is the proxy: its pid is what the
//! engine waits for, and killing it kills the process in the guest.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::control::{self, Exec, Reply, Request};
use crate::host::console::{self, RawTerminal};
use crate::ipc::{self, Descriptor};
use crate::signals::Signals;
use crate::streams::Streams;

/// The monitor answers an exec when the guest has executed the program.
const PATIENCE: Duration = Duration::from_secs(60);

/// The part of the host that a process in the guest gets.
pub struct Attachment {
    /// Files or terminal that it is attached to; they are handed to the monitor.
    pub streams: Streams,
    /// Connection to the process that makes device nodes for it, in a container that came without; handed over as well.
    pub nodes: Option<Descriptor>,
    /// The terminal whose size the guest's pty follows.
    pub size_of: Option<OwnedFd>,
}

/// Runs a process in the container and stands for it. Calls `started` once it runs; returns its code.
pub fn exec(
    dir: &Path,
    process: protocol::Process,
    attachment: Attachment,
    signals: &Signals,
    started: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let Attachment { streams, nodes, size_of } = attachment;
    let stream = control::connect(dir, PATIENCE)?;
    // The monitor has the streams now; kept here they would keep the engine's pipes open.
    ipc::send(&stream, &Request::Exec(Box::new(Exec { process, streams, nodes })))?;
    match ipc::receive(&stream).context("no answer from the container's monitor")? {
        Some(Reply::Started) => started()?,
        Some(Reply::Failed(why)) => bail!("{why}"),
        _ => bail!("container not running"),
    }
    stream.set_read_timeout(None)?;
    attend(&stream, signals, size_of.as_ref())
}

fn attend(stream: &UnixStream, signals: &Signals, size_of: Option<&OwnedFd>) -> anyhow::Result<u8> {
    loop {
        let forward = |signal: i32| {
            let request = match (signal, size_of) {
                (libc::SIGCHLD, _) => return,
                (libc::SIGWINCH, Some(terminal)) => {
                    let (rows, columns) = console::size(terminal);
                    Request::Resize { rows, columns }
                }
                (libc::SIGWINCH, None) => return,
                (signal, _) => Request::Signal(signal as u32),
            };
            // A monitor that is gone is noticed on the reading side.
            let _ = ipc::send(stream, &request);
        };
        if !signals.wait(Some(stream), forward)? {
            continue;
        }
        return match ipc::receive(stream) {
            Ok(Some(Reply::Exited(code))) => Ok(code),
            Ok(Some(Reply::Failed(why))) => bail!("{why}"),
            // The VM is gone, and with it the process: as if it had been killed.
            _ => Ok(128 + libc::SIGKILL as u8),
        };
    }
}

/// Copies between the user's terminal, made raw, and the master of a pty, until dropped.
pub struct TerminalCopy {
    output: Option<JoinHandle<()>>,
    _raw: Option<RawTerminal>,
}

impl TerminalCopy {
    /// Starts copying. The thread that reads the user's terminal ends with this process.
    pub fn start(master: &OwnedFd) -> anyhow::Result<Self> {
        let raw = RawTerminal::stdin();
        let standard = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let (from_user, to_guest) = (standard(rustix::stdio::stdin())?, master.try_clone()?);
        let (from_guest, to_user) = (master.try_clone()?, standard(rustix::stdio::stdout())?);
        std::thread::spawn(move || copy(from_user, to_guest));
        let output = std::thread::spawn(move || copy(from_guest, to_user));
        Ok(Self { output: Some(output), _raw: raw })
    }
}

impl Drop for TerminalCopy {
    fn drop(&mut self) {
        // The slave is closed with the process, so the copy of its output ends with the last byte.
        let _ = self.output.take().map(JoinHandle::join);
    }
}

/// Copies until one of the two ends, which a terminal does with an error.
fn copy(from: OwnedFd, to: OwnedFd) {
    let (mut from, mut to) = (File::from(from), File::from(to));
    // By reading and writing: as files they would be spliced where the kernel can, and not every terminal takes that.
    let _ = std::io::copy(&mut from as &mut dyn Read, &mut to);
}
