//! Beginning and end of a session with the guest's kernel, and flushing everything.

use rustix::fs::OFlags;

use crate::virtio::fs::fuse::{self, InitIn, InitIn2, InitOut, init};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::session::Session;
use crate::virtio::fs::shares;

/// Bytes of data in one `READ` or `WRITE`: 256 pages, the most that Linux asks for by default.
const MAX_WRITE: u32 = 1 << 20;
/// Background requests (read-ahead, direct I/O) that the guest may have under way.
const MAX_BACKGROUND: u16 = 64;

impl Server {
    /// `INIT`: agrees on a version and on flags. A second one starts from scratch.
    pub fn init(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: InitIn = request.take()?;
        if args.major != fuse::MAJOR || args.minor < fuse::OLDEST_MINOR {
            return Err(Errno(libc::EPROTO));
        }
        let mut wanted = u64::from(args.flags);
        if wanted & init::INIT_EXT != 0 {
            wanted |= u64::from(request.take::<InitIn2>()?.flags2) << 32;
        }
        if !self.at_once {
            wanted &= !init::OPEN_AT_ONCE;
        }
        self.forget_guest();
        let session = Session::agreed(wanted);
        let flags = session.flags();
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
        self.session = session;
        Ok(())
    }

    /// `DESTROY`: the guest unmounted.
    pub fn destroy(&mut self, _: &mut Request, _: &mut Output) -> Served {
        self.forget_guest();
        Ok(())
    }

    /// `SYNCFS`: flushes the host's file system below a directory, or below all writable shares.
    pub fn syncfs(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let nodeid = request.header.nodeid;
        if !shares::is_own(nodeid) {
            return self.sync_below(nodeid);
        }
        // All of them, whatever becomes of one.
        let results: Vec<Served> = self.shares.below(nodeid).map(|share| self.sync_below(share.nodeid)).collect();
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
