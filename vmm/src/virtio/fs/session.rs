//! Beginning and end: what is agreed on with the guest's kernel, and flushing everything.

use rustix::fs::OFlags;

use super::fuse::{self, InitIn, InitIn2, InitOut, init};
use super::request::{Errno, Output, Request, Served};
use super::server::Server;
use crate::virtio::Error;

/// Bytes of data in one `READ` or `WRITE`: 256 pages, the most that Linux asks for by default.
const MAX_WRITE: u32 = 1 << 20;
/// Background requests (read-ahead, direct I/O) that the guest may have under way.
const MAX_BACKGROUND: u16 = 64;

/// What this server can do. Left out on purpose: `POSIX_LOCKS` and `FLOCK_LOCKS` (locks stay in the
/// guest), `EXPORT_SUPPORT` (it would look up `..`), `WRITEBACK_CACHE` (a write must reach the host),
/// `NO_OPEN_SUPPORT` (saves two requests per file, but then nothing tells when a file is in use, and
/// every host read would have to open), `NO_OPENDIR_SUPPORT` and `CACHE_DIR` (positions in a directory
/// are only valid in one open directory on overlayfs), `ALLOW_IDMAP` (requests would lose their ids).
const OFFERED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT;

/// Version of what [`Session::save`] writes.
const VERSION: u32 = 1;

/// What was agreed on in `INIT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    open: bool,
    flags: u64,
}

impl Session {
    /// Whether `INIT` was done and `DESTROY` wasn't.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether this bit of [`init`] is in force.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Twelve bytes, little-endian: version, then the flags in force, their highest bit set when open.
    pub fn save(&self) -> [u8; 12] {
        let flags = self.flags | u64::from(self.open) << 63;
        let mut state = [0; 12];
        let (version, rest) = state.split_at_mut(4);
        version.copy_from_slice(&VERSION.to_le_bytes());
        rest.copy_from_slice(&flags.to_le_bytes());
        state
    }

    /// Takes back what [`Session::save`] gave.
    pub fn restore(state: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Protocol("not a file system device's state, or of another version");
        let Some((version, flags)) = state.split_at_checked(4) else { return Err(wrong) };
        let flags = <[u8; 8]>::try_from(flags).map(u64::from_le_bytes);
        match flags {
            Ok(flags) if version == VERSION.to_le_bytes() => {
                Ok(Self { open: flags >> 63 == 1, flags: flags & OFFERED })
            }
            _ => Err(wrong),
        }
    }
}

impl Server {
    /// `INIT`: agrees on a version and on flags. A second one starts from scratch.
    pub(super) fn init(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: InitIn = request.take()?;
        if args.major != fuse::MAJOR || args.minor < fuse::OLDEST_MINOR {
            return Err(Errno(libc::EPROTO));
        }
        let mut wanted = u64::from(args.flags);
        if wanted & init::INIT_EXT != 0 {
            wanted |= u64::from(request.take::<InitIn2>()?.flags2) << 32;
        }
        self.forget_guest();
        let flags = agree(wanted);
        output.put(&InitOut {
            major: fuse::MAJOR,
            minor: args.minor.min(fuse::MINOR),
            max_readahead: args.max_readahead.min(MAX_WRITE),
            flags: flags as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: (MAX_WRITE / 4096) as u16,
            flags2: (flags >> 32) as u32,
            ..InitOut::default()
        })?;
        self.session = Session { open: true, flags };
        Ok(())
    }

    /// `DESTROY`: the guest unmounted.
    pub(super) fn destroy(&mut self, _: &mut Request, _: &mut Output) -> Served {
        self.forget_guest();
        Ok(())
    }

    /// `SYNCFS`: flushes the host's file system below a directory, or below all writable shares.
    pub(super) fn syncfs(&mut self, request: &mut Request, _: &mut Output) -> Served {
        if request.header.nodeid != fuse::ROOT_ID {
            return self.sync_below(request.header.nodeid);
        }
        let shares = self.all_shares().filter(|share| !share.read_only);
        // All of them, whatever becomes of one.
        let results: Vec<Served> = shares.map(|share| self.sync_below(share.nodeid)).collect();
        results.into_iter().collect()
    }

    fn sync_below(&self, nodeid: u64) -> Served {
        let inode = self.inode(nodeid)?;
        if self.is_read_only(inode) || inode.check_openable().is_err() {
            return Ok(());
        }
        let file = self.reopen(inode, OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(rustix::fs::syncfs(file)?)
    }
}

/// What both sides can do. ACLs need that the host applies the umask (a directory's default ACL comes
/// in its place) and that setting one can drop setgid.
fn agree(wanted: u64) -> u64 {
    let flags = wanted & OFFERED;
    let acl_needs = init::DONT_MASK | init::SETXATTR_EXT;
    if flags & acl_needs == acl_needs { flags } else { flags & !init::POSIX_ACL }
}
