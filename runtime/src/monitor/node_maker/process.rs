//! The process that makes device nodes: what it is asked, and its life.

use std::ffi::{CStr, CString};
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vmm::virtio::fs::Node;

use crate::host::requirements::Confinement;
use crate::host::spawn;
use crate::ipc;
use crate::log;
use crate::monitor::confine;

/// Name of the process.
pub const NAME: &CStr = c"node-maker";

/// Mode, umask, uid, gid: 32 bits each; the device: 64.
const NUMBERS: usize = 24;
/// Most bytes of a node's name, with the zero at its end.
const NODE_NAME: usize = 256;
/// Most bytes of a request.
pub const REQUEST: usize = NUMBERS + NODE_NAME;

/// Starts the process as a child of the monitor's; gives the connection to it. To be called while this process has one thread,
/// all its rights and little memory, which is copied.
///
/// # Errors
/// There can be no more processes.
pub fn start() -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = ipc::pair()?;
    // SAFETY: this process has one thread, so the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("start the process that makes device nodes"),
        0 => {
            let socket = UnixStream::from(theirs);
            let log = log::file().map(|file| file.as_fd().as_raw_fd());
            // SAFETY: this process has one thread, which works with the socket and the log alone and never returns.
            let left = unsafe { spawn::close_all_but(&[Some(socket.as_raw_fd()), log]) };
            let named = left.and_then(|()| Ok(rustix::thread::set_name(NAME)?));
            say(named.and_then(|()| serve(&socket)));
            // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(ours),
    }
}

/// The life of a process that a command forked, not the monitor: it is confined as the monitor's own.
pub fn live(socket: &UnixStream, host: Confinement) {
    say(confine::harden(host).map_err(io::Error::other).and_then(|()| serve(socket)));
}

fn say(served: io::Result<()>) {
    if let Err(error) = served {
        log::warning(&format!("device nodes are not made: {error}"));
    }
}

/// Makes nodes until the monitor is gone, or wants no more.
fn serve(socket: &UnixStream) -> io::Result<()> {
    // What a user types at the container's terminal is not for this process.
    rustix::process::setsid()?;
    confine::make_nodes_only()?;
    let mut bytes = [0; REQUEST];
    while let Some((length, directory)) = receive(socket, &mut bytes)? {
        let made = directory.ok_or(ErrorKind::InvalidData.into()).and_then(|directory| {
            let request = Request::parse(bytes.get(..length).unwrap_or_default())?;
            request.make(&directory)
        });
        let error = made.err().map_or(0, |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO));
        match rustix::io::write(socket, &error.to_ne_bytes()) {
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => break,
            sent => drop(sent?),
        }
    }
    Ok(())
}

/// Bytes of a request, and the directory that came with them. None when the monitor is gone.
///
/// # Errors
/// The kernel's.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
        // The monitor was killed before it read an answer.
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        got => got?,
    };
    let directory = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((got.bytes > 0).then_some((got.bytes, directory)))
}

/// The request for a node; its directory goes with it.
pub fn encode(node: &Node<'_>) -> Vec<u8> {
    let numbers = [node.mode, node.umask, node.uid, node.gid].map(u32::to_ne_bytes).concat();
    [&numbers, &node.device.to_ne_bytes()[..], node.name.to_bytes_with_nul()].concat()
}

/// A device node of one name in a directory that the monitor has. The monitor may lie: nothing else can be asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Type and permissions: a character or block device.
    pub mode: u32,
    /// Permissions that it does not get.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of the device.
    pub device: u64,
    /// One component of a path, neither `.` nor `..`.
    pub name: CString,
}

impl Request {
    /// Takes a request apart.
    ///
    /// # Errors
    /// It is too short, asks for something else than a device, or its name is none.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let (numbers, name) = bytes.split_at_checked(NUMBERS).ok_or(ErrorKind::InvalidData)?;
        let word =
            |at: usize| numbers.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let [mode, umask, uid, gid] = [0, 4, 8, 12].map(word);
        let device = u64::from(word(16)) | u64::from(word(20)) << 32;
        let name: CString = CStr::from_bytes_with_nul(name).map_err(|_| ErrorKind::InvalidData)?.to_owned();
        let one = !matches!(name.to_bytes(), b"" | b"." | b"..") && !name.to_bytes().contains(&b'/');
        if !one || !matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Self { mode, umask: umask & 0o777, uid, gid, device, name })
    }

    fn make(&self, directory: &OwnedFd) -> io::Result<()> {
        // SAFETY: none has pointers but mknodat, whose name is a C string that lives across the call.
        unsafe {
            libc::umask(self.umask);
            libc::syscall(libc::SYS_setfsgid, self.gid);
            libc::syscall(libc::SYS_setfsuid, self.uid);
            let made = libc::mknodat(directory.as_raw_fd(), self.name.as_ptr(), self.mode, self.device);
            let error = io::Error::last_os_error();
            libc::syscall(libc::SYS_setfsuid, 0);
            libc::syscall(libc::SYS_setfsgid, 0);
            if made == 0 { Ok(()) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(mode: u32, name: &[u8]) -> Vec<u8> {
        let numbers = [mode, 0o7022, 1000, 2000, 7, 1].map(u32::to_ne_bytes).concat();
        [&numbers, name].concat()
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let directory = std::fs::File::open("/").unwrap();
        let (mode, device) = (libc::S_IFBLK | 0o640, 1 << 32 | 7);
        let node =
            Node { directory: directory.as_fd(), name: c"disk", mode, device, umask: 0o22, uid: 1000, gid: 2000 };
        let understood = Request::parse(&encode(&node)).unwrap();
        let name = c"disk".to_owned();
        assert_eq!(understood, Request { mode, umask: 0o22, uid: 1000, gid: 2000, device, name });
        assert_eq!(
            Request::parse(&request(mode, b"disk\0")).unwrap(),
            understood,
            "no more of a umask than permissions"
        );
    }

    #[test]
    fn nothing_else_can_be_asked_for() {
        let device = libc::S_IFCHR | 0o600;
        let names: [&[u8]; 9] = [b"", b"\0", b".\0", b"..\0", b"a/b\0", b"/a\0", b"a", b"a\0b\0", b"a\0\0"];
        for name in names {
            assert!(Request::parse(&request(device, name)).is_err(), "{name:?}");
        }
        for kind in [0, libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK, libc::S_IFIFO, libc::S_IFSOCK] {
            assert!(Request::parse(&request(kind | 0o600, b"a\0")).is_err(), "{kind:o}");
        }
        assert!(Request::parse(&request(device, b"a\0")[..NUMBERS - 1]).is_err());
    }
}
