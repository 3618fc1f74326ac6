//! Attributes of mounts (mount_setattr(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::log;

/// Has a copied mount, and those below it, hear of no later mounts, and makes them read-only.
///
/// # Errors
/// The kernel's.
pub fn detach(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let attr_set = attributes(read_only);
    set_where_known(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 })
}

/// Attributes of each share's mounts. The guest cannot write to a read-only one in any case, and the monitor opens no devices.
fn attributes(read_only: bool) -> u64 {
    libc::MOUNT_ATTR_NODEV | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 }
}

/// Has no device be opened by its node on a share's mount, and those below it, and makes them read-only if the share is.
///
/// # Errors
/// The kernel's.
pub fn restrict(mount: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let attr_set = attributes(read_only);
    set_where_known(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Sets attributes where the kernel knows how to.
fn set_where_known(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    match set(mount, attributes, true) {
        // Before Linux 5.12.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            log::debug(&format!("mount_setattr: {error}"));
            Ok(())
        }
        done => done,
    }
}

/// Makes a copied mount, and those below it, read-only.
///
/// # Errors
/// The kernel's.
pub fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_RDONLY;
    set(mount, &libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 }, true)
}

/// `mount_setattr(2)`, for which there is no wrapper.
///
/// # Errors
/// The kernel's.
pub fn set(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (size, path) = (size_of_val(attributes), c"".as_ptr());
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the path is an empty C string; the attributes live through the call, and their size is given.
    let done = unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), path, flags, attributes, size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
