//! Reading directories.
//!
//! The position that the guest gives is the cookie (`d_off`) that the host's file system gave for the
//! entry before. A listing that goes on where it was never seeks: in some file systems (tmpfs) a cookie counts
//! entries, and seeking to one after others were removed leaves some out, as `rm -r` would notice. So each open
//! directory keeps what was read ahead of the guest, for as many directories as [`MOST`].

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;
use zerocopy::IntoBytes;

use super::fuse::{Dirent, EntryOut, OpenIn, OpenOut, ROOT_ID, ReadIn};
use super::handles::Handle;
use super::request::{Errno, Output, Request, Served};
use super::server::Server;
use super::sys;

/// Bytes of host entries read at a time: a few hundred names.
const READ_AHEAD: usize = 16 << 10;
/// Bytes of a `linux_dirent64` before its name: inode, cookie, record length, type.
const HOST_HEADER: usize = 19;
/// Entries of the root directory before its shares: `.` and `..`.
const DOTS: u64 = 2;

/// Directories in the middle of being listed: 4 MiB of entries at most.
const MOST: usize = 256;

/// The listings under way, the one that went on last at the end.
#[derive(Default)]
pub(super) struct Listings {
    of: Vec<Listing>,
}

/// Entries of one open directory, read from the host and not yet given to the guest.
struct Listing {
    /// The handle.
    owner: u64,
    /// Position of the next one to give.
    next: u64,
    bytes: Vec<u8>,
    at: usize,
}

/// One entry as the host gave it.
#[derive(Clone, Copy)]
struct Entry<'a> {
    inode: u64,
    /// The position after it.
    next: u64,
    kind: u8,
    name: &'a CStr,
    record: usize,
}

impl Listings {
    /// Drops what was read for a handle that is gone.
    pub fn forget(&mut self, fh: u64) {
        self.of.retain(|listing| listing.owner != fh);
    }

    /// Takes the listing of a handle at a position out, to be given back with [`Listings::put_back`].
    fn take(&mut self, fh: u64, directory: BorrowedFd, offset: u64) -> Served<Listing> {
        let found = self.of.iter().position(|listing| listing.owner == fh);
        let found = found.map(|index| self.of.remove(index));
        // From the start always afresh: that is what rewinddir is for.
        if let Some(listing) = found.filter(|listing| listing.next == offset && offset != 0) {
            return Ok(listing);
        }
        sys::seek(directory, offset, libc::SEEK_SET)?;
        Ok(Listing { owner: fh, next: offset, bytes: Vec::new(), at: 0 })
    }

    fn put_back(&mut self, listing: Listing) {
        if self.of.len() >= MOST {
            self.of.remove(0);
        }
        self.of.push(listing);
    }
}

impl Listing {
    /// The entry at the position, `None` at the end of the directory.
    fn peek(&mut self, directory: BorrowedFd) -> Served<Option<Entry<'_>>> {
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

    /// Goes to after an entry.
    fn advance(&mut self, record: usize, next: u64) {
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

    fn is_dot(&self) -> bool {
        matches!(self.name.to_bytes(), b"." | b"..")
    }
}

/// Bytes that an entry takes in a reply.
fn size_of_entry(name: &CStr, plus: bool) -> usize {
    let attributes = if plus { size_of::<EntryOut>() } else { 0 };
    attributes + (size_of::<Dirent>() + name.count_bytes()).next_multiple_of(8)
}

fn put(output: &mut Output, entry: &Entry, attributes: Option<&EntryOut>) -> Served {
    if let Some(attributes) = attributes {
        output.put(attributes)?;
    }
    let name = entry.name.to_bytes();
    let kind = u32::from(entry.kind);
    output.put(&Dirent { ino: entry.inode, off: entry.next, namelen: name.len() as u32, kind })?;
    output.bytes(name)?;
    let padding = name.len().next_multiple_of(8) - name.len();
    output.bytes(0u64.as_bytes().get(..padding).unwrap_or_default())
}

impl Server {
    /// `OPENDIR`.
    pub(super) fn opendir(&mut self, request: &mut Request, output: &mut Output) -> Served {
        request.take::<OpenIn>()?;
        let handle = match request.header.nodeid {
            ROOT_ID => Handle::Root,
            nodeid => {
                let inode = self.inode(nodeid)?;
                let noatime = if self.is_read_only(inode) { OFlags::NOATIME } else { OFlags::empty() };
                Handle::Directory(self.reopen(inode, OFlags::RDONLY | OFlags::DIRECTORY | noatime)?)
            }
        };
        let fh = self.add_handle(handle, request.header.nodeid)?;
        let opened = OpenOut { fh, ..OpenOut::default() };
        output.put(&opened).inspect_err(|_| self.take_back(fh))
    }

    /// `READDIR`.
    pub(super) fn readdir(&mut self, request: &mut Request, output: &mut Output) -> Served {
        self.list(request, output, false)
    }

    /// `READDIRPLUS`: entries with what a lookup of each would give. Where one fails, or the table of
    /// inodes is crowded, nodeid 0 says that the guest has to look the name up itself.
    pub(super) fn readdirplus(&mut self, request: &mut Request, output: &mut Output) -> Served {
        self.list(request, output, true)
    }

    fn list(&mut self, request: &mut Request, output: &mut Output, plus: bool) -> Served {
        let args: ReadIn = request.take()?;
        output.limit(args.size as usize);
        if let Handle::Root = self.handles.get(args.fh)? {
            return self.list_root(args.offset, output, plus);
        }
        // Out of the server while entries in it are used together with the tables.
        let mut listing = self.listings.take(args.fh, self.handles.directory(args.fh)?, args.offset)?;
        let mut result = Ok(true);
        while let Ok(true) = result {
            result = self.list_one(&mut listing, request.header.nodeid, output, plus);
        }
        self.listings.put_back(listing);
        // An error after the first entry comes again with the next request.
        if output.written() > 0 { Ok(()) } else { result.map(drop) }
    }

    /// Puts the next entry into the reply; returns whether there may be room and need for another.
    fn list_one(&mut self, listing: &mut Listing, parent: u64, output: &mut Output, plus: bool) -> Served<bool> {
        let Some(entry) = listing.peek(self.handles.directory(listing.owner)?)? else { return Ok(false) };
        if output.data.len() < size_of_entry(entry.name, plus) {
            // An empty reply would say that the directory ends here.
            return if output.written() > 0 { Ok(false) } else { Err(Errno(libc::EINVAL)) };
        }
        let found = if plus { self.find_listed(parent, &entry) } else { EntryOut::default() };
        put(output, &entry, plus.then_some(&found))?;
        let (record, next) = (entry.record, entry.next);
        listing.advance(record, next);
        Ok(true)
    }

    fn find_listed(&mut self, parent: u64, entry: &Entry) -> EntryOut {
        if entry.is_dot() || self.inodes.is_crowded() {
            return EntryOut::default();
        }
        self.find_as(parent, entry.name, true).unwrap_or_default()
    }

    /// The root directory: positions are places in the list of shares, after the dots.
    fn list_root(&mut self, offset: u64, output: &mut Output, plus: bool) -> Served {
        for at in offset..DOTS + self.shares.len() as u64 {
            let name = match at {
                0 => c".".to_owned(),
                1 => c"..".to_owned(),
                _ => match self.share_name(at - DOTS)? {
                    Some(name) => name,
                    None => continue,
                },
            };
            let entry = Entry { inode: ROOT_ID, next: at + 1, kind: libc::DT_UNKNOWN, name: &name, record: 0 };
            if output.data.len() < size_of_entry(&name, plus) {
                return Ok(());
            }
            let found = if plus && at >= DOTS { self.find(ROOT_ID, &name)? } else { EntryOut::default() };
            put(output, &entry, plus.then_some(&found))?;
        }
        Ok(())
    }

    /// The name of the share of this number, if there is one now.
    fn share_name(&self, number: u64) -> Served<Option<CString>> {
        let share = self.shares.get(number as usize).and_then(Option::as_ref);
        let name = share.map(|share| CString::new(share.name.as_str()));
        name.transpose().map_err(|_| Errno(libc::EIO))
    }
}
