//! Pipe between the agent and a child it forked, for the time until the child executes its program.
//!
//! ```text
//!  agent                                   child
//!    │ id maps, oom score
//!    │ ──────────── go ─────────────────▶ │ mounts, user, capabilities, command lookup
//!    │ ◀──── ready(master) or failed ──── │
//!    │ rlimits
//!    │ ─────────── start ───────────────▶ │ exec
//!    │ ◀──── end of file or failed ────── │ (the descriptor is close-on-exec)
//! ```
//!
//! The agent's death or its dropping of the pipe reads as end of file and ends a waiting child.

use crate::error::{Context, Error, Kind, Result};
use rustix::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::PidfdGetfdFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const GO: u8 = b'g';
const READY: u8 = b'r';
const START: u8 = b's';
const FAILED: u8 = b'f';

/// No sentence of a child's is longer.
const MAX_MESSAGE: u64 = 16 * 1024;

/// Makes a pipe: the agent's end and the child's.
pub fn pair() -> Result<(ChildPipe, ParentPipe)> {
    let make = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (agent, child) = make().context(|| "socketpair")?;
    let agent = std::os::unix::net::UnixStream::from(agent);
    agent.set_nonblocking(true).context(|| "socketpair")?;
    let stream = UnixStream::from_std(agent).context(|| "socketpair")?;
    Ok((ChildPipe { stream }, ParentPipe { fd: child }))
}

/// The agent's end of the pipe to a child.
pub struct ChildPipe {
    stream: UnixStream,
}

impl ChildPipe {
    /// Lets the child begin.
    pub async fn go(&mut self) -> Result<()> {
        self.stream.write_all(&[GO]).await.context(|| "process died before its setup")
    }

    /// Waits until all but the exec is done. The master of the terminal comes along if there is one.
    pub async fn ready(&mut self, pidfd: impl AsFd) -> Result<Option<OwnedFd>> {
        let Ok(kind) = self.stream.read_u8().await else {
            return Err(Error::internal("process died during its setup"));
        };
        if kind != READY {
            return Err(self.failure().await);
        }
        let master = self.stream.read_i32_le().await.context(|| "process died during its setup")?;
        if master < 0 {
            return Ok(None);
        }
        rustix::process::pidfd_getfd(pidfd, master, PidfdGetfdFlags::empty()).context(|| "take terminal").map(Some)
    }

    /// Lets the child exec and waits until it has, or has failed to.
    pub async fn start(mut self) -> Result<()> {
        // A child that was killed meanwhile is seen by whoever waits for it: not an error here.
        if self.stream.write_all(&[START]).await.is_err() {
            return Ok(());
        }
        match self.stream.read_u8().await {
            Ok(_) => Err(self.failure().await),
            Err(_) => Ok(()),
        }
    }

    /// The sentence after a `FAILED`.
    async fn failure(&mut self) -> Error {
        let kind = self.stream.read_u8().await.map(Kind::from_byte).unwrap_or(Kind::Internal);
        let mut message = Vec::new();
        // What of it arrived is better than nothing.
        let _ = (&mut self.stream).take(MAX_MESSAGE).read_to_end(&mut message).await;
        Error { kind, message: String::from_utf8_lossy(&message).into_owned() }
    }
}

/// The child's end of the pipe, whose reads block.
pub struct ParentPipe {
    fd: OwnedFd,
}

impl ParentPipe {
    /// Number of the descriptor, for the list of those to keep.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Waits until the agent lets the child begin.
    pub fn wait_go(&self) -> Result<()> {
        self.wait_for(GO)
    }

    /// Says that only the exec is left, and waits until it may happen.
    pub fn ready_and_wait(&self, master: Option<RawFd>) -> Result<()> {
        let mut message = vec![READY];
        message.extend_from_slice(&master.unwrap_or(-1).to_le_bytes());
        self.send(&message);
        self.wait_for(START)
    }

    /// Tells the agent why there will be no exec.
    pub fn failed(&self, error: &Error) {
        let mut message = vec![FAILED, error.kind.to_byte()];
        message.extend_from_slice(error.message.as_bytes());
        self.send(&message);
    }

    fn wait_for(&self, expected: u8) -> Result<()> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut byte)) {
            Ok(1) if byte == [expected] => Ok(()),
            _ => Err(Error::internal("the agent gave up")),
        }
    }

    /// Messages are small against the socket's buffer, so one write takes them whole. If the agent
    /// is gone nobody is left to be told.
    fn send(&self, message: &[u8]) {
        let _ = rustix::net::send(&self.fd, message, rustix::net::SendFlags::NOSIGNAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    #[test]
    fn an_error_crosses_whole() {
        run(async {
            let (mut pipe, child) = pair().unwrap();
            let error = Error::precondition("no");
            child.failed(&error);
            drop(child);
            let null = std::fs::File::open("/dev/null").unwrap();
            assert_eq!(pipe.ready(&null).await.unwrap_err(), error);
        });
    }

    #[test]
    fn a_closed_pipe_after_start_is_success() {
        run(async {
            let (pipe, child) = pair().unwrap();
            drop(child);
            pipe.start().await.unwrap();
        });
    }

    #[test]
    fn a_child_without_agent_gives_up() {
        let (pipe, child) = run(async { pair().unwrap() });
        drop(pipe);
        assert!(child.wait_go().is_err());
    }
}
