//! Which requests a vCPU's thread serves, at the exit by which the guest notifies of them.
//!
//! The guest's processor stands still meanwhile, with everything that would run on it, so a request is served there only if it
//! ends once the host's processor has done its work: calls that find what they need in memory, on file systems of the host's
//! own disks and memory. Everything else is left to the device's own thread, from which the guest hears by an interrupt:
//!
//! * whatever reaches a network or FUSE file system, where somebody else may take for ever to answer;
//! * what writes to a disk and waits for it: `FSYNC`, `FSYNCDIR`, `SYNCFS`;
//! * what may take long: `FALLOCATE`, `COPY_FILE_RANGE`, changes of size, `INIT` and `DESTROY`, which forget everything, and much data at once;
//! * pages that the guest's cache writes back: its kernel holds a lock while it sends them, for which other processors spin;
//! * reads of what is not in the host's page cache, where the host's file system can tell;
//! * `MKNOD`, for which another process may be asked, `WATCH`, as the device's own thread waits for what that brings, and `FORGET` while
//!   something is watched.
//!
//! Local file systems can wait, too: a directory that is not in memory is read from the disk, a change waits for the journal to be written.
//! A process under runc waits for the same as long, but only that process.

use std::os::fd::BorrowedFd;

use rustix::fs::fstatfs;

use super::fuse::{InHeader, opcode};
use super::request::{Errno, Served};
use super::server::Server;
use super::shares;
use super::table::inode::Inode;

/// Most bytes of a request and its reply: 64 KiB of data, and what stands before them.
pub(super) const MOST_BYTES: usize = (64 << 10) + 4096;

/// File systems that are in this host's memory and on its disks (`linux/magic.h`): tmpfs, ramfs, overlayfs, ext4, xfs, btrfs, f2fs,
/// squashfs, erofs, iso9660. Another one may be served by somebody who does not answer.
const LOCAL: [u32; 10] = [
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x7371_7368,
    0xe0f5_e1e2,
    0x9660,
];

/// Whether what a descriptor stands for is on a file system of the host's own.
pub(super) fn is_local(object: BorrowedFd) -> bool {
    fstatfs(object).is_ok_and(|host| is_local_kind(host.f_type as u32))
}

/// Whether file systems of this magic number are the host's own. Those of others may be served by somebody who does not answer: give
/// each a device of its own.
pub fn is_local_kind(magic: u32) -> bool {
    LOCAL.contains(&magic)
}

/// What a request is about besides the nodeid in its header.
enum Other {
    /// An open file, by its handle.
    Handle(u64),
    /// Another object.
    Node(u64),
}

impl Server {
    /// Fails with [`Errno::WOULD_WAIT`] where a request is to be left to the device's own thread.
    pub fn check_time(&self, header: &InHeader, body: &[u8], bytes: usize) -> Served {
        // Its thread alone makes calls for watches, and this may end one.
        let unwatches = matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) && self.told.marks.any();
        let slow = unwatches || is_slow(header.opcode);
        if self.may_wait || !slow && bytes <= MOST_BYTES && self.is_near(header, body) {
            return Ok(());
        }
        Err(Errno::WOULD_WAIT)
    }

    /// Fails with [`Errno::WOULD_WAIT`] on a vCPU's thread.
    pub fn takes_long(&self) -> Served {
        if self.may_wait { Ok(()) } else { Err(Errno::WOULD_WAIT) }
    }

    /// Whether everything that a request names is on file systems of the host's own.
    fn is_near(&self, header: &InHeader, body: &[u8]) -> bool {
        if header.opcode == opcode::BATCH_FORGET {
            // It names objects anywhere. To let one go may be to write it back.
            return self.shares.are_local();
        }
        self.is_node_near(header.nodeid)
            && match other(header.opcode, body) {
                Some(Other::Node(nodeid)) => self.is_node_near(nodeid),
                // No handle is an error, at once.
                Some(Other::Handle(fh)) => self.handles.way(fh).is_none_or(|way| self.shares.rules(way).local),
                None => true,
            }
    }

    fn is_node_near(&self, nodeid: u64) -> bool {
        let is_near = |inode: &Inode| inode.key.mount == 0 && self.shares.rules(inode.way).local;
        shares::is_own(nodeid) || self.inodes.peek(nodeid).is_ok_and(is_near)
    }
}

fn is_slow(code: u32) -> bool {
    use opcode::*;
    matches!(code, INIT | DESTROY | SYNCFS | FSYNC | FSYNCDIR | FALLOCATE | COPY_FILE_RANGE | MKNOD | WATCH)
}

/// What else a request names; where it is too short for that, nothing is done for it.
fn other(code: u32, body: &[u8]) -> Option<Other> {
    use opcode::*;
    let number = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    match code {
        READ | WRITE | READDIR | READDIRPLUS | FLUSH | RELEASE | RELEASEDIR | LSEEK | GETLK | SETLK => {
            number(0).map(Other::Handle)
        }
        // Behind flags and padding.
        GETATTR | SETATTR | STATX => number(8).map(Other::Handle),
        RENAME | RENAME2 | LINK => number(0).map(Other::Node),
        _ => None,
    }
}
