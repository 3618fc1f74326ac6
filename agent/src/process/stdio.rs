//! Standard streams of a process: pipes or a terminal, joined to the streams that the host opened.
//!
//! ```text
//!  host ══ vsock stream ══ pump ── pipe ── process       (not a terminal; no stream: /dev/null)
//!  host ══ two streams ═══ pump ── master│slave ── process
//! ```
//!
//! Real pipes, not the sockets themselves: programs open /dev/stdout, which a socket refuses.

use crate::error::{Context, Error, Result};
use crate::event::{Fd, watch};
use crate::host::pump;
use crate::host::streams::Streams;
use crate::process::namespaces::Namespaces;
use crate::process::terminal::{self, Pty};
use crate::sys;
use protocol::Process;
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use std::sync::{Arc, Weak};
use tokio::io::Interest;

/// The agent's side, before the pumps run.
pub struct AgentStdio {
    stdin: Option<Joint>,
    outputs: Vec<Joint>,
    terminal: Option<(Option<OwnedFd>, OwnedFd)>,
}

/// A stream to the host and the pipe to the process that it is joined with.
struct Joint {
    stream: OwnedFd,
    pipe: OwnedFd,
}

/// The child's side.
pub enum ChildStdio {
    /// Pipes for stdin, stdout and stderr; `None` is /dev/null.
    Pipes([Option<OwnedFd>; 3]),
    /// Size of a terminal that the child opens.
    Terminal(Winsize),
}

/// Both sides of a process's standard streams.
pub struct StandardStreams {
    /// The agent's side.
    pub agent: AgentStdio,
    /// The child's side.
    pub child: ChildStdio,
}

/// Streams that a process names: stdin, stdout, stderr. A request takes them before anything can fail, or they would
/// wait for ever.
pub type Taken = [Option<OwnedFd>; 3];

/// Takes the streams that a process names.
pub async fn take(process: &Process, streams: &Streams) -> Result<Taken> {
    // All of them: what is not used is closed, also after an error.
    let stdin = streams.take(process.stdin).await;
    let stdout = streams.take(process.stdout).await;
    let stderr = streams.take(process.stderr).await;
    Ok([stdin?, stdout?, stderr?])
}

/// Makes a process's pipes.
pub fn prepare(process: &Process, taken: Taken, namespaces: &Namespaces) -> Result<StandardStreams> {
    let [stdin, stdout, stderr] = taken;
    let mut agent = AgentStdio { stdin: None, outputs: Vec::new(), terminal: None };
    if process.terminal {
        let stdout = stdout.ok_or_else(|| Error::invalid("a terminal needs its stdout stream"))?;
        agent.terminal = Some((stdin, stdout));
        let child = ChildStdio::Terminal(terminal::size(process.rows, process.columns));
        return Ok(StandardStreams { agent, child });
    }
    let owner = namespaces.guest_uid(process.uid);
    let mut child = [None, None, None];
    let [child_stdin, child_outputs @ ..] = &mut child;
    if let Some(stream) = stdin {
        let (read, write) = pipe(owner)?;
        (*child_stdin, agent.stdin) = (Some(read), Some(joint(stream, write)?));
    }
    for (stream, child_end) in [stdout, stderr].into_iter().zip(child_outputs) {
        let Some(stream) = stream else { continue };
        let (read, write) = pipe(owner)?;
        *child_end = Some(write);
        agent.outputs.push(joint(stream, read)?);
    }
    Ok(StandardStreams { agent, child: ChildStdio::Pipes(child) })
}

/// A pipe that the process's user may open again by its name in /proc.
fn pipe(owner: Option<u32>) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "create a pipe for standard streams")?;
    if let Some(uid) = owner.filter(|&uid| uid != 0 && uid != u32::MAX) {
        rustix::fs::fchown(&read, Some(Uid::from_raw(uid)), None).context(|| "chown pipe")?;
    }
    Ok((read, write))
}

fn joint(stream: OwnedFd, pipe: OwnedFd) -> Result<Joint> {
    // Only the agent's end: the process has an open file description of its own.
    rustix::io::ioctl_fionbio(&pipe, true).context(|| "create a pipe for standard streams")?;
    Ok(Joint { stream, pipe })
}

impl AgentStdio {
    /// Starts the pumps. `master` belongs to the terminal, if the process has one; it lives as long as
    /// its pumps, the weak reference is for resizing.
    pub fn run(self, master: Option<OwnedFd>) -> Result<Weak<Fd>> {
        if let Some(Joint { stream, pipe }) = self.stdin {
            let interest = Interest::WRITABLE | Interest::ERROR;
            tokio::spawn(pump::stdin(watch(stream, Interest::READABLE)?, watch(pipe, interest)?));
        }
        for Joint { stream, pipe } in self.outputs {
            tokio::spawn(pump::output(watch(pipe, Interest::READABLE)?, watch(stream, both())?));
        }
        match (self.terminal, master) {
            (Some((stdin, stdout)), Some(master)) => run_terminal(stdin, stdout, master),
            _ => Ok(Weak::new()),
        }
    }
}

fn run_terminal(stdin: Option<OwnedFd>, stdout: OwnedFd, master: OwnedFd) -> Result<Weak<Fd>> {
    rustix::io::ioctl_fionbio(&master, true).context(|| "set up terminal")?;
    let master = Arc::new(watch(master, both())?);
    let resize = Arc::downgrade(&master);
    let input = match stdin {
        Some(stdin) => {
            let (stdin, master) = (watch(stdin, Interest::READABLE)?, master.clone());
            Some(tokio::spawn(async move { pump::terminal_input(&stdin, &master).await }))
        }
        None => None,
    };
    let stdout = watch(stdout, both())?;
    tokio::spawn(async move {
        let ended = pump::terminal_output(&master, &stdout).await;
        if let Some(input) = input.filter(|_| ended) {
            input.abort();
        }
    });
    Ok(resize)
}

fn both() -> Interest {
    Interest::READABLE | Interest::WRITABLE
}

impl ChildStdio {
    /// Descriptors the child has to keep.
    pub fn raw_fds(&self) -> Vec<RawFd> {
        match self {
            ChildStdio::Pipes(fds) => fds.iter().flatten().map(AsRawFd::as_raw_fd).collect(),
            ChildStdio::Terminal(_) => Vec::new(),
        }
    }

    /// Puts the standard streams in place as descriptors 0 to 2, a terminal as controlling terminal of `uid`, too.
    /// `open` finds a name in the container; `null` is the guest's /dev/null.
    pub fn install(
        &self,
        open: impl Fn(&str, OFlags) -> std::result::Result<OwnedFd, Errno>,
        null: OwnedFd,
        uid: u32,
    ) -> Result<Option<Pty>> {
        match self {
            ChildStdio::Pipes(pipes) => {
                let null = open_null(open, null);
                for (target, pipe) in (0..).zip(pipes) {
                    sys::dup_to(pipe.as_ref().unwrap_or(&null), target).context(|| "set up standard streams")?;
                }
                Ok(None)
            }
            ChildStdio::Terminal(size) => {
                let pty = Pty::open(open, *size)?;
                pty.take(uid)?;
                (0..3).try_for_each(|target| sys::dup_to(&pty.slave, target)).context(|| "set up standard streams")?;
                Ok(Some(pty))
            }
        }
    }
}

/// The container's own /dev/null, so that what a process finds in /proc/self/fd is of its world;
/// `fallback` where that is something else.
fn open_null(open: impl Fn(&str, OFlags) -> std::result::Result<OwnedFd, Errno>, fallback: OwnedFd) -> OwnedFd {
    let is_null = |fd: &OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == rustix::fs::makedev(1, 3)
        })
    };
    // A place first: opening whatever is there could block or do harm.
    match open("/dev/null", OFlags::PATH) {
        Ok(place) if is_null(&place) => open("/dev/null", OFlags::RDWR).unwrap_or(fallback),
        _ => fallback,
    }
}

/// The guest's /dev/null.
pub fn guest_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| "open /dev/null")
}
