//! The FUSE wire format, protocol 7.31 to 7.41, as in `include/uapi/linux/fuse.h`: facts only.
//!
//! All fields are in the host's byte order (virtio 1.2, section 5.11.6). Names of structures are those
//! of the header without `fuse_`. Only what this server uses is here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version spoken.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version spoken.
pub(super) const MINOR: u32 = 41;
/// The oldest minor version spoken: the first where virtiofs has all that is used here.
pub(super) const OLDEST_MINOR: u32 = 31;
/// The node of the root directory.
pub(super) const ROOT_ID: u64 = 1;

/// Declares the requests and their names.
macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// Requests, by number.
        pub(super) mod opcode {
            #![allow(missing_docs)]
            $(pub const $name: u32 = $number;)*

            /// The name of a request, `other` if this server doesn't know it.
            pub fn name(code: u32) -> &'static str {
                match code {
                    $($name => stringify!($name),)*
                    _ => "other",
                }
            }
        }
    };
}

opcodes! {
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    RELEASE = 18,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    INIT = 26,
    OPENDIR = 27,
    READDIR = 28,
    RELEASEDIR = 29,
    FSYNCDIR = 30,
    GETLK = 31,
    SETLK = 32,
    CREATE = 35,
    INTERRUPT = 36,
    DESTROY = 38,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    SYNCFS = 50,
    TMPFILE = 51,
    STATX = 52,
    LOOKUP_OPEN = 60,
    // What the guest watches. Only our guest kernel knows it (guest-kernel/patches).
    WATCH = 29303,
}

/// Bits of `INIT`: `flags` in the low half, `flags2` in the high half.
pub(super) mod init {
    #![allow(missing_docs)]
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    /// `LOOKUP_OPEN`, [`super::CREATE_OR_LOOKUP`], content in replies, and `RELEASE` without one. Only our guest kernel knows it
    /// (guest-kernel/patches).
    pub const OPEN_AT_ONCE: u64 = 1 << 62;
}

/// Bits of [`SetattrIn::valid`].
pub(super) mod fattr {
    #![allow(missing_docs)]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Bit of [`OpenOut::open_flags`]: pages of the last open are still good.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Bit of [`OpenOut::open_flags`]: `close` need not send `FLUSH`.
pub(super) const FOPEN_NOFLUSH: u32 = 1 << 5;
/// Bit of [`OpenOut::open_flags`]: locks are the server's. Only our guest kernel knows it (guest-kernel/patches).
pub(super) const FOPEN_SERVER_LOCKS: u32 = 1 << 30;
/// Bit of [`OpenOut::open_flags`]: nothing is open. With [`init::OPEN_AT_ONCE`].
pub(super) const FOPEN_LOOKED_UP: u32 = 1 << 29;
/// Bit of [`OpenOut::open_flags`]: all of the file's content follows. With [`init::OPEN_AT_ONCE`].
pub(super) const FOPEN_CONTENT: u32 = 1 << 28;
/// Bit of [`CreateIn::open_flags`]: what is there already is to be looked up, and not opened. With [`init::OPEN_AT_ONCE`].
pub(super) const CREATE_OR_LOOKUP: u32 = 1 << 30;
/// Bit of [`LkIn::lk_flags`]: a lock of flock(2).
pub(super) const LK_FLOCK: u32 = 1 << 0;
/// Bit of [`OpenIn::open_flags`] and [`CreateIn::open_flags`]: truncating drops setuid and setgid.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// Bit of [`GetattrIn::flags`]: `fh` is meant.
pub(super) const GETATTR_FH: u32 = 1 << 0;
/// Bit of [`WriteIn::write_flags`]: from the page cache, so the offset counts even with `O_APPEND`.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// Bit of [`WriteIn::write_flags`]: the write drops setuid and setgid.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// Bit of [`FsyncIn::flags`]: data only.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// Bit of [`SetxattrIn::setxattr_flags`]: setting this ACL drops setgid.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Bit of [`Attr::flags`]: a directory where another file system begins.
pub(super) const ATTR_SUBMOUNT: u32 = 1 << 0;
/// Bit of [`Attr::flags`] and [`StatxOut::flags`]: the file may change once more without its times telling. Only our guest kernel
/// knows it (guest-kernel/patches).
pub(super) const ATTR_RECENT: u32 = 1 << 30;
/// Where the error of a reply is: a message about an event, which is no reply. Only our guest kernel knows it.
pub(super) const NOTIFY_EVENT: i32 = 29303;
/// Feature bit of the device: a last queue, for such messages. Only our guest kernel knows it.
pub(super) const FEATURE_EVENTS: u64 = 1 << 20;

/// Declares structures of the wire format that come from the guest.
macro_rules! wire {
    ($($(#[$meta:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(super) struct $name { $(pub $field: $type,)* }
    )*};
}

wire! {
    /// Before every request. `len` counts this header too.
    struct InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// Before every reply. `error` is 0 or a negative errno, and then nothing follows.
    struct OutHeader { len: u32, error: i32, unique: u64, }
    /// What an object is like. Times in seconds and nanoseconds; `blocks` of 512 bytes.
    struct Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// A name's object, and for how long name and attributes may be believed.
    struct EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// Attributes and for how long they may be believed.
    struct AttrOut { attr_valid: u64, attr_valid_nsec: u32, padding: u32, attr: Attr, }
    struct ForgetIn { nlookup: u64, }
    struct BatchForgetIn { count: u32, padding: u32, }
    struct ForgetOne { nodeid: u64, nlookup: u64, }
    struct GetattrIn { flags: u32, padding: u32, fh: u64, }
    struct SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// Followed by the name.
    struct MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// Followed by the name.
    struct MkdirIn { mode: u32, umask: u32, }
    /// Followed by the old and the new name.
    struct RenameIn { newdir: u64, }
    /// Followed by the old and the new name.
    struct Rename2In { newdir: u64, flags: u32, padding: u32, }
    /// Followed by the new name; the header's node is the directory of that.
    struct LinkIn { oldnodeid: u64, }
    struct OpenIn { flags: u32, open_flags: u32, }
    /// Followed by the name.
    struct CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    struct OpenOut { fh: u64, open_flags: u32, backing_id: i32, }
    struct ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    struct FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// `READ`, `READDIR` and `READDIRPLUS`.
    struct ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// Followed by `size` bytes.
    struct WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    struct WriteOut { size: u32, padding: u32, }
    struct StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    struct FsyncIn { fh: u64, flags: u32, padding: u32, }
    /// Followed by the name and `size` bytes.
    struct SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    /// [`SetxattrIn`] of a driver without `SETXATTR_EXT`.
    struct SetxattrCompatIn { size: u32, flags: u32, }
    /// `GETXATTR`: followed by the name. `size` 0 asks for the size.
    struct GetxattrIn { size: u32, padding: u32, }
    struct GetxattrOut { size: u32, padding: u32, }
    struct InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// Follows [`InitIn`] where `INIT_EXT` is set.
    struct InitIn2 { flags2: u32, unused: [u32; 11], }
    struct InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        unused: [u32; 6],
    }
    struct FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// Followed by the name, padded with NUL to a multiple of eight.
    struct Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
    struct LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// `typ` is `F_RDLCK`, `F_WRLCK` or `F_UNLCK`, from byte `start` to byte `end`.
    struct LkIn { fh: u64, owner: u64, start: u64, end: u64, typ: u32, pid: u32, lk_flags: u32, padding: u32, }
    struct LkOut { start: u64, end: u64, typ: u32, pid: u32, }
    struct LseekOut { offset: u64, }
    /// Events of inotify(7).
    struct WatchIn { mask: u32, padding: u32, }
    /// Followed by the two names.
    struct NotifyEventOut {
        parent: u64, child: u64, newparent: u64, mask: u32, namelen: u16, newnamelen: u16,
    }
    struct CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    struct StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    struct SxTime { sec: i64, nsec: u32, reserved: i32, }
    struct StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2],
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
}
