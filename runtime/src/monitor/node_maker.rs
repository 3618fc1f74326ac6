//! Makes device nodes for the thread that serves files.
//!
//! Only the host's own root may make nodes of real devices, and the monitor leaves the host's user namespace. So it forks
//! before, where a container may make such nodes: a small process, which can do nothing else, gets a directory and a name, and
//! answers with the number of an error. It ends with the monitor. Where no container of the VM may make nodes there is none,
//! until one joins that may: its join proxy brings it along.

use std::ffi::{CStr, CString};
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use vmm::virtio::fs::{MakeNode, Node};

use super::confine;
use crate::ipc;
use crate::log::{self, Level};

/// Mode, umask, uid, gid: 32 bits each; the device: 64.
const NUMBERS: usize = 24;
/// Said where the container had no right to device nodes when it was created, and a process that was executed later has.
const NONE: &str = "a device node is not made: create the container with CAP_MKNOD, not only a process of it";
/// Most bytes of a name, with the zero at its end.
const NAME: usize = 256;

/// The connections to such processes.
#[derive(Clone, Default)]
pub struct NodeMaker(Arc<Mutex<Vec<UnixStream>>>);

impl NodeMaker {
    /// Has nodes made by the process that is there.
    pub fn of(process: Option<OwnedFd>) -> Self {
        let maker = Self::default();
        maker.take_on(process);
        maker
    }

    /// Has nodes made by this process, as long as it is there.
    pub fn take_on(&self, process: Option<OwnedFd>) {
        self.processes().extend(process.map(UnixStream::from));
    }

    fn processes(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the process; gives the connection to it. To be called while this one has one thread, all its rights and little memory,
/// which is copied.
///
/// # Errors
/// There can be no more processes.
pub fn start() -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = ipc::pair()?;
    // SAFETY: this process has one thread, so the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("start the process that makes device nodes"),
        0 => {
            let _ = serve(theirs);
            // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(ours),
    }
}

impl MakeNode for NodeMaker {
    fn make(&self, node: &Node<'_>) -> io::Result<()> {
        let mut processes = self.processes();
        while let Some(process) = processes.last() {
            match ask(process, node) {
                // A join proxy's ends with it.
                Err(_) => drop(processes.pop()),
                Ok(0) => return Ok(()),
                Ok(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
        log::repeated(Level::Warning, NONE);
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Has a process make a node; gives the number of an error.
fn ask(process: &UnixStream, node: &Node<'_>) -> io::Result<i32> {
    let numbers = [node.mode, node.umask, node.uid, node.gid].map(u32::to_ne_bytes).concat();
    let request = [&numbers, &node.device.to_ne_bytes()[..], node.name.to_bytes_with_nul()].concat();
    if ipc::send_fds(process, &request, &[node.directory])? != request.len() {
        return Err(ErrorKind::BrokenPipe.into());
    }
    let mut answer = [0; 4];
    // It came with one call, and is read with one that the thread may make.
    if rustix::io::read(process, &mut answer)? != answer.len() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(i32::from_ne_bytes(answer))
}

/// The process: keeps nothing of the monitor's but the socket.
fn serve(socket: OwnedFd) -> io::Result<()> {
    const KEPT: i32 = 3;
    // SAFETY: the numbers are descriptors of this process, which has one thread and uses none but the socket; its owner is
    // forgotten.
    let socket = unsafe {
        if libc::dup2(socket.as_raw_fd(), KEPT) < 0 || libc::close_range(KEPT as u32 + 1, u32::MAX, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(socket);
        std::os::fd::BorrowedFd::borrow_raw(KEPT)
    };
    rustix::thread::set_name(c"node-maker")?;
    // What a user types at the container's terminal is not for this process.
    rustix::process::setsid()?;
    confine::make_nodes_only()?;
    loop {
        let mut bytes = [0; NUMBERS + NAME];
        let Some((length, directory)) = receive(socket, &mut bytes)? else { return Ok(()) };
        let made = directory.ok_or(ErrorKind::InvalidData.into()).and_then(|directory| {
            let (numbers, name) =
                bytes.get(..length).unwrap_or_default().split_at_checked(NUMBERS).ok_or(ErrorKind::InvalidData)?;
            make(&directory, numbers, name)
        });
        let error = made.err().map_or(0, |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO));
        rustix::io::write(socket, &error.to_ne_bytes())?;
    }
}

/// A request: its length, and the directory that came with it. None when the monitor is gone.
fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let directory = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((got.bytes > 0).then_some((got.bytes, directory)))
}

/// Makes a node. The monitor may lie: what it asks for is a device, in a directory that it has, by a name of one component.
fn make(directory: &OwnedFd, numbers: &[u8], name: &[u8]) -> io::Result<()> {
    let word =
        |at: usize| numbers.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let [mode, umask, uid, gid] = [0, 4, 8, 12].map(word);
    let device = u64::from(word(16)) | u64::from(word(20)) << 32;
    let name: CString = CStr::from_bytes_with_nul(name).map_err(|_| ErrorKind::InvalidData)?.to_owned();
    let one = !matches!(name.to_bytes(), b"" | b"." | b"..") && !name.to_bytes().contains(&b'/');
    if !one || !matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: none has pointers but mknodat, whose name is a C string that lives across the call.
    unsafe {
        libc::umask(umask & 0o777);
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        let made = libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device);
        let error = io::Error::last_os_error();
        libc::syscall(libc::SYS_setfsuid, 0);
        libc::syscall(libc::SYS_setfsgid, 0);
        if made == 0 { Ok(()) } else { Err(error) }
    }
}
