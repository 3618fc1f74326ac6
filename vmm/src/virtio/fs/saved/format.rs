//! The form of a saved state: what the guest knows and has open, as bytes.
//!
//! ```text
//!  version · session · number of shares, inodes, handles      28 bytes
//!  each share     number, name                                 3 bytes and the name
//!  each inode     slot: generation, kind (0: free)             5 bytes
//!                 key, parent, lookups, times, name           52 bytes and the name
//!  each handle    slot: generation, what (0: free)             5 bytes
//!                 nodeid, flags                               12 bytes
//! ```
//!
//! All little-endian. Slots come in order and free ones keep their generation, so nodeids and handles are
//! the same again and none is valid twice. Nothing is believed when it is read: see [`Saved::parse`].

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::CString;

use rustix::fs::OFlags;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::virtio::Error;
use crate::virtio::fs::request::NAME_MAX;
use crate::virtio::fs::session::Session;
use crate::virtio::fs::sys::SetId;
use crate::virtio::fs::table::inode::{Anchor, Inode, Key};
use crate::virtio::fs::table::slab::Slots;

/// Version of the form; 1 was a session alone.
const VERSION: u32 = 2;
/// Flag of an inode: the root of its share.
const PINNED: u8 = 1;
/// Flag of an inode: a later object has the same key, so this one is not found by the key.
const SUPERSEDED: u8 = 2;

/// The error for a state that is not taken.
pub const MALFORMED: Error = Error::Protocol("not a file system device's state, or of another version");

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    version: U32,
    session: [u8; 12],
    shares: U32,
    inodes: U32,
    handles: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ShareRecord {
    number: U16,
    name: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SlotRecord {
    generation: U32,
    kind: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InodeRecord {
    inode: U64,
    device: U32,
    mount: U32,
    share: U16,
    flags: u8,
    name: u8,
    parent: U64,
    lookups: U64,
    opened_at: I64,
    known: I64,
    born: I64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HandleRecord {
    nodeid: U64,
    flags: U32,
}

/// A state being written.
pub struct Writer(Vec<u8>);

/// Where and what an inode is at the time of saving, which the table may not know.
pub struct Whereabouts<'a> {
    pub key: Key,
    /// Number of a share that it is in.
    pub share: u16,
    pub parent: u64,
    /// The object's name; empty where it has none.
    pub name: &'a [u8],
    pub born: i64,
    /// Whether lookups find the object by its key.
    pub indexed: bool,
}

impl Writer {
    /// Begins with how many shares, slots of inodes and slots of handles will follow, in this order.
    pub fn new(session: &Session, shares: usize, inodes: usize, handles: usize) -> Self {
        let count = |count: usize| U32::new(count as u32);
        let (shares, inodes, handles) = (count(shares), count(inodes), count(handles));
        let mut writer = Self(Vec::new());
        writer.put(&Head { version: U32::new(VERSION), session: session.save(), shares, inodes, handles });
        writer
    }

    /// The state's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn put<T: IntoBytes + Immutable>(&mut self, record: &T) {
        self.0.extend_from_slice(record.as_bytes());
    }

    /// Adds a share.
    pub fn share(&mut self, number: u16, name: &str) {
        self.put(&ShareRecord { number: U16::new(number), name: name.len() as u8 });
        self.0.extend_from_slice(name.as_bytes());
    }

    /// Adds a free slot.
    pub fn free(&mut self, generation: u32) {
        self.put(&SlotRecord { generation: U32::new(generation), kind: 0 });
    }

    /// Adds a slot with an inode.
    pub fn inode(&mut self, generation: u32, inode: &Inode, now: &Whereabouts) {
        self.put(&SlotRecord { generation: U32::new(generation), kind: (inode.kind >> 12) as u8 });
        let pinned = if inode.pinned { PINNED } else { 0 };
        self.put(&InodeRecord {
            inode: U64::new(now.key.inode),
            device: U32::new(now.key.device),
            mount: U32::new(now.key.mount),
            share: U16::new(now.share),
            flags: pinned | if now.indexed { 0 } else { SUPERSEDED },
            name: now.name.len() as u8,
            parent: U64::new(now.parent),
            lookups: U64::new(inode.lookups),
            opened_at: I64::new(inode.opened_at),
            known: I64::new(inode.known),
            born: I64::new(now.born),
        });
        self.0.extend_from_slice(now.name);
    }

    /// Adds a slot with a handle.
    pub fn handle(&mut self, generation: u32, handle: &SavedHandle) {
        self.put(&SlotRecord { generation: U32::new(generation), kind: handle.what as u8 });
        self.put(&HandleRecord { nodeid: U64::new(handle.nodeid), flags: U32::new(handle.flags.bits()) });
    }
}

/// What a handle was opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The device's root directory.
    Root = 1,
    /// A directory.
    Directory = 2,
    /// A regular file.
    File = 3,
    /// An object that an earlier restore did not find again.
    Stale = 4,
}

/// A handle to be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedHandle {
    pub what: What,
    pub nodeid: u64,
    /// Flags that the host says the file is open with.
    pub flags: OFlags,
}

/// A state that was read: well-formed, and no more than that.
pub struct Saved {
    pub session: Session,
    /// Numbers and names, each there once.
    pub shares: Vec<(u16, String)>,
    /// All entries are cold, the roots of shares too, and below a share.
    pub inodes: Slots<Inode>,
    /// Slots of [`Saved::inodes`] whose keys are others' now, in order.
    pub superseded: Vec<u32>,
    /// Every handle that there was.
    pub handles: Slots<SavedHandle>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<T: FromBytes>(&mut self) -> Result<T, Error> {
        let (record, rest) = T::read_from_prefix(self.0).map_err(|_| MALFORMED)?;
        self.0 = rest;
        Ok(record)
    }

    fn bytes(&mut self, length: u8) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.0.split_at_checked(length.into()).ok_or(MALFORMED)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A count of records of which each takes at least so many bytes, and which are at most `limit`.
    fn count(&self, count: U32, size: usize, limit: usize) -> Result<usize, Error> {
        let count = count.get() as usize;
        if count > limit || count > self.0.len() / size { Err(MALFORMED) } else { Ok(count) }
    }
}

impl Saved {
    /// Reads a state of at most so many inodes and handles. Memory taken is bounded by the limits and by
    /// the length of the state.
    ///
    /// # Errors
    /// Anything that [`Writer`] would not write.
    pub fn parse(state: &[u8], inodes: usize, handles: usize) -> Result<Self, Error> {
        let mut reader = Reader(state);
        let head: Head = reader.take()?;
        if head.version.get() != VERSION {
            return Err(MALFORMED);
        }
        let session = Session::restore(&head.session)?;
        let count = reader.count(head.shares, size_of::<ShareRecord>(), 1 << 16)?;
        let shares = reader.shares(count)?;
        let count = reader.count(head.inodes, size_of::<SlotRecord>(), inodes)?;
        let (inodes, superseded) = reader.inodes(count, &shares)?;
        if head.handles.get() as usize > handles {
            return Err(Error::Protocol("the guest had more files open than RLIMIT_NOFILE allows here"));
        }
        let count = reader.count(head.handles, size_of::<SlotRecord>(), handles)?;
        let handles = reader.handles(count)?;
        if !reader.0.is_empty() {
            return Err(MALFORMED);
        }
        Ok(Self { session, shares, inodes, superseded, handles })
    }
}

impl Reader<'_> {
    fn shares(&mut self, count: usize) -> Result<Vec<(u16, String)>, Error> {
        let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
        let mut one = || {
            let record: ShareRecord = self.take()?;
            let name = self.bytes(record.name)?.to_vec();
            let name = String::from_utf8(name).map_err(|_| MALFORMED)?;
            let new = numbers.insert(record.number.get()) && names.insert(name.clone());
            if new { Ok((record.number.get(), name)) } else { Err(MALFORMED) }
        };
        (0..count).map(|_| one()).collect()
    }

    fn inodes(&mut self, count: usize, shares: &[(u16, String)]) -> Result<(Slots<Inode>, Vec<u32>), Error> {
        let shares: HashSet<u16> = shares.iter().map(|(number, _)| *number).collect();
        let (mut inodes, mut superseded) = (Slots::with_capacity(count), Vec::new());
        for slot in 0..count {
            let record: SlotRecord = self.take()?;
            let kind = u32::from(record.kind) << 12;
            let inode = if kind == 0 { None } else { Some(self.inode(kind)?) };
            if let Some((inode, flags)) = &inode {
                if !shares.contains(&inode.way) {
                    return Err(MALFORMED);
                }
                if flags & SUPERSEDED != 0 {
                    superseded.push(slot as u32);
                }
            }
            inodes.push(record.generation.get(), inode.map(|(inode, _)| inode));
        }
        Ok((inodes, superseded))
    }

    fn inode(&mut self, kind: u32) -> Result<(Inode, u8), Error> {
        let record: InodeRecord = self.take()?;
        let name = self.bytes(record.name)?;
        let (share, lookups) = (record.share.get(), record.lookups.get());
        let pinned = record.flags & PINNED != 0;
        let right = if pinned { name.is_empty() } else { lookups > 0 && is_name(name) };
        if !right || !is_kind(kind) || record.flags & !(PINNED | SUPERSEDED) != 0 {
            return Err(MALFORMED);
        }
        let (device, mount) = (record.device.get(), record.mount.get());
        let inode = Inode {
            anchor: Anchor::Cold(CString::new(name).map_err(|_| MALFORMED)?),
            key: Key { inode: record.inode.get(), device, mount, place: share },
            files: share,
            // The number of a share until it is known how that is reached now.
            way: share,
            mount: 0,
            parent: record.parent.get(),
            born: record.born.get(),
            lookups,
            opens: 0,
            opened_at: record.opened_at.get(),
            known: record.known.get(),
            kind,
            // Known again with the object's next attributes.
            set_id: SetId::default(),
            used: Cell::new(0),
            pinned,
        };
        Ok((inode, record.flags))
    }

    fn handles(&mut self, count: usize) -> Result<Slots<SavedHandle>, Error> {
        let mut handles = Slots::with_capacity(count);
        for _ in 0..count {
            let slot: SlotRecord = self.take()?;
            handles.push(slot.generation.get(), self.handle(slot.kind)?);
        }
        Ok(handles)
    }

    fn handle(&mut self, what: u8) -> Result<Option<SavedHandle>, Error> {
        let what = match what {
            0 => return Ok(None),
            1 => What::Root,
            2 => What::Directory,
            3 => What::File,
            4 => What::Stale,
            _ => return Err(MALFORMED),
        };
        let record: HandleRecord = self.take()?;
        let flags = OFlags::from_bits_retain(record.flags.get());
        Ok(Some(SavedHandle { what, nodeid: record.nodeid.get(), flags }))
    }
}

/// Whether this is no name at all, or one of a directory entry.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"." | b"..") && name.len() <= NAME_MAX && !name.contains(&b'/')
}

fn is_kind(kind: u32) -> bool {
    use libc::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
    [S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK].contains(&kind)
}
