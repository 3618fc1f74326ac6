//! What the short-lived commands ask of a monitor, over the Unix socket in the container's directory.
//!
//! A message is a 32-bit little-endian length and that many bytes of JSON; descriptors travel with the
//! first byte. A connection carries one request and its reply, except [`Request::Exec`] and [`Request::Join`]: there the
//! connection *is* the process. It carries [`Reply::Started`], then [`Request::Signal`] and
//! [`Request::Resize`] one way and [`Reply::Exited`] the other, and closing it kills the process.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::plan::CachePlan;
use crate::state::Status;

/// Longest message: a process with the largest environment that Linux takes, and some.
const MAX_MESSAGE: usize = 8 << 20;

/// Most descriptors with one message: what Linux sends at a time (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// A request to the monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Let the container's process run.
    Start,
    /// Send a signal to the container's init, or to every process.
    Kill {
        /// Signal number.
        signal: u32,
        /// Every process of the container.
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
    /// Start another process. Its standard descriptors come with the message, as many as `streams`
    /// names; with a terminal it is one: the slave end.
    Exec {
        /// `protocol::Process`, encoded.
        process: Vec<u8>,
        /// Which of stdin, stdout, stderr are attached.
        streams: [bool; 3],
    },
    /// Create a container in this VM. The connection stands for its process, as that of an exec does.
    Join(Join),
    /// Answer when a container that joined this VM has left it.
    Left(String),
    /// On the connection of a process: send it a signal.
    Signal(u32),
    /// On the connection of a process: its terminal has a new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
}

/// A container that joins a VM. With it come its listening control socket, its network namespace if it has one of its
/// own, a descriptor for each share and each socket of the host, and its standard descriptors, as with [`Request::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Join {
    /// `protocol::CreateContainerRequest`, encoded.
    pub container: Vec<u8>,
    /// Whether it has a network namespace of its own.
    pub network: bool,
    /// Names of the shares, whether each is read-only, and what the guest may keep of it.
    pub shares: Vec<(String, bool, CachePlan)>,
    /// How many sockets of the host it may connect to.
    pub sockets: usize,
    /// Which of stdin, stdout, stderr are attached.
    pub streams: [bool; 3],
}

/// What the monitor answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// The process runs, the container is created.
    Started,
    /// The process has ended with this code and all its output is delivered.
    Exited(u8),
    /// On the connection of a container that joined: the guest's kernel killed a process of it for lack of memory.
    OutOfMemory,
    /// What [`Request::Processes`] asked for.
    Processes(ProcessList),
    /// How many processes were killed for lack of memory.
    OomKills(u64),
    /// What [`Request::Status`] asked for.
    Status(Status),
    /// Names and contents of the files that are there.
    Files(Vec<(String, String)>),
    /// It did not work; the sentence for the user.
    Failed(String),
}

/// The processes of a container.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ProcessList {
    /// Of the guest, 1/100 s.
    pub uptime: u64,
    /// All that the guest has, bytes.
    pub memory: u64,
    /// In no special order.
    pub processes: Vec<ProcessInfo>,
}

/// A process of the container, identified as it sees itself. Times in 1/100 s, sizes in bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessInfo {
    pub pid: u32,
    pub ppid: u32,
    pub pgid: u32,
    pub sid: u32,
    pub uid: u32,
    pub state: String,
    pub terminal: String,
    pub threads: u32,
    pub nice: i32,
    /// After the guest's boot.
    pub started: u64,
    pub cpu_time: u64,
    pub vsize: u64,
    pub rss: u64,
    pub comm: String,
    pub args: String,
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
    use rustix::fs::{Mode, OFlags};
    let opened = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let fd = opened.with_context(|| format!("open state directory {}", dir.display()))?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
    f(&Path::new("/proc/self/fd").join(number.to_string()).join("control"))
}

/// One request and its reply, which is not [`Reply::Failed`].
pub fn call(dir: &Path, request: &Request, patience: Duration) -> anyhow::Result<Reply> {
    let stream = connect(dir, patience)?;
    send(&stream, request, &[])?;
    match receive::<Reply>(&stream) {
        Ok(Some((Reply::Failed(why), _))) => bail!("{why}"),
        Ok(Some((reply, _))) => Ok(reply),
        Ok(None) => bail!("container not running"),
        Err(error) => Err(error.context(format!("no answer from the container's monitor within {patience:?}"))),
    }
}

/// A message as it travels.
pub fn encode<T: Serialize>(message: &T) -> anyhow::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_MESSAGE {
        bail!("a request of {} bytes is longer than {MAX_MESSAGE}", body.len());
    }
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The length of the body that follows these four bytes.
pub fn body_length(header: [u8; 4]) -> anyhow::Result<usize> {
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_MESSAGE {
        bail!("a message of {length} bytes is longer than {MAX_MESSAGE}");
    }
    Ok(length)
}

/// Sends a message with descriptors.
pub fn send<T: Serialize>(mut stream: &UnixStream, message: &T, fds: &[BorrowedFd]) -> anyhow::Result<()> {
    let bytes = encode(message)?;
    let sent = send_fds(stream, &bytes, fds).context("send to the container's monitor")?;
    stream.write_all(bytes.get(sent..).unwrap_or_default()).context("send to the container's monitor")
}

/// Sends as many of the bytes as fit, with all the descriptors.
pub fn send_fds(stream: impl AsFd, bytes: &[u8], fds: &[BorrowedFd]) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::other(format!("more than {MAX_FDS} descriptors (mounts) for one message")));
    }
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives the first bytes of a message with the descriptors that came along.
pub fn receive_fds(stream: impl AsFd, bytes: &mut [u8]) -> std::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((got.bytes, fds))
}

/// Receives a message; `None` when the other side has closed.
pub fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> anyhow::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut header = [0; 4];
    let (got, fds) = receive_fds(stream, &mut header)?;
    if got == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[got..])?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_message_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&a, &Request::Kill { signal: 15, all: true }, &[file.as_fd()]).unwrap();
        let (request, fds) = receive::<Request>(&b).unwrap().unwrap();
        assert!(matches!(request, Request::Kill { signal: 15, all: true }));
        assert_eq!(fds.len(), 1);
        drop(a);
        assert!(receive::<Request>(&b).unwrap().is_none());
    }

    #[test]
    fn an_absurd_length_is_refused() {
        assert!(body_length([0xff; 4]).is_err());
    }

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
