//! Directories that the guest is listing.
//!
//! A position in a directory is the cookie (`d_off`) that the host's file system gave for the entry before. A listing
//! that goes on where it was never seeks: in some file systems (tmpfs) a cookie counts entries, and seeking to one after
//! others were removed leaves some out, as `rm -r` would notice. So each open directory keeps what was read ahead of the
//! guest, for as many directories as [`MOST`].

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use crate::virtio::fs::request::{Errno, Served};
use crate::virtio::fs::sys;

/// Bytes of host entries read at a time: a few hundred names.
const READ_AHEAD: usize = 16 << 10;
/// Bytes of a `linux_dirent64` before its name: inode, cookie, record length, type.
const HOST_HEADER: usize = 19;
/// Directories in the middle of being listed: 4 MiB of entries at most.
const MOST: usize = 256;

/// The listings under way, the most recently used at the end.
#[derive(Default)]
pub struct Listings {
    of: Vec<Listing>,
}

/// Entries of one open directory, read from the host and not yet given to the guest.
pub struct Listing {
    /// The directory's handle.
    pub owner: u64,
    /// Position of the next entry to give.
    pub next: u64,
    bytes: Vec<u8>,
    at: usize,
}

/// A directory entry as the host gave it.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    pub inode: u64,
    /// Position after this entry.
    pub next: u64,
    pub kind: u8,
    pub name: &'a CStr,
    pub record: usize,
}

impl Listings {
    /// Drops what was read for a handle that is gone.
    pub fn forget(&mut self, fh: u64) {
        self.of.retain(|listing| listing.owner != fh);
    }

    /// Takes the listing of a handle at a position out, to be given back with [`Listings::put_back`].
    pub fn take(&mut self, fh: u64, directory: BorrowedFd, offset: u64) -> Served<Listing> {
        let found = self.of.iter().position(|listing| listing.owner == fh);
        let found = found.map(|index| self.of.remove(index));
        // From the start always afresh: that is what rewinddir is for.
        if let Some(listing) = found.filter(|listing| listing.next == offset && offset != 0) {
            return Ok(listing);
        }
        sys::seek(directory, offset, libc::SEEK_SET)?;
        Ok(Listing { owner: fh, next: offset, bytes: Vec::new(), at: 0 })
    }

    pub fn put_back(&mut self, listing: Listing) {
        if self.of.len() >= MOST {
            self.of.remove(0);
        }
        self.of.push(listing);
    }
}

impl Listing {
    /// The entry at the position, `None` at the end of the directory.
    pub fn peek(&mut self, directory: BorrowedFd) -> Served<Option<Entry<'_>>> {
        if self.at >= self.bytes.len() {
            self.bytes.resize(READ_AHEAD, 0);
            self.at = 0;
            let read = sys::getdents(directory, &mut self.bytes);
            // Of a directory at its end, or that cannot be read, nothing is kept.
            self.bytes.truncate(*read.as_ref().unwrap_or(&0));
            self.bytes.shrink_to_fit();
            read?;
        }
        let Some(bytes) = self.bytes.get(self.at..).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        Entry::parse(bytes).ok_or(Errno(libc::EIO)).map(Some)
    }

    /// Moves on past an entry.
    pub fn advance(&mut self, record: usize, next: u64) {
        self.at += record;
        self.next = next;
    }
}

impl<'a> Entry<'a> {
    /// The first `struct linux_dirent64` of what `getdents64` gave.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let inode = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
        let next = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let record = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
        let name = CStr::from_bytes_until_nul(bytes.get(HOST_HEADER..record)?).ok()?;
        Some(Self { inode, next, kind: *bytes.get(18)?, name, record })
    }

    pub fn is_dot(&self) -> bool {
        matches!(self.name.to_bytes(), b"." | b"..")
    }
}
