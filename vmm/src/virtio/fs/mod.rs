//! File system device (virtio 1.2, section 5.11) with our own FUSE server in it.
//!
//! ```text
//!  guest kernel                       this module, on a vCPU's thread (`at_exit`) or on the device's own
//!  ────────────                       ──────────────────────────────────────────────────────────────────
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
//! * All tables are bounded, so are all buffers, and locks, which the host's kernel keeps; sizes that the guest names are capped first. A guest
//!   may know more files than there are descriptors (see `cold`).
//! * Between two requests, and between the pieces of one that may take long (`FALLOCATE`), the worker looks at other events: no
//!   guest keeps it from stopping. Only `FSYNC`, `SYNCFS` and the freeing of a file by `UNLINK`, `RELEASE` or `SETATTR` take as long
//!   as the host's file system takes.
//!
//! Permissions inside the guest are checked by the guest's kernel (virtiofs always mounts with
//! `default_permissions`). The host gives new objects the caller's ids atomically (see `identity`). What
//! even a hostile kernel may not do to the files of a share its [`Policy`] says: owners, device nodes, setuid.
//!
//! # One object in several shares
//!
//! Shares may overlap: a directory and one in it, one that is read-only beside one that is not, a single file of a directory. Those
//! that [`Common`] says have something in common are entries of one directory, which is one file system to the guest, and a host
//! object that several of them reach is one inode there. The guest may do to it what any of these shares allows, and keep of
//! it what all of them allow (`shares`, `ways`).
//!
//! # Caching
//!
//! Names and attributes are valid for as long as the share's [`Cache`] says, and each open is checked against what
//! the guest was told (see `coherence`). There is no write-back cache: a write has
//! reached the host when `write` returns. Data pages stay in the guest between two opens exactly when
//! the host's change time is what it was at the last open, which gives close-to-open coherence with the
//! host and other guests; `AUTO_INVAL_DATA` handles files held open. Names that don't exist are not
//! cached. A memory-mapped file changed from outside while mapped is seen late, as on NFS.
//!
//! # Opening with one request
//!
//! Our guest's kernel and this server agree in `INIT` on `OPEN_AT_ONCE`: `LOOKUP_OPEN`, content of small files in replies that open
//! them (`operations::opens`), and messages without a reply, `FORGET` and `RELEASE`, that are served along with requests (`device`).
//!
//! # Events
//!
//! What others change is told to a guest that watches it (inotify), by a queue and messages that only our guest kernel has: see
//! `told`. The guest forgets what it knows of the object before its watchers hear of the change.
//!
//! # Saving and restoring
//!
//! The device saves what the guest knows and has open as plain data (`saved`), which is
//! made again on another device with shares of the same names, wherever these are mounted now: nodeids and
//! handles are the same. Changes that the host made meanwhile are treated as those made while the guest runs.
//!
//! * **Objects** are restored cold, and found by name when they are used. One is the same as before if its
//!   kind, inode number and birth time are; else the guest gets `ESTALE` and looks the name up anew. Numbers of
//!   devices and mounts don't count: they are others in each process, and on another overlay of the same
//!   layers, where files of the lower layers keep inode number and birth time. What had been copied up
//!   there has another birth time, so a clone never takes the layer's file for the container's. Where a file
//!   system has no birth times the inode number has to do.
//! * **Directories** are looked up at once, which tells what the mounts are now (`walk`). One that is on the same
//!   disk has to be the same. Elsewhere (overlayfs, tmpfs, btrfs, NFS: device numbers without a major one) its
//!   path and kind are enough: overlays may number directories anew at each mount, and engines make some in
//!   every upper layer. A directory holds nothing itself, and what is below is judged by the rule above.
//! * **The root of a share** is what the new share says. The share may be missing if the guest knows nothing of it.
//! * **Handles** are opened again at once, with the flags that the host says they are open with. Where the
//!   file isn't there any more, or is another one, the handle stays and answers `ESTALE`. Where the host refuses (no
//!   right, a share that is read-only now, too few descriptors) restoring fails.
//! * **Without a name** (deleted, `O_TMPFILE`) nothing can be found again. If such a file is open, saving fails and
//!   says how many there are and which: going on without would lose data that exists nowhere else. If
//!   it isn't, it is `ESTALE` after the restore.
//! * **Positions in directories** are the host's (`d_off`). Positions mean the same in a directory opened again on ext4,
//!   xfs, btrfs, and tmpfs since Linux 6.6. On older tmpfs and in merged directories of overlayfs they count
//!   entries: a listing under way may miss or repeat some if the directory changed between save and restore.
//!
//! An object takes 57 bytes and its name (72 with names of 15 bytes), a handle 17. Saving a cold object costs no
//! system call, a hot one two (10 µs) and a cold parent's; restoring costs three for a directory and none for
//! anything else. 100,000 cold ones in 100 directories: 7.2 MB, saved in 15 ms, restored in 23 ms.
//!
//! # Not offered
//!
//! * `SETLKW`: nothing waits here (see `locks`). Locks of the root file system the guest keeps to itself.
//! * `IOCTL` (no `chattr`), `POLL`, `BMAP`, DAX windows, write-back caching.
//! * `O_DIRECT` is dropped: it asks for the guest's buffers to be aligned for a device that the guest
//!   cannot know; the guest's kernel bypasses its own page cache all the same.
//!
//! # System calls
//!
//! The device's own thread makes these, and vCPUs' those that `at_exit` does not leave to it. Before their hooks: `unshare(CLONE_FS)`, `fchdir`, `umask`,
//! `prctl(PR_SET_SECUREBITS)`, `capget`, `capset`. When serving: `openat`, `close`, `statx`, `fstatfs`,
//! `getdents64`, `lseek`, `preadv`, `preadv2` (vCPUs), `pwritev2`, `fallocate`, `ftruncate`, `copy_file_range`, `fsync`,
//! `fdatasync`, `syncfs`, `readlinkat` (also of `/proc/self/fd`), `symlinkat`, `mknodat`, `mkdirat`, `unlinkat`, `renameat2`,
//! `fanotify_init`, `fanotify_mark`, `name_to_handle_at`, `read`, `linkat`, `fchmodat`, `fchownat`, `utimensat`, `getxattr`, `setxattr`, `listxattr`,
//! `removexattr`, `setfsuid`, `setfsgid`, `umask`, `fcntl(F_DUPFD_CLOEXEC)`, `fcntl(F_GETFL)`, `fcntl(F_OFD_*)`, `flock`.
//! When saving and restoring, on the thread that does it: `openat`, `close`, `statx`, `fstatfs`, `readlinkat`, `getdents64`,
//! `fcntl` (`F_GETFL`, `F_DUPFD_CLOEXEC`).
//! Capabilities: `CHOWN`, `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `FSETID`, `MKNOD`, `SETFCAP`,
//! `SETUID`, `SETGID`, and `SETPCAP` until the thread serves.

mod at_exit;
mod coherence;
mod counters;
mod device;
mod dispatch;
mod fuse;
mod identity;
mod nodes;
mod operations;
mod place;
mod policy;
mod progress;
mod request;
mod saved;
mod server;
mod session;
mod share;
mod shares;
mod sharing;
mod sys;
mod table;
mod told;
mod ways;

#[cfg(test)]
mod tests;

pub use at_exit::is_local_kind;
pub use coherence::Cache;
pub use counters::Counters;
pub use device::Fs;
pub use nodes::{MakeNode, Node};
pub use policy::{IdSet, Ids, Policy};
pub use progress::{Moment, Progress};
pub use share::{Common, Share};
pub use sharing::Sharing;
pub use sys::own_descriptors;
