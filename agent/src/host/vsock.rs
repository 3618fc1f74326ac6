//! AF_VSOCK sockets.

use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

/// How many connections may wait to be accepted. All that a few containers may have to sockets of the host can come at
/// once, and whatever finds no room is lost.
const BACKLOG: i32 = 1024;

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data; zero is a valid value of each of its fields.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn socket(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: socket takes plain numbers; the descriptor it gives is new and ours.
    unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0);
        if fd < 0 { Err(last_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A non-blocking listener on `port` of this guest.
pub fn listen(port: u32) -> Result<OwnedFd, Errno> {
    let fd = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address outlives the call and its size is its own.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    if bound < 0 {
        return Err(last_error());
    }
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// A blocking connection to `port` of the host.
pub fn connect_host(port: u32) -> Result<OwnedFd, Errno> {
    let fd = socket(0)?;
    let address = address(libc::VMADDR_CID_HOST, port);
    // SAFETY: the address outlives the call and its size is its own.
    let connected = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    if connected < 0 { Err(last_error()) } else { Ok(fd) }
}
