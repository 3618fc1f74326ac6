//! What the short-lived commands ask of a monitor, over the Unix socket in the container's directory.
//!
//! Messages are those of [`ipc`]. A connection carries one request and its reply, except [`Request::Exec`] and
//! [`Request::Join`]: there the connection *is* the process. It carries [`Reply::Started`], then [`Request::Signal`] and
//! [`Request::Resize`] one way and [`Reply::Exited`] the other, and closing it kills the process.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protocol::ListProcessesResponse;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::directory;
use crate::host::monitor_namespaces::Volume;
use crate::ipc::{self, Descriptor};
use crate::state::Status;
use crate::streams::Streams;

/// A request to the monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Let the container's process run.
    Start,
    /// Send a signal to the container's init, or to every process.
    Kill {
        /// Signal number.
        signal: u32,
        /// Whether every process of the container gets the signal.
        all: bool,
    },
    /// Write these files of the container's cgroup in the guest.
    Update(Vec<(String, String)>),
    /// List the processes of the container.
    Processes,
    /// Read these files of the container's cgroup in the guest.
    ReadCgroup(Vec<String>),
    /// Answer when more processes than so many were killed for lack of memory.
    WaitOom(u64),
    /// Say whether the container was started, and whether it is paused.
    Status,
    /// Pause the container.
    Pause,
    /// Resume the container.
    Resume,
    /// Start another process.
    Exec(Box<Exec>),
    /// Create a container in this VM: the next message is its parcel. The connection stands for its process, as that of
    /// an exec does. With it may come a process that makes device nodes.
    Join(Option<Descriptor>),
    /// Answer when a container that joined this VM is detached from it.
    WaitDetached(String),
    /// On the connection of a process: send it a signal.
    Signal(u32),
    /// On the connection of a process: its terminal has a new size.
    Resize {
        /// Lines of the terminal.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// A process to be started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The program that runs, its user and its environment.
    #[serde(with = "ipc::protobuf")]
    pub process: protocol::Process,
    /// Standard streams of the process.
    pub streams: Streams,
    /// A process that makes device nodes, for a container without one.
    pub nodes: Option<Descriptor>,
}

/// What the monitor answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The request was carried out.
    Done,
    /// Of a container's process on the host to the command that made it, which answers [`Reply::Done`]: it has left the host's
    /// namespaces.
    LeftHost {
        /// Whether it is in a user namespace that has no ids yet.
        needs_ids: bool,
        /// What is to be mounted in its mount namespace when the container is created.
        volumes: Vec<Volume>,
    },
    /// The process runs, the container is created.
    Started,
    /// The process has ended with this code and all its output is delivered.
    Exited(u8),
    /// On the connection of a container that joined: the guest's kernel killed a process of it for lack of memory.
    OutOfMemory,
    /// What [`Request::Processes`] asked for.
    Processes(#[serde(with = "ipc::protobuf")] ListProcessesResponse),
    /// How many processes were killed for lack of memory.
    OomKills(u64),
    /// Answer to [`Request::Status`].
    Status(Status),
    /// Names and contents of the files that are there.
    Files(Vec<(String, String)>),
    /// The request failed; the sentence for the user.
    Failed(String),
}

/// Listens on the socket `control` in `dir`. Goes through `/proc/self/fd`, since an engine's state
/// directory can be longer than the 107 bytes a Unix address holds.
pub fn listen(dir: &Path) -> anyhow::Result<UnixListener> {
    let at = |address: &Path| UnixListener::bind(address).with_context(|| format!("listen in {}", dir.display()));
    through_fd(dir, at)
}

/// Connects to the monitor of the container in `dir`. Refused when the monitor is gone.
pub fn connect(dir: &Path, patience: Duration) -> anyhow::Result<UnixStream> {
    let stream = through_fd(dir, |address| connect_within(address, patience))?;
    // None at all would be for ever.
    let patience = Some(patience.max(Duration::from_millis(1)));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    Ok(stream)
}

/// A monitor that does not run accepts no connection, and the kernel lets only so many wait: the next one would wait in
/// `connect` for ever.
fn connect_within(address: &Path, patience: Duration) -> anyhow::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let (address, deadline) = (SocketAddrUnix::new(address)?, Instant::now() + patience);
    loop {
        match rustix::net::connect(&socket, &address) {
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::AGAIN) => bail!("the container's monitor took no connection within {patience:?}"),
            connected => break connected.context("container not running")?,
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn through_fd<T>(dir: &Path, f: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let fd = directory::open(dir).with_context(|| format!("open state directory {}", dir.display()))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    f(&Path::new("/proc/self/fd").join(number.to_string()).join("control"))
}

/// One request and its reply, which is not [`Reply::Failed`].
pub fn call(dir: &Path, request: &Request, patience: Duration) -> anyhow::Result<Reply> {
    let stream = connect(dir, patience)?;
    ipc::send(&stream, request)?;
    match ipc::receive(&stream) {
        Ok(Some(Reply::Failed(why))) => bail!("{why}"),
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => bail!("container not running"),
        Err(error) => Err(error.context(format!("no answer from the container's monitor within {patience:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_takes_no_connections_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(dir.path().join("control")).unwrap()).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        let patience = Duration::from_millis(20);
        let waiting: Vec<_> = (0..2).map(|_| connect(dir.path(), patience).unwrap()).collect();
        let error = call(dir.path(), &Request::Status, patience).unwrap_err().to_string();
        assert_eq!(error, "the container's monitor took no connection within 20ms");
        drop(waiting);
    }

    #[test]
    fn a_directory_longer_than_a_unix_address_works() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d".repeat(200));
        std::fs::create_dir(&dir).unwrap();
        let listener = listen(&dir).unwrap();
        let client = connect(&dir, Duration::from_secs(1)).unwrap();
        listener.accept().unwrap();
        drop(client);
    }
}
