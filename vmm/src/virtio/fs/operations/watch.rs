//! What the guest watches, and what it is told of that: see [`told`](crate::virtio::fs::told).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd;

use crate::virtio::fs::fuse::WatchIn;
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares;
use crate::virtio::fs::sys;
use crate::virtio::fs::told::event::{Event, Place};
use crate::virtio::fs::told::group::{self, Group, RENAME};
use crate::virtio::fs::told::message::Message;

// Events have the same numbers for fanotify and inotify.
const NAMES: u32 = libc::IN_CREATE | libc::IN_DELETE;
const MOVES: u32 = libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
const SELF: u32 = libc::IN_DELETE_SELF | libc::IN_MOVE_SELF;
/// Events of a file, in the order in which they are told where the host has put several into one.
const FILE: [u32; 6] =
    [libc::IN_OPEN, libc::IN_ACCESS, libc::IN_MODIFY, libc::IN_ATTRIB, libc::IN_CLOSE_WRITE, libc::IN_CLOSE_NOWRITE];
/// Events of children as well as of the directory itself.
const ON_CHILD: u32 = 0x0800_0000;

impl Server {
    /// `WATCH`: from now on, for these events; for none if there are none. The guest hears of the events that this kernel causes
    /// whatever the answer is, so it is no error where the host cannot tell of others.
    pub fn watch(&mut self, request: &mut Request, _: &mut Output) -> Served {
        if !self.told.offered {
            return Err(Errno(libc::ENOSYS));
        }
        let (args, nodeid) = (request.take::<WatchIn>()?, request.header.nodeid);
        if shares::is_own(nodeid) {
            return Ok(());
        }
        if args.mask == 0 {
            self.unwatch(nodeid);
            return Ok(());
        }
        let inode = self.inode(nodeid)?;
        let rules = self.shares.rules(inode.way);
        let can_change = rules.local && inode.key.mount == 0 && !rules.cache.exclusive;
        if can_change && inode.check_openable().is_ok() {
            // The host's file system may be one without handles, or this user may mark no more.
            let _ = self.mark(nodeid, args.mask);
        }
        Ok(())
    }

    fn mark(&mut self, nodeid: u64, mask: u32) -> Served {
        if !self.told.marks.has(nodeid) && !self.told.marks.has_room() {
            return Err(Errno(libc::ENOSPC));
        }
        let inode = self.inodes.get(nodeid)?;
        let (fd, is_directory) = (inode.fd()?, inode.kind == libc::S_IFDIR);
        let object = group::object(fd)?;
        let group = match self.told.group.take() {
            Some(group) => group,
            None => Group::new()?,
        };
        let marked = group.mark(self.proc_fd.as_fd(), fd, host_mask(mask, is_directory), true);
        self.told.group = Some(group);
        marked?;
        if self.told.marks.set(nodeid, object, mask) {
            self.inodes.opened(nodeid);
        }
        Ok(())
    }

    /// Ends the watch of an object that the guest watches no more, or is about to forget.
    pub fn unwatch(&mut self, nodeid: u64) {
        let Some(last) = self.told.marks.remove(nodeid) else { return };
        self.inodes.closed(nodeid);
        let Ok(inode) = self.inodes.peek(nodeid) else { return };
        if last && let (Some(group), Ok(fd)) = (&self.told.group, inode.fd()) {
            let mask = host_mask(u32::MAX, inode.kind == libc::S_IFDIR);
            // Where it fails events come that nobody is told of.
            let _ = group.mark(self.proc_fd.as_fd(), fd, mask, false);
        }
    }

    /// Ends all watches.
    pub fn unwatch_all(&mut self) {
        for nodeid in self.told.clear() {
            self.inodes.closed(nodeid);
        }
    }

    /// Looks at what others have done on the host since, if there is nothing to tell the guest of what was before.
    pub fn hear(&mut self) {
        while self.told.is_idle() {
            let Some(events) = self.told.take_events() else { return };
            let last = last_of_each(&events);
            for event in &events {
                let settles = event
                    .place
                    .as_ref()
                    .and_then(|place| last.get(place))
                    .is_some_and(|last| std::ptr::eq(*last, event));
                self.tell(event, settles);
            }
        }
    }

    /// Has the guest be told of an event, which `settles` whether there is its name if none of the others comes after it.
    fn tell(&mut self, event: &Event, settles: bool) {
        let mask = event.mask as u32;
        if mask & libc::IN_Q_OVERFLOW != 0 {
            self.told.lost();
        } else if event.mask & RENAME != 0 {
            self.tell_rename(event, mask & libc::IN_ISDIR);
        } else {
            let named = event.place.as_ref().filter(|place| place.name != b".");
            let itself = event.object.as_ref().or(event.place.as_ref().map(|place| &place.directory));
            let itself = itself.filter(|_| named.is_none() || event.object.is_some());
            let objects = itself.map_or(Vec::new(), |object| self.told.marks.of(object).to_vec());
            let told = named.is_some_and(|place| self.tell_name(place, mask, objects.first().copied(), settles));
            // The first one goes with the name.
            self.tell_objects(objects.get(usize::from(told)..).unwrap_or_default(), mask & !SELF);
            self.tell_objects(&objects, mask & SELF);
            if mask & libc::IN_ATTRIB != 0 {
                self.tell_gone(&objects);
            }
        }
    }

    /// Tells of a name in a directory, or of the child of that name; whether the directory is watched.
    fn tell_name(&mut self, place: &Place, mask: u32, child: Option<u64>, settles: bool) -> bool {
        let directories = self.told.marks.of(&place.directory).to_vec();
        for &parent in &directories {
            let there = (settles && mask & NAMES != 0).then(|| self.is_there(parent, &place.name));
            let whole = self.told.marks.mask(parent) & (NAMES | MOVES) == NAMES | MOVES;
            for event in in_order(mask, there, whole) {
                let (name, child) = (place.name.clone(), child.unwrap_or(0));
                let mask = event | mask & libc::IN_ISDIR;
                self.told.messages.push_back(Message { mask, parent, name, child, ..Message::default() });
            }
            if mask & libc::IN_DELETE != 0 && mask & libc::IN_ISDIR != 0 {
                self.tell_gone(&self.watched_below(parent));
            }
        }
        !directories.is_empty()
    }

    fn is_there(&self, parent: u64, name: &[u8]) -> bool {
        let Ok(name) = CString::new(name) else { return false };
        let found = self.inodes.peek(parent).and_then(|directory| sys::stat_at(directory.fd()?, &name));
        found.is_ok()
    }

    fn watched_below(&self, parent: u64) -> Vec<u64> {
        let below = |nodeid: &u64| self.inodes.peek(*nodeid).is_ok_and(|inode| inode.parent == parent);
        self.told.marks.all().filter(below).collect()
    }

    fn tell_objects(&mut self, objects: &[u64], mask: u32) {
        for &child in objects {
            for event in FILE.into_iter().chain([libc::IN_MOVE_SELF, libc::IN_DELETE_SELF]) {
                if mask & event != 0 {
                    let mask = event | mask & libc::IN_ISDIR;
                    self.told.messages.push_back(Message { mask, child, ..Message::default() });
                }
            }
        }
    }

    /// Tells of those objects that have no name any more. This process holds them, so the host's kernel never says so.
    fn tell_gone(&mut self, objects: &[u64]) {
        for &child in objects {
            let Ok(inode) = self.inodes.peek(child) else { continue };
            let stat = inode.fd().and_then(sys::stat);
            // One is the watch.
            if inode.opens == 1 && stat.is_ok_and(|stat| stat.stx_nlink == 0) {
                self.unwatch(child);
                self.told.messages.push_back(Message { mask: libc::IN_DELETE_SELF, child, ..Message::default() });
            }
        }
    }

    fn tell_rename(&mut self, event: &Event, directory: u32) {
        let of = |place: &Option<Place>| {
            let nodes = place.as_ref().map(|place| self.told.marks.of(&place.directory).to_vec());
            (nodes.unwrap_or_default(), place.as_ref().map(|place| place.name.clone()).unwrap_or_default())
        };
        let ((from, name), (to, new_name)) = (of(&event.place), of(&event.to));
        for at in 0..from.len().max(to.len()) {
            let [parent, new_parent] = [&from, &to].map(|nodes| nodes.get(at).copied().unwrap_or(0));
            let (name, new_name, mask) = (name.clone(), new_name.clone(), libc::IN_MOVED_FROM | directory);
            self.told.messages.push_back(Message { mask, parent, name, new_parent, new_name, child: 0 });
        }
    }
}

/// The last event of each name that comes or goes.
fn last_of_each(events: &[Event]) -> BTreeMap<&Place, &Event> {
    let changes = events.iter().filter(|event| event.mask & (u64::from(NAMES) | RENAME) != 0);
    changes.flat_map(|event| [&event.place, &event.to].into_iter().flatten().map(move |place| (place, event))).collect()
}

/// The events that the host has put into one, each once. It puts what one process does to one name into one event, even if another
/// process did something in between. So the last event of a name is made to end with what is `there`, where the guest hears
/// of the `whole`: where it watches for all that can happen to names.
fn in_order(mask: u32, there: Option<bool>, whole: bool) -> impl Iterator<Item = u32> {
    let [first, then, last] = match there {
        Some(true) if mask & libc::IN_DELETE != 0 => [libc::IN_DELETE, if whole { libc::IN_CREATE } else { mask }, 0],
        Some(false) if whole => [0, mask, libc::IN_DELETE],
        _ => [0, mask, mask & libc::IN_DELETE],
    };
    let files = FILE.into_iter().filter(move |event| mask & event != 0);
    [first, then & libc::IN_CREATE].into_iter().chain(files).chain([last]).filter(|&event| event != 0)
}

/// What the host is asked for, where the guest asks for this.
fn host_mask(mask: u32, is_directory: bool) -> u64 {
    let file = FILE.iter().fold(0, |all, event| all | event);
    // The number of names is an attribute.
    let attributes = if mask & libc::IN_DELETE_SELF != 0 { libc::IN_ATTRIB } else { 0 };
    let wanted = mask & (file | SELF) | attributes;
    if !is_directory {
        return wanted.into();
    }
    let renames = if mask & MOVES != 0 { RENAME } else { 0 };
    u64::from(wanted | mask & (NAMES | ON_CHILD)) | renames
}
