//! Sockets of the host that processes in a container may connect to, as open descriptors.
//!
//! The command opens them; the monitor connects to what it was given and to nothing else. As with a bind mount it is the
//! socket that counts and not its name: one that is removed and made again is another one.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::file_id;
use crate::ipc::Descriptor;
use crate::plan::SocketPlan;

/// How long whoever connects waits at a socket whose queue is full.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens each as a place, following symlinks in the path the bundle gave, as mount(2) does.
///
/// # Errors
/// One that cannot be opened, or is another file by now.
pub fn open(plans: &[SocketPlan]) -> anyhow::Result<Vec<Descriptor>> {
    let open = |plan: &SocketPlan| {
        let opened = place(&plan.source);
        let fd = opened.with_context(|| format!("open {} for the container", plan.source.display()))?;
        file_id::check(&fd, plan.id, &plan.source)?;
        Ok(fd.into())
    };
    plans.iter().map(open).collect()
}

/// Whether connections to a socket carry messages and no stream. When nobody has bound it that cannot be told: then they
/// do not.
pub fn carries_messages(path: &Path) -> bool {
    let Ok(socket) = place(path) else { return false };
    let address = format!("/proc/self/fd/{}", socket.as_raw_fd());
    // Who listens for streams never hears of this: sockets of different types do not connect.
    let connects = |kind| match connect(&address, kind, SocketFlags::NONBLOCK) {
        Ok(_) | Err(Errno::AGAIN) => true,
        Err(_) => false,
    };
    connects(SocketType::DGRAM) || connects(SocketType::SEQPACKET)
}

/// The directory of this process's descriptors, from which no way leads up; [`dial`] works in it where /proc is not mounted.
pub fn own_descriptors() -> anyhow::Result<OwnedFd> {
    vmm::virtio::fs::own_descriptors().context("open /proc/self/fd")
}

/// Connects to an open socket. Waits a while for room in its queue. For a thread whose working directory is that of
/// [`own_descriptors`].
///
/// # Errors
/// Nobody listens, or not for streams, or there was no room.
pub fn dial(socket: impl AsFd) -> anyhow::Result<UnixStream> {
    let address = socket.as_fd().as_raw_fd().to_string();
    Ok(connect(&address, SocketType::STREAM, SocketFlags::empty())?.into())
}

fn place(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn connect(address: &str, kind: SocketType, flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags | SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(address)?)?;
    Ok(socket)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixListener};

    /// Has the calling thread, and no other, work in that directory.
    pub fn go_to_descriptors() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        rustix::process::fchdir(own_descriptors().unwrap()).unwrap();
    }

    #[test]
    fn kinds_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let stream = UnixListener::bind(at("stream")).unwrap();
        stream.set_nonblocking(true).unwrap();
        let _messages = UnixDatagram::bind(at("messages")).unwrap();
        let packets =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&packets, &SocketAddrUnix::new(at("packets")).unwrap()).unwrap();
        rustix::net::listen(&packets, 1).unwrap();
        drop(UnixListener::bind(at("left")).unwrap());
        let told = ["stream", "messages", "packets", "left", "none"].map(|name| carries_messages(&at(name)));
        assert_eq!(told, [false, true, true, false, false]);
        assert!(stream.accept().is_err(), "who listens for streams was bothered");
    }

    #[test]
    fn what_was_opened_is_dialed_whatever_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = UnixListener::bind(&path).unwrap();
        let id = file_id::of(&rustix::fs::stat(&path).unwrap());
        let plan = SocketPlan { source: path.clone(), id };
        let opened = open(std::slice::from_ref(&plan)).unwrap().remove(0);
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        let client = std::thread::spawn(move || {
            go_to_descriptors();
            let mut client = dial(&opened).unwrap();
            client.write_all(b"hello").unwrap();
            drop(client);
            opened
        });
        let mut text = String::new();
        first.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let opened = client.join().unwrap();
        drop(first);
        let refused = move || {
            go_to_descriptors();
            dial(&opened).unwrap_err()
        };
        let error = std::thread::spawn(refused).join().unwrap();
        assert!(format!("{error:#}").contains("refused"), "{error:#}");
        let error = format!("{:#}", super::open(&[plan]).unwrap_err());
        assert!(error.contains("has been replaced by another file"), "{error}");
    }
}
