//! What a guest can ask for without end, and gets only so much of.

use std::fs;
use std::os::unix::fs::MetadataExt;

use zerocopy::IntoBytes;

use super::super::fuse::*;
use super::super::{Cache, Fs, Share};
use super::guest::*;
use crate::virtio::{Device, Event};

const PUNCH: u32 = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;

fn guest() -> (Guest, tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    let share = Share { cache: Cache { host_locks: true, ..CACHE }, ..share("s", directory.path(), false) };
    let mut guest = Guest::of(Fs::new("test", vec![share]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let fh = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap().1.fh;
    (guest, directory, fh)
}

fn space(fh: u64, offset: u64, length: u64, mode: u32) -> FallocateIn {
    FallocateIn { fh, offset, length, mode, padding: 0 }
}

/// 200 MiB of space are four pieces: others come between, and a reset.
#[test]
fn space_is_allocated_in_pieces() {
    let (mut guest, directory, fh) = guest();
    let ask = space(fh, 4096, 200 << 20, 0);
    let message = guest.message(opcode::FALLOCATE, 0, ask.as_bytes());
    let size = || at(&directory, "file").metadata().unwrap().len();
    guest.offer(&message, 16);
    let before = guest.finish(0).unwrap();
    guest.event(Event::Queue(1)).unwrap();
    assert_eq!((guest.finish(0).unwrap(), size()), (before, 4096 + (64 << 20)), "no reply yet");
    // Another notification changes nothing, nor does what comes in the other queue.
    guest.event(Event::Queue(1)).unwrap();
    guest.event(Event::Queue(0)).unwrap();
    assert_eq!(size(), 4096 + (128 << 20));
    assert_eq!((guest.finish(1).unwrap(), size()), (before, 4096 + (192 << 20)));
    assert_eq!((guest.finish(1).unwrap(), size()), (before.wrapping_add(1), 4096 + (200 << 20)));
    let meta = at(&directory, "file").metadata().unwrap();
    assert!(meta.blocks() * 512 >= 200 << 20, "{meta:?}");
    // As a whole, and freed again.
    guest.tell(opcode::FALLOCATE, 0, &space(fh, 0, 300 << 20, 0), &[]).unwrap();
    guest.tell(opcode::FALLOCATE, 0, &space(fh, 0, 300 << 20, PUNCH), &[]).unwrap();
    let meta = at(&directory, "file").metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (300 << 20, 0));
    guest.offer(&guest.message(opcode::FALLOCATE, 0, space(fh, 0, 400 << 20, 0).as_bytes()), 16);
    guest.event(Event::Queue(1)).unwrap();
    guest.device.reset();
    assert!(guest.device.server().unfinished.is_none());
}

#[test]
fn holes_are_skipped_at_once() {
    let (mut guest, directory, fh) = guest();
    guest.write(fh, 5 << 40, b"end").unwrap();
    // A piece at a time this would be 100,000 of them.
    guest.tell(opcode::FALLOCATE, 0, &space(fh, 0, 6 << 40, PUNCH), &[]).unwrap();
    assert_eq!(guest.read(fh, 5 << 40, 3).unwrap(), [0; 3]);
    assert_eq!(fs::metadata(at(&directory, "file")).unwrap().len(), (5 << 40) + 3);
}

#[test]
fn space_that_cannot_be_is_refused_before_anything_is_done() {
    let (mut guest, directory, fh) = guest();
    const COLLAPSE: u32 = libc::FALLOC_FL_COLLAPSE_RANGE as u32;
    for (offset, length, mode, error) in [
        (0, 0, 0, libc::EINVAL),
        (u64::MAX, 1, 0, libc::EFBIG),
        (1 << 62, 1 << 62, 0, libc::EFBIG),
        (1, u64::MAX, 0, libc::EFBIG),
        (0, 1 << 30, COLLAPSE, libc::EOPNOTSUPP),
        (0, 1 << 30, u32::MAX, libc::EOPNOTSUPP),
        (0, 1 << 30, libc::FALLOC_FL_PUNCH_HOLE as u32, libc::EOPNOTSUPP),
    ] {
        let refused = guest.tell(opcode::FALLOCATE, 0, &space(fh, offset, length, mode), &[]);
        assert_eq!(refused, Err(error), "{offset} {length} {mode:#x}");
    }
    assert_eq!(at(&directory, "file").metadata().unwrap().len(), 0);
    assert_eq!(guest.tell(opcode::FALLOCATE, 0, &space(99, 0, 1 << 30, 0), &[]), Err(libc::EBADF));
}

/// The worker looks at other events between requests, however many there are.
#[test]
fn a_guest_that_never_stops_asking_is_interrupted() {
    let (mut guest, _directory, _) = guest();
    let lookup = guest.message(opcode::GETATTR, 1, GetattrIn::default().as_bytes());
    let before = guest.finish(0).unwrap();
    guest.offer(&lookup, 200);
    (1..400).for_each(|_| guest.offer_again());
    guest.event(Event::Queue(1)).unwrap();
    assert_eq!(guest.finish(0).unwrap(), before.wrapping_add(256));
    assert_eq!(guest.finish(1).unwrap(), before.wrapping_add(400));
}

#[test]
fn ranges_of_locks_are_counted() {
    let (mut guest, _directory, fh) = guest();
    guest.device.server().locks.range_limit = 8;
    let lock = |guest: &mut Guest, owner, typ: i32, start: u64, end: u64| {
        let args = LkIn { fh, owner, start, end, typ: typ as u32, ..LkIn::default() };
        guest.tell(opcode::SETLK, 0, &args, &[])
    };
    for at in 0..4 {
        lock(&mut guest, 1, libc::F_WRLCK, 20 * at, 20 * at + 9).unwrap();
        lock(&mut guest, 2, libc::F_WRLCK, 20 * at + 10, 20 * at + 19).unwrap();
    }
    assert_eq!(lock(&mut guest, 1, libc::F_WRLCK, 1000, 1000), Err(libc::ENOLCK));
    assert_eq!(lock(&mut guest, 3, libc::F_RDLCK, 1000, 1000), Err(libc::ENOLCK));
    assert_eq!(lock(&mut guest, 1, libc::F_UNLCK, 5, 5), Err(libc::ENOLCK), "it would be two");
    lock(&mut guest, 1, libc::F_RDLCK, 0, 9).unwrap();
    lock(&mut guest, 1, libc::F_UNLCK, 20, 29).unwrap();
    assert_eq!(lock(&mut guest, 1, libc::F_WRLCK, 15, 15), Err(libc::EAGAIN), "one that is refused takes no room");
    lock(&mut guest, 3, libc::F_WRLCK, 1000, END).unwrap();
    assert_eq!(lock(&mut guest, 3, libc::F_WRLCK, 900, 900), Err(libc::ENOLCK));
    guest.tell(opcode::FLUSH, 0, &FlushIn { fh, lock_owner: 2, ..FlushIn::default() }, &[]).unwrap();
    for at in 0..4 {
        lock(&mut guest, 3, libc::F_WRLCK, 900 + 2 * at, 900 + 2 * at).unwrap();
    }
    lock(&mut guest, 3, libc::F_UNLCK, 0, END).unwrap();
    guest.release(fh).unwrap();
    assert!(guest.device.server().locks.is_empty());
}

const END: u64 = i64::MAX as u64;
