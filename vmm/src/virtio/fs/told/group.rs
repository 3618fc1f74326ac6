//! The host's side: a fanotify group.
//!
//! It needs no capability, so it tells only of objects that are marked one by one, and this process marks those that it serves.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};

use rustix::fs::fstatvfs;

use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys;

/// Events of a marked object, besides those that the guest knows by the same numbers.
const ON_DIRECTORIES: u64 = libc::FAN_ONDIR;
/// A rename, with both names where both directories are marked (Linux 5.17).
pub const RENAME: u64 = 0x1000_0000;
/// `name_to_handle_at(2)`: a handle that only has to tell objects apart (Linux 6.5).
const AT_HANDLE_FID: i32 = 0x200;
/// Longest handle (`MAX_HANDLE_SZ`).
const HANDLE_MAX: usize = 128;

/// What the host calls an object in events: its file system, then kind and bytes of its handle.
pub type Object = Box<[u8]>;

/// A fanotify group.
pub struct Group(File);

/// `struct file_handle` with room for the longest.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_MAX],
}

impl Group {
    /// A group of events with directory, name, and the object where it is marked itself.
    ///
    /// # Errors
    /// The host's kernel is older than 5.13, or has as many groups of this user as it may.
    pub fn new() -> Served<Self> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let flags = flags | libc::FAN_REPORT_FID | libc::FAN_REPORT_DIR_FID | libc::FAN_REPORT_NAME;
        // SAFETY: there are no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_fanotify_init, flags, libc::O_RDONLY | libc::O_CLOEXEC) };
        let fd = RawFd::try_from(sys::result(fd as isize)?).map_err(|_| Errno(libc::EMFILE))?;
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// Marks an object for these events as well, or unmarks it wholly. `proc_fd` is `/proc/self/fd`.
    pub fn mark(&self, proc_fd: BorrowedFd, object: BorrowedFd, mask: u64, add: bool) -> Served {
        let command = if add { libc::FAN_MARK_ADD } else { libc::FAN_MARK_REMOVE };
        let name = sys::proc_name(object);
        self.call(command, mask | ON_DIRECTORIES, proc_fd.as_raw_fd(), name.as_c_str())
    }

    /// Unmarks everything.
    pub fn flush(&self) {
        // There is nothing in it that can fail.
        let _ = self.call(libc::FAN_MARK_FLUSH, 0, libc::AT_FDCWD, c"/");
    }

    fn call(&self, command: u32, mask: u64, directory: RawFd, name: &CStr) -> Served {
        // SAFETY: the name is a C string that lives across the call.
        let done = unsafe {
            libc::syscall(libc::SYS_fanotify_mark, self.0.as_raw_fd(), command, mask, directory, name.as_ptr())
        };
        sys::result(done as isize).map(drop)
    }

    /// Reads events; how many bytes there are. None when there is no event.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        (&self.0).read(buffer).unwrap_or(0)
    }

    /// The descriptor, which is readable when there are events.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What events will call an object.
pub fn object(fd: BorrowedFd) -> Served<Object> {
    let mut handle = Handle { bytes: 0, kind: 0, handle: [0; HANDLE_MAX] };
    name(fd, &mut handle, AT_HANDLE_FID).or_else(|_| name(fd, &mut handle, 0))?;
    let bytes = handle.handle.get(..handle.bytes as usize).unwrap_or_default();
    let system = fstatvfs(fd)?.f_fsid.to_ne_bytes();
    Ok([&system, &handle.bytes.to_ne_bytes()[..], &handle.kind.to_ne_bytes(), bytes].concat().into())
}

fn name(fd: BorrowedFd, handle: &mut Handle, flags: i32) -> Served {
    handle.bytes = HANDLE_MAX as u32;
    let (mut mount, flags) = (0i32, flags | libc::AT_EMPTY_PATH);
    // SAFETY: the handle has the room that it says it has, and the other pointers are to a C string and to a number.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut *handle,
            &raw mut mount,
            flags,
        )
    };
    sys::result(done as isize).map(drop)
}
