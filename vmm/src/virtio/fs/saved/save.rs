//! Saving what the guest knows and has open, see the module's page.
//!
//! A cold object is saved as it is. Of a hot one the host is asked for a name, in this order:
//! * the name that the host last knew, in the directory where the guest last found it;
//! * the path that the host last knew, from the share's root: somebody moved it on the host, or it has two
//!   names and one is gone;
//! * any name in the directory where the guest last found it: it has two names, and the one that led to it
//!   is gone. Each directory is read once at most.
//!
//! A name counts when it leads to the object. One that has none (it is deleted, or was never linked) and
//! is not open is saved without: it will be stale.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, OFlags};

use super::format::{SavedHandle, What, Whereabouts, Writer};
use crate::virtio::Error;
use crate::virtio::fs::request::{Errno, NAME_MAX, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::sys::{self, Stat};
use crate::virtio::fs::table::handles::{Handle, Open};
use crate::virtio::fs::table::inode::{Above, Anchor, FIRST_ID, Inode, Key};
use crate::virtio::fs::table::inodes::Inodes;

/// Deepest chain of cold directories that is opened.
const MAX_DEPTH: usize = 512;
/// Most names in an error.
const MAX_NAMED: usize = 3;

/// A name that leads to an object.
struct Located {
    parent: u64,
    name: CString,
    stat: Stat,
}

/// What the search for names has found so far.
#[derive(Default)]
struct Search {
    /// Directories that were read.
    scanned: HashSet<u64>,
    /// Names of hot objects in these directories, by nodeid.
    names: HashMap<u64, CString>,
    /// Nodeids of objects without any name.
    nameless: HashSet<u64>,
}

/// The descriptor of a directory: the table's own, or one opened for the occasion.
enum Reached<'a> {
    Held(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Reached<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Held(fd) => *fd,
            Self::Opened(fd) => fd.as_fd(),
        }
    }
}

/// An error that says more than a fixed sentence.
pub fn refuse(what: &'static str, why: String) -> Error {
    Error::Host(what, io::Error::other(why))
}

impl Server {
    /// What the guest knows and has open, in the form of [`super::format`]. Any thread may call this.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        if !self.locks.is_empty() {
            return Err(Error::Protocol(
                "files of volumes are locked against others on the host: no state can hold that",
            ));
        }
        let (inodes, handles) = (self.inodes.slab.all(), self.handles.all());
        let mut writer = Writer::new(&self.session, self.shares.all().count(), inodes.len(), handles.len());
        self.shares.all().for_each(|(number, share)| writer.share(number, &share.name));
        let mut search = Search::default();
        for (slot, (generation, inode)) in inodes.enumerate() {
            match inode {
                Some(inode) => self.save_inode((slot, generation), inode, &mut search, &mut writer),
                None => writer.free(generation),
            }
        }
        self.check_names(&search)?;
        for (generation, open) in handles {
            match open {
                Some(open) => writer.handle(generation, &saved_handle(open)?),
                None => writer.free(generation),
            }
        }
        Ok(writer.finish())
    }

    fn save_inode(&self, at: (usize, u32), inode: &Inode, search: &mut Search, writer: &mut Writer) {
        let (slot, generation) = at;
        let entry = self.inodes.slab.key_at(slot).unwrap_or_default();
        let nodeid = entry.wrapping_add(FIRST_ID);
        let indexed = self.inodes.index.get(&inode.key, &self.inodes.slab) == Some(entry);
        let (name, located) = match &inode.anchor {
            Anchor::Cold(name) => (name.to_bytes(), None),
            Anchor::Hot(_) if inode.pinned => (&b""[..], None),
            Anchor::Hot(fd) => (&b""[..], self.locate(nodeid, inode, fd.as_fd(), search)),
        };
        let share = self.shares.shares_of(inode.way).first().copied().unwrap_or_default();
        let mut now = Whereabouts { key: inode.key, share, parent: inode.parent, name, born: inode.born, indexed };
        if let Some(Located { parent, name, stat }) = &located {
            (now.parent, now.name) = (*parent, name.to_bytes());
            // Both may be others than in the table since overlayfs copied the object up.
            (now.key, now.born) = (Key::new(stat, &inode.as_above()), sys::birth_time(stat));
        }
        // Some file systems (vfat) have names that are longer than any that the guest could ask for.
        if now.name.len() > NAME_MAX {
            now.name = b"";
        }
        if now.name.is_empty() && !inode.pinned {
            search.nameless.insert(nodeid);
        }
        writer.inode(generation, inode, &now);
    }

    /// Fails when something is open that a restore could not find.
    fn check_names(&self, search: &Search) -> Result<(), Error> {
        let lost = |open: &&Open| {
            let real = matches!(open.handle, Some(Handle::File(_) | Handle::Directory(_)));
            real && (search.nameless.contains(&open.nodeid) || self.inodes.peek(open.nodeid).is_err())
        };
        let (mut count, mut names) = (0, Vec::new());
        for open in self.handles.all().filter_map(|(_, open)| open).filter(lost) {
            count += 1;
            if let Some(Handle::File(fd) | Handle::Directory(fd)) = open.handle.as_ref().filter(|_| count <= MAX_NAMED)
            {
                let name = sys::name_of(&self.inodes.proc_fd, fd.as_fd()).unwrap_or_default();
                names.push(format!("{:?}", name.to_string_lossy()));
            }
        }
        if count == 0 {
            return Ok(());
        }
        let (more, names) = (if count > MAX_NAMED { " …" } else { "" }, names.join(" "));
        let why = format!("{count} open files have no name to find them by again: {names}{more}");
        Err(refuse("cannot save the file system", why))
    }

    fn locate(&self, nodeid: u64, inode: &Inode, fd: BorrowedFd, search: &mut Search) -> Option<Located> {
        let hint = sys::name_of(&self.inodes.proc_fd, fd).ok();
        let by_hint = |key: &Key| self.inodes.find_below(inode.parent, hint.clone()?, key);
        if let Some(located) = by_hint(&inode.key) {
            return Some(located);
        }
        let stat = sys::stat(fd).ok()?;
        if stat.stx_nlink == 0 {
            return None;
        }
        let key = Key::new(&stat, &inode.as_above());
        by_hint(&key).or_else(|| self.by_path(inode, fd, &key)).or_else(|| {
            self.inodes.scan(inode.parent, search);
            self.inodes.find_below(inode.parent, search.names.get(&nodeid)?.clone(), &key)
        })
    }

    /// Follows the host's path of an object from the share's root, through directories that the guest knows.
    fn by_path(&self, inode: &Inode, fd: BorrowedFd, key: &Key) -> Option<Located> {
        let inodes = &self.inodes;
        let mut parent = self.shares.get(*self.shares.shares_of(inode.way).first()?)?.nodeid;
        let root = inodes.peek(parent).ok()?.fd().ok()?;
        let (above, path) = (sys::path_of(&inodes.proc_fd, root).ok()?, sys::path_of(&inodes.proc_fd, fd).ok()?);
        let below = path.strip_prefix(above.strip_suffix(b"/").unwrap_or(&above))?.strip_prefix(b"/")?;
        let mut parts: Vec<&[u8]> = below.split(|&byte| byte == b'/').collect();
        let name = CString::new(parts.pop()?).ok()?;
        let mut directory = Reached::Held(root);
        for part in parts {
            let next = sys::open_path(directory.as_fd(), &CString::new(part).ok()?).ok()?;
            parent = inodes.known_as(&sys::stat(next.as_fd()).ok()?, &inodes.peek(parent).ok()?.as_above())?;
            directory = Reached::Opened(next);
        }
        let stat = sys::stat_at(directory.as_fd(), &name).ok()?;
        (Key::new(&stat, &inodes.peek(parent).ok()?.as_above()) == *key).then_some(Located { parent, name, stat })
    }
}

fn saved_handle(open: &Open) -> Result<SavedHandle, Error> {
    let (what, fd) = match &open.handle {
        Some(Handle::Root) => (What::Root, None),
        Some(Handle::Directory(fd)) => (What::Directory, Some(fd)),
        Some(Handle::File(fd)) => (What::File, Some(fd)),
        None => (What::Stale, None),
    };
    let flags = fd.map_or(Ok(OFlags::empty()), rustix::fs::fcntl_getfl);
    let flags = flags.map_err(|error| Error::Host("cannot tell how a file is open", error.into()))?;
    Ok(SavedHandle { what, nodeid: open.nodeid, flags })
}

impl Inodes {
    /// The name in this directory, if it is one of the object of this key.
    fn find_below(&self, parent: u64, name: CString, key: &Key) -> Option<Located> {
        let stat = sys::stat_at(self.reach(parent, MAX_DEPTH).ok()?.as_fd(), &name).ok()?;
        let same = Key::new(&stat, &self.peek(parent).ok()?.as_above()) == *key;
        same.then_some(Located { parent, name, stat })
    }

    /// Reaches a directory; a cold one is opened for the occasion.
    fn reach(&self, nodeid: u64, depth: usize) -> Served<Reached<'_>> {
        let inode = self.peek(nodeid)?;
        if let Anchor::Hot(fd) = &inode.anchor {
            return Ok(Reached::Held(fd.as_fd()));
        }
        let depth = depth.checked_sub(1).ok_or(Errno(libc::ESTALE))?;
        let above = self.peek(inode.parent)?.as_above();
        Ok(Reached::Opened(inode.open_in(self.reach(inode.parent, depth)?.as_fd(), &above)?.0))
    }

    /// Notes the names that a directory has for hot objects. What cannot be read has none.
    fn scan(&self, directory: u64, search: &mut Search) {
        if !search.scanned.insert(directory) {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = self.reach(directory, MAX_DEPTH).and_then(|fd| sys::reopen(&self.proc_fd, fd.as_fd(), flags));
        let Ok(fd) = opened else { return };
        let (Ok(entries), Ok(inode)) = (Dir::read_from(&fd), self.peek(directory)) else { return };
        for entry in entries.flatten() {
            if let Some(nodeid) = self.hot_object(fd.as_fd(), entry.file_name(), &inode.as_above()) {
                search.names.insert(nodeid, entry.file_name().to_owned());
            }
        }
    }

    fn hot_object(&self, directory: BorrowedFd, name: &CStr, above: &Above) -> Option<u64> {
        let nodeid = self.known_as(&sys::stat_at(directory, name).ok()?, above)?;
        matches!(self.peek(nodeid).ok()?.anchor, Anchor::Hot(_)).then_some(nodeid)
    }
}
