//! File system device (virtio 1.2, section 5.11) with our own FUSE server in it.
//!
//! ```text
//!  guest kernel                       this module, on the device's one worker thread
//!  ────────────                       ───────────────────────────────────────────────
//!  mount -t virtiofs shares /x
//!    │ FUSE request  ──virtqueue──▶   device   rings in, rings out
//!    │                                server   header and sizes checked once, one function per opcode
//!    ▼                                  │ names · attributes · files · directories · xattrs · session
//!  /x/            nodeid 1, synthetic   │
//!  ├─ rootfs/     share 0: a submount ──┤ inodes: nodeid → O_PATH descriptor    handles: fh → open file
//!  ├─ data/       share 1: a submount   ▼
//!  └─ hosts       share 2: one file   host kernel, below the share's descriptor
//! ```
//!
//! # What keeps a hostile guest inside its shares
//!
//! * The guest names objects by nodeid (an index into our table) and by *one* path component, checked
//!   by `request::Request::name`: never empty, `.`, `..` or with a slash in it.
//! * A component is looked up with `O_PATH | O_NOFOLLOW` below a descriptor that we hold. The host
//!   never follows a symbolic link, nor a path, of the guest's.
//! * Objects are opened for I/O only through `/proc/self/fd` of such a descriptor, and only regular
//!   files and directories: FIFOs, sockets and devices belong to the guest's own kernel.
//! * Both tables are bounded, so are all buffers; sizes that the guest names are capped first. A guest
//!   may know more files than there are descriptors (see `cold`).
//!
//! Permissions inside the guest are checked by the guest's kernel (virtiofs always mounts with
//! `default_permissions`). The host gives new objects the caller's ids atomically (see `identity`).
//!
//! # Caching
//!
//! Entries are valid for one second, and so are attributes, those of regular files for 50 ms;
//! there is no write-back cache: a write has
//! reached the host when `write` returns. Data pages stay in the guest between two opens exactly when
//! the host's change time is what it was at the last open, which gives close-to-open coherence with the
//! host and other guests; `AUTO_INVAL_DATA` handles files held open. Names that don't exist are not
//! cached. A memory-mapped file changed from outside while mapped is seen late, as on NFS.
//!
//! # Not offered
//!
//! * `GETLK`/`SETLK`: the guest keeps POSIX and BSD locks to itself, so they hold between all processes
//!   of one VM and not between two VMs on one volume.
//! * `IOCTL` (no `chattr`), `POLL`, `BMAP`, DAX windows, notifications, write-back caching.
//! * `O_DIRECT` is dropped: it asks for the guest's buffers to be aligned for a device that the guest
//!   cannot know; the guest's kernel bypasses its own page cache all the same.
//!
//! # System calls
//!
//! For whoever writes the worker's filter. At activation: `unshare(CLONE_FS)`, `fchdir`, `umask`,
//! `prctl(PR_SET_SECUREBITS)`, `capget`, `capset`. When serving: `openat`, `close`, `statx`, `fstat`, `fstatfs`,
//! `getdents64`, `lseek`, `preadv`, `pwritev2`, `fallocate`, `ftruncate`, `copy_file_range`, `fsync`,
//! `fdatasync`, `syncfs`, `readlinkat` (also of `/proc/self/fd`), `symlinkat`, `mknodat`, `mkdirat`, `unlinkat`, `renameat2`,
//! `linkat`, `fchmod`, `fchmodat`, `fchownat`, `utimensat`, `getxattr`, `setxattr`, `listxattr`,
//! `removexattr`, `setfsuid`, `setfsgid`, `umask`, `fcntl(F_DUPFD_CLOEXEC)`, `fcntl(F_GETFL)`.
//! Capabilities: `CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `MKNOD`, `SETFCAP`,
//! `SETUID`, `SETGID`, and `SETPCAP` until activation.

mod attributes;
mod cold;
mod counters;
mod device;
mod directories;
mod files;
mod fuse;
mod handles;
mod identity;
mod inodes;
mod names;
mod request;
mod server;
mod session;
mod sharing;
mod slab;
mod sys;
mod xattrs;

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;

pub use counters::Counters;
pub use device::Fs;
pub use sharing::Sharing;

/// One thing of the host's that the guest may use: an entry of the device's root directory.
#[derive(Debug)]
pub struct Share {
    /// Its name there: one path component, unique in the device, at most 255 bytes.
    pub name: String,
    /// An `O_PATH` descriptor of a directory, or of a single file, socket or device.
    pub root: OwnedFd,
    /// Whether every change below it fails with `EROFS`.
    pub read_only: bool,
}
