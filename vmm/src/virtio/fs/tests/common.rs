//! Objects that are reached through several shares.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use super::super::fuse::{ATTR_SUBMOUNT, RenameIn, opcode};
use super::super::{Common, Fs, Share, Sharing};
use super::guest::*;
use crate::virtio::{Error, Event};

const SYSTEM: &str = "8:1";

/// A share on a mount of its own, as bind mounts are, where this process may make one.
fn all(name: &str, directory: &Path, read_only: bool) -> Share {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = rustix::mount::open_tree(CWD, directory, flags).unwrap_or_else(|_| path(directory));
    if read_only {
        let attr_set = libc::MOUNT_ATTR_RDONLY;
        let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
        // SAFETY: the path is an empty C string, and the attributes are as long as said. Where it fails, the mount can be written to.
        unsafe {
            let size = size_of::<libc::mount_attr>();
            libc::syscall(libc::SYS_mount_setattr, root.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, &attr, size)
        };
    }
    Share { common: Common::All(SYSTEM.to_owned()), root, ..share(name, directory, read_only) }
}

fn rename(guest: &mut Guest, from: (u64, &str), to: (u64, &str)) -> Result<(), i32> {
    guest.tell(opcode::RENAME, from.0, &RenameIn { newdir: to.0 }, &zz(from.1, to.1))
}

fn files(name: &str, directory: &Path) -> Share {
    Share { common: Common::Files(SYSTEM.to_owned()), ..share(name, directory, false) }
}

/// A guest of these shares, and the nodeids of their roots.
fn guest<const N: usize>(shares: [Share; N]) -> (Guest, [u64; N]) {
    let names = shares.each_ref().map(|share| share.name.clone());
    let mut guest = Guest::of(Fs::new("test", shares.into()).unwrap());
    let system = guest.lookup(1, SYSTEM).unwrap();
    assert_eq!(system.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
    let roots = names.map(|name| guest.lookup(system.nodeid, &name).unwrap().nodeid);
    (guest, roots)
}

fn add(guest: &mut Guest, share: Share) {
    ask(guest, move |sharing| sharing.add(vec![share]));
}

fn remove(guest: &mut Guest, name: &'static str) {
    ask(guest, move |sharing| sharing.remove(vec![name.to_owned()]));
}

/// Asks from another thread, as the device's own has to answer.
fn ask(guest: &mut Guest, ask: impl FnOnce(Sharing) -> Result<(), Error> + Send + 'static) {
    let sharing = guest.device.sharing();
    let asking = std::thread::spawn(move || ask(sharing));
    while !asking.is_finished() {
        guest.event(Event::Fd(0, libc::EPOLLIN as u32)).unwrap();
    }
    asking.join().unwrap().unwrap();
}

/// A directory with `sub/dir` and the file `sub/f` in it.
fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(at(&directory, "sub/dir")).unwrap();
    fs::write(at(&directory, "sub/f"), "precious").unwrap();
    directory
}

#[test]
fn a_directory_in_a_directory_is_the_same_one() {
    let directory = tree();
    let sub = at(&directory, "sub");
    let (mut guest, [whole, part, again]) =
        guest([all("whole", directory.path(), false), all("part", &sub, false), all("again", directory.path(), true)]);
    assert_eq!(whole, again);
    assert_eq!(guest.lookup(whole, "sub").unwrap().nodeid, part);
    assert_eq!(guest.lookup(part, "f").unwrap().attr.ino, fs::metadata(sub.join("f")).unwrap().ino());
    // Through one of them it can be changed.
    guest.mkdir(again, "new", 0o755).unwrap();
    rename(&mut guest, (part, "f"), (whole, "moved")).unwrap();
    assert_eq!(fs::read(at(&directory, "moved")).unwrap(), b"precious");
}

#[test]
fn names_move_between_directories_found_through_different_shares() {
    let directory = tree();
    let (mut guest, [whole, part]) =
        guest([all("whole", directory.path(), false), all("part", &at(&directory, "sub"), false)]);
    let dir = guest.lookup(part, "dir").unwrap().nodeid;
    assert_eq!(guest.lookup(whole, "sub").unwrap().nodeid, part);
    fs::write(at(&directory, "g"), "").unwrap();
    rename(&mut guest, (whole, "g"), (dir, "g")).unwrap();
    assert!(at(&directory, "sub/dir/g").exists());
}

#[test]
fn files_are_the_same_where_directories_may_differ() {
    let directory = tree();
    let sub = at(&directory, "sub");
    let (mut guest, [whole, part, single]) =
        guest([files("whole", directory.path()), files("part", &sub), files("single", &sub.join("f"))]);
    let below = guest.lookup(whole, "sub").unwrap().nodeid;
    assert_ne!(below, part);
    assert_eq!(guest.lookup(below, "f").unwrap().nodeid, single);
    assert_eq!(guest.lookup(part, "f").unwrap().nodeid, single);
}

#[test]
fn what_no_writable_share_reaches_stays_read_only() {
    let directory = tree();
    let (mut guest, [whole, part]) =
        guest([all("whole", directory.path(), true), all("part", &at(&directory, "sub"), false)]);
    assert_eq!(guest.mkdir(whole, "new", 0o755).unwrap_err(), libc::EROFS);
    assert_eq!(rename(&mut guest, (part, "f"), (whole, "stolen")).unwrap_err(), libc::EROFS);
    // Known from the share that is read-only, and below the other one all the same.
    let sub = guest.lookup(whole, "sub").unwrap().nodeid;
    let dir = guest.lookup(sub, "dir").unwrap().nodeid;
    guest.mkdir(dir, "new", 0o755).unwrap();
    let file = guest.lookup(sub, "f").unwrap().nodeid;
    guest.open(file, libc::O_RDWR).unwrap();
}

#[test]
fn what_was_known_before_a_writable_share_came_can_be_changed_through_it() {
    let directory = tree();
    let (mut guest, [whole]) = guest([all("whole", directory.path(), true)]);
    let sub = guest.lookup(whole, "sub").unwrap().nodeid;
    let (dir, file) = (guest.lookup(sub, "dir").unwrap().nodeid, guest.lookup(sub, "f").unwrap().nodeid);
    assert_eq!(guest.mkdir(dir, "new", 0o755).unwrap_err(), libc::EROFS);
    add(&mut guest, all("part", &at(&directory, "sub"), false));
    guest.mkdir(dir, "new", 0o755).unwrap();
    guest.open(file, libc::O_WRONLY).unwrap();
    assert_eq!(guest.mkdir(whole, "new", 0o755).unwrap_err(), libc::EROFS);
}

#[test]
fn what_a_read_only_share_found_can_be_changed_when_that_has_gone() {
    let directory = tree();
    let (mut guest, [whole]) = guest([all("whole", directory.path(), true)]);
    let sub = guest.lookup(whole, "sub").unwrap().nodeid;
    let (dir, file) = (guest.lookup(sub, "dir").unwrap().nodeid, guest.lookup(sub, "f").unwrap().nodeid);
    add(&mut guest, all("part", &at(&directory, "sub"), false));
    remove(&mut guest, "whole");
    guest.open(file, libc::O_RDWR).unwrap();
    guest.mkdir(dir, "new", 0o755).unwrap();
}

#[test]
fn what_is_in_another_share_as_well_outlives_a_share() {
    let directory = tree();
    let (mut guest, [whole, part]) =
        guest([all("whole", directory.path(), false), all("part", &at(&directory, "sub"), false)]);
    // Found through one share alone; the other one leads there, too.
    let file = guest.lookup(part, "f").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.lookup(whole, "sub").unwrap().nodeid, part);
    remove(&mut guest, "part");
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"precious");
    guest.getattr(file).unwrap();
    remove(&mut guest, "whole");
    assert_eq!(guest.read(fh, 0, 100).unwrap_err(), libc::EBADF);
    assert_eq!(guest.getattr(file).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.lookup(1, SYSTEM).unwrap_err(), libc::ENOENT);
}
