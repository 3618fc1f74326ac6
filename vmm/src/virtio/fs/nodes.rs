//! Device nodes, made by somebody else where this process may not.
//!
//! Only root of the host's own user namespace may make nodes of real devices (mknod(2)). A process that serves files from
//! within a namespace of its own leaves that to another one, to which it hands the directory.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

/// Makes device nodes.
pub trait MakeNode: Send {
    /// Makes a node. Called by the device's worker, for one request at a time, which waits meanwhile; only where the share's
    /// policy allows device nodes and the owner.
    ///
    /// # Errors
    /// The guest gets the error's number, `EIO` if it has none.
    fn make(&self, node: &Node<'_>) -> io::Result<()>;
}

/// A device node that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The directory that it is made in, open with `O_PATH`.
    pub directory: BorrowedFd<'a>,
    /// Its name there: one component, never `.` or `..`.
    pub name: &'a CStr,
    /// `S_IFCHR` or `S_IFBLK`, and permissions.
    pub mode: u32,
    /// Number of the device.
    pub device: u64,
    /// What is taken from the permissions, unless the directory has a default ACL.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory is setgid.
    pub gid: u32,
}
