//! Two guests on one volume, and the host.

use std::os::fd::AsRawFd;

use super::super::fuse::*;
use super::super::{Cache, Fs, Share};
use super::guest::*;
use crate::virtio::Device;

const END: u64 = i64::MAX as u64;
const READ: u32 = libc::F_RDLCK as u32;
const WRITE: u32 = libc::F_WRLCK as u32;
const NONE: u32 = libc::F_UNLCK as u32;

/// A guest on a folder, with its file open.
fn on(directory: &tempfile::TempDir, host_locks: bool) -> (Guest, u64, OpenOut) {
    let share = Share { cache: Cache { host_locks, ..CACHE }, ..share("s", directory.path(), false) };
    let mut guest = Guest::of(Fs::new("test", vec![share]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let (entry, open) = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    (guest, entry.nodeid, open)
}

fn two() -> (tempfile::TempDir, (Guest, u64, OpenOut), (Guest, u64, OpenOut)) {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (on(&directory, true), on(&directory, true));
    (directory, one, other)
}

fn lock(fh: u64, owner: u64, typ: u32, (start, end): (u64, u64)) -> LkIn {
    LkIn { fh, owner, start, end, typ, pid: 77, ..LkIn::default() }
}

impl Guest {
    fn lock(&mut self, args: LkIn) -> Result<(), i32> {
        self.tell(opcode::SETLK, 0, &args, &[])
    }

    fn close(&mut self, fh: u64, lock_owner: u64) {
        self.tell(opcode::FLUSH, 0, &FlushIn { fh, lock_owner, ..FlushIn::default() }, &[]).unwrap();
    }
}

#[test]
fn who_has_the_locks_is_said_at_open() {
    let directory = tempfile::tempdir().unwrap();
    for host_locks in [true, false] {
        let (_, _, open) = on(&directory, host_locks);
        assert_eq!(open.open_flags & FOPEN_SERVER_LOCKS != 0, host_locks);
    }
}

#[test]
fn a_range_is_one_owners_in_all_guests() {
    let (_directory, (mut one, _, a), (mut other, _, b)) = two();
    one.lock(lock(a.fh, 1, WRITE, (10, 19))).unwrap();
    // Of the same guest, another process; of the other guest, one of the same number.
    assert_eq!(one.lock(lock(a.fh, 2, READ, (19, 30))), Err(libc::EAGAIN));
    assert_eq!(other.lock(lock(b.fh, 1, READ, (0, END))), Err(libc::EAGAIN));
    other.lock(lock(b.fh, 1, WRITE, (20, END))).unwrap();
    let way: LkOut = one.call(opcode::GETLK, 0, &lock(a.fh, 2, READ, (0, END)), &[]).unwrap();
    assert_eq!((way.start, way.end, way.typ, way.pid), (10, 19, WRITE, 77));
    let way: LkOut = other.call(opcode::GETLK, 0, &lock(b.fh, 1, READ, (0, END)), &[]).unwrap();
    assert_eq!((way.start, way.typ, way.pid), (10, WRITE, 0), "nobody whom this guest knows");
    let way: LkOut = one.call(opcode::GETLK, 0, &lock(a.fh, 1, READ, (0, 19)), &[]).unwrap();
    assert_eq!(way.typ, NONE);
    one.lock(lock(a.fh, 1, NONE, (0, END))).unwrap();
    other.lock(lock(b.fh, 1, WRITE, (0, END))).unwrap();
    assert_eq!(one.lock(lock(a.fh, 1, READ, (0, 0))), Err(libc::EAGAIN));
}

#[test]
fn locks_end_with_the_file_that_they_are_of() {
    let (_directory, (mut one, file, a), (mut other, _, b)) = two();
    let all = |fh, owner| lock(fh, owner, WRITE, (0, END));
    one.lock(all(a.fh, 1)).unwrap();
    one.close(a.fh, 2);
    assert_eq!(other.lock(all(b.fh, 1)), Err(libc::EAGAIN), "another process closed it");
    one.close(a.fh, 1);
    other.lock(all(b.fh, 1)).unwrap();
    other.release(b.fh).unwrap();
    let again = one.open(file, libc::O_RDWR).unwrap().fh;
    one.lock(all(again, 3)).unwrap();
    let b = other.lookup(1, "s").unwrap().nodeid;
    let b = other.lookup(b, "file").unwrap().nodeid;
    let b = other.open(b, libc::O_RDONLY).unwrap().fh;
    one.device.reset();
    other.lock(lock(b, 1, READ, (0, END))).unwrap();
    other.lock(lock(b, 1, WRITE, (0, END))).unwrap();
}

#[test]
fn flock_is_of_the_open_file() {
    let (directory, (mut one, file, a), (mut other, _, b)) = two();
    let flock = |fh, typ| LkIn { fh, typ, lk_flags: LK_FLOCK, end: END, ..LkIn::default() };
    one.lock(flock(a.fh, READ)).unwrap();
    other.lock(flock(b.fh, READ)).unwrap();
    assert_eq!(other.lock(flock(b.fh, WRITE)), Err(libc::EAGAIN));
    let host = std::fs::File::open(at(&directory, "file")).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(host.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, -1);
    assert!(one.device.save().is_err());
    one.lock(flock(a.fh, NONE)).unwrap();
    one.device.save().unwrap();
    other.release(b.fh).unwrap();
    let again = one.open(file, libc::O_RDONLY).unwrap().fh;
    one.lock(flock(again, WRITE)).unwrap();
    one.release(again).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(host.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
}

#[test]
fn what_is_no_lock() {
    let (_directory, (mut one, _, a), _) = two();
    for bad in [
        lock(a.fh, 1, 7, (0, END)),
        lock(a.fh, 1, WRITE, (5, 4)),
        lock(a.fh, 1, WRITE, (0, u64::MAX)),
        lock(a.fh, 1, WRITE, (u64::MAX, u64::MAX)),
    ] {
        assert_eq!(one.lock(bad), Err(libc::EINVAL), "{bad:?}");
    }
    assert_eq!(one.lock(lock(12345, 1, WRITE, (0, END))), Err(libc::EBADF));
    one.lock(lock(a.fh, 9, NONE, (0, END))).unwrap();
    // Owners are few beside all the descriptors that there are.
    let refused = (0..10_000u64).find_map(|owner| one.lock(lock(a.fh, owner, READ, (0, END))).err());
    assert_eq!(refused, Some(libc::ENOLCK));
}

#[test]
fn a_read_only_volume_is_locked_without_being_opened_for_writing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(at(&directory, "file"), "").unwrap();
    let share = Share { cache: Cache { host_locks: true, ..CACHE }, ..share("s", directory.path(), true) };
    let mut guest = Guest::of(Fs::new("test", vec![share]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    guest.lock(lock(fh, 1, READ, (0, END))).unwrap();
    assert_eq!(guest.lock(lock(fh, 1, WRITE, (0, END))), Err(libc::EBADF));
}
