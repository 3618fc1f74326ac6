//! Reading directories.

use std::ffi::{CStr, CString};

use rustix::fs::OFlags;
use zerocopy::IntoBytes;

use crate::virtio::fs::fuse::{Dirent, EntryOut, OpenIn, OpenOut, ReadIn};
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares;
use crate::virtio::fs::table::handles::Handle;
use crate::virtio::fs::table::listings::{Entry, Listing};

/// Entries of the device's own directories before their shares: `.` and `..`.
const DOTS: u64 = 2;

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
    pub fn opendir(&mut self, request: &mut Request, output: &mut Output) -> Served {
        request.take::<OpenIn>()?;
        let handle = match request.header.nodeid {
            nodeid if shares::is_own(nodeid) => Handle::Root,
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
    pub fn readdir(&mut self, request: &mut Request, output: &mut Output) -> Served {
        self.list(request, output, false)
    }

    /// `READDIRPLUS`: entries with what a lookup of each would give. Where one fails, or the table of
    /// inodes is crowded, nodeid 0 says that the guest has to look the name up itself.
    pub fn readdirplus(&mut self, request: &mut Request, output: &mut Output) -> Served {
        self.list(request, output, true)
    }

    fn list(&mut self, request: &mut Request, output: &mut Output, plus: bool) -> Served {
        let args: ReadIn = request.take()?;
        output.limit(args.size as usize);
        if let Handle::Root = self.handles.get(args.fh)? {
            return self.list_own(request.header.nodeid, args.offset, output, plus);
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
        self.find_lazily(parent, entry.name).unwrap_or_default()
    }

    /// One of the device's own directories: positions are places in the list of shares, after the dots.
    fn list_own(&mut self, directory: u64, offset: u64, output: &mut Output, plus: bool) -> Served {
        for at in offset..DOTS + self.shares.positions() as u64 {
            let name = match at {
                0 => c".".to_owned(),
                1 => c"..".to_owned(),
                _ => match self.shares.name_at(directory, (at - DOTS) as usize) {
                    Some(name) => CString::new(name).map_err(|_| Errno(libc::EIO))?,
                    None => continue,
                },
            };
            let entry = Entry { inode: directory, next: at + 1, kind: libc::DT_UNKNOWN, name: &name, record: 0 };
            if output.data.len() < size_of_entry(&name, plus) {
                return Ok(());
            }
            let found = if plus && at >= DOTS { self.find(directory, &name)? } else { EntryOut::default() };
            put(output, &entry, plus.then_some(&found))?;
        }
        Ok(())
    }
}
