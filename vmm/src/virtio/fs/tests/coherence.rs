//! What the guest may keep, and how it learns that it no longer holds.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::super::coherence::Began;
use super::super::fuse::*;
use super::super::{Cache, Fs, Share};
use super::guest::*;

const READ: i32 = libc::O_RDONLY;

fn guest_of(cache: Cache) -> (Guest, tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "file"), "content").unwrap();
    age();
    let share = Share { cache, ..share("s", directory.path(), false) };
    let mut guest = Guest::of(Fs::new("test", vec![share]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    (guest, directory, root)
}

fn valid(entry: &EntryOut) -> (Duration, Duration) {
    let name = Duration::new(entry.entry_valid, entry.entry_valid_nsec);
    (name, Duration::new(entry.attr_valid, entry.attr_valid_nsec))
}

#[test]
fn an_open_after_a_change_of_the_hosts_sends_the_guest_to_look_again() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    guest.open(file, READ).unwrap();
    fs::write(at(&directory, "file"), "another content").unwrap();
    assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
    let seen = guest.lookup(root, "file").unwrap();
    assert_eq!((seen.nodeid, seen.attr.size), (file, 15));
    guest.open(file, READ).unwrap();
}

#[test]
fn nothing_is_truncated_before_the_guest_has_looked_again() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    fs::rename(at(&directory, "file"), at(&directory, "kept")).unwrap();
    fs::write(at(&directory, "file"), "new").unwrap();
    assert_eq!(guest.open(file, libc::O_WRONLY | libc::O_TRUNC).unwrap_err(), libc::ESTALE);
    assert_eq!(fs::read(at(&directory, "kept")).unwrap(), b"content");
    let other = guest.lookup(root, "file").unwrap().nodeid;
    assert_ne!(other, file);
    guest.open(other, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(fs::read(at(&directory, "file")).unwrap(), b"");
}

#[test]
fn a_file_that_was_replaced_is_looked_up_again_even_if_the_guest_asked_about_it_since() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    fs::write(at(&directory, "new"), "new").unwrap();
    fs::rename(at(&directory, "new"), at(&directory, "file")).unwrap();
    assert_eq!(guest.getattr(file).unwrap().nlink, 0);
    assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
    assert_ne!(guest.lookup(root, "file").unwrap().nodeid, file);
    // One that the guest removed itself has no name to look up.
    let own = guest.lookup(root, "file").unwrap().nodeid;
    guest.tell(opcode::UNLINK, root, &(), &z("file")).unwrap();
    guest.open(own, READ).unwrap();
}

#[test]
fn a_file_that_changes_all_the_time_can_be_opened() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    for text in ["one", "two", "three"] {
        fs::write(at(&directory, "file"), text).unwrap();
        // The first is refused at most; the next ones come without another lookup.
        let tries = [guest.open(file, READ), guest.open(file, READ)];
        assert!(tries.iter().any(Result::is_ok), "{tries:?}");
    }
}

#[test]
fn nobody_is_sent_to_look_twice_in_a_row() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let change = |text: &str| {
        age();
        fs::write(at(&directory, "file"), text).unwrap();
    };
    for text in ["one", "two", "three"] {
        change(text);
        assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
        // It looks, but then the file changes once more.
        guest.lookup(root, "file").unwrap();
        change("another");
        guest.open(file, READ).unwrap();
        // That was this one; who looks in time is sent again for every change.
        assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
        guest.lookup(root, "file").unwrap();
        guest.open(file, READ).unwrap();
    }
    // Reached without a name, and attributes asked for in between.
    fs::remove_file(at(&directory, "file")).unwrap();
    for _ in 0..3 {
        guest.getattr(file).unwrap();
        assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
        guest.getattr(file).unwrap();
        guest.open(file, READ).unwrap();
    }
    // For others it is news.
    change("text");
    let file = guest.lookup(root, "file").unwrap().nodeid;
    change("new text");
    for pid in [1, 2] {
        guest.pid = pid;
        assert_eq!(guest.open(file, READ).unwrap_err(), libc::ESTALE);
    }
}

#[test]
fn what_the_guest_does_itself_is_no_surprise() {
    let (mut guest, _directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDWR).unwrap().fh;
    let check = |guest: &mut Guest, what: &str| {
        age();
        assert!(guest.open(file, READ).is_ok(), "{what}");
        guest.getattr(file).unwrap();
    };
    guest.write(fh, 0, b"mine").unwrap();
    check(&mut guest, "written");
    let linked: EntryOut = guest.call(opcode::LINK, root, &LinkIn { oldnodeid: file }, &z("second")).unwrap();
    assert_eq!(linked.nodeid, file);
    check(&mut guest, "linked");
    guest.tell(opcode::UNLINK, root, &(), &z("second")).unwrap();
    check(&mut guest, "one name less");
    guest.tell(opcode::RENAME, root, &RenameIn { newdir: root }, &zz("file", "moved")).unwrap();
    check(&mut guest, "renamed");
    let chmod = SetattrIn { valid: fattr::MODE, mode: 0o600, ..SetattrIn::default() };
    let _: AttrOut = guest.call(opcode::SETATTR, file, &chmod, &[]).unwrap();
    check(&mut guest, "mode");
}

#[test]
fn how_long_things_are_believed() {
    let second = Duration::from_secs(1);
    let (mut guest, directory, root) = guest_of(CACHE);
    assert_eq!(valid(&guest.lookup(root, "file").unwrap()), (second, second));
    // Another change now might have the same time.
    fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(valid(&guest.lookup(root, "file").unwrap()), (second, Duration::from_millis(50)));
    assert_eq!(guest.lookup(root, "missing").unwrap_err(), libc::ENOENT);

    let (mut guest, _directory, root) = guest_of(Cache { valid: Duration::ZERO, exclusive: false, host_locks: false });
    assert_eq!(valid(&guest.lookup(root, "file").unwrap()), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn a_share_that_is_a_file_is_believed_shortly() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "hosts"), "text").unwrap();
    age();
    let file = share("hosts", &at(&directory, "hosts"), false);
    let mut guest = Guest::of(Fs::new("test", vec![file]).unwrap());
    let root = guest.lookup(1, "hosts").unwrap();
    assert_eq!(valid(&root).1, Duration::from_millis(50));
    // No name is looked up on the way there, so none can be looked up again.
    for text in ["new", "newer"] {
        fs::write(at(&directory, "hosts"), text).unwrap();
        guest.open(root.nodeid, READ).unwrap();
        age();
    }
    fs::remove_file(at(&directory, "hosts")).unwrap();
    guest.getattr(root.nodeid).unwrap();
    guest.open(root.nodeid, READ).unwrap();
}

#[test]
fn where_nobody_else_writes_all_is_kept() {
    let hour = Duration::from_secs(3600);
    let (mut guest, directory, root) = guest_of(Cache { valid: hour, exclusive: true, host_locks: false });
    let missing = guest.lookup(root, "missing").unwrap();
    assert_eq!((missing.nodeid, valid(&missing).0), (0, hour));
    let file = guest.lookup(root, "file").unwrap();
    assert_eq!(valid(&file), (hour, hour));
    guest.open(file.nodeid, READ).unwrap();
    fs::write(at(&directory, "file"), "against the promise").unwrap();
    age();
    assert_ne!(guest.open(file.nodeid, READ).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
}

#[test]
fn a_file_that_may_change_unseen_is_said_to() {
    let (mut guest, directory, root) = guest_of(CACHE);
    let file = guest.lookup(root, "file").unwrap();
    assert_eq!(file.attr.flags & ATTR_RECENT, 0);
    let fh = guest.open(file.nodeid, READ).unwrap().fh;
    fs::write(at(&directory, "file"), "another").unwrap();
    let ask = StatxIn { getattr_flags: GETATTR_FH, fh, ..StatxIn::default() };
    let extended: StatxOut = guest.call(opcode::STATX, file.nodeid, &ask, &[]).unwrap();
    let attr = guest.lookup(root, "file").unwrap().attr;
    let recent = [extended.flags, attr.flags, guest.getattr(file.nodeid).unwrap().flags];
    assert_eq!(recent.map(|flags| flags & ATTR_RECENT), [ATTR_RECENT; 3]);
    age();
    assert_eq!(guest.getattr(file.nodeid).unwrap().flags & ATTR_RECENT, 0);
}

#[test]
fn where_times_are_whole_seconds_a_file_is_recent_for_longer() {
    let (_guest, directory, _root) = guest_of(CACHE);
    let mut stat = super::super::sys::stat(fs::File::open(at(&directory, "file")).unwrap().as_fd()).unwrap();
    let began = Began::now();
    assert!(!CACHE.is_recent(&stat, began));
    stat.stx_ctime.tv_nsec = 0;
    assert!(CACHE.is_recent(&stat, began));
    stat.stx_ctime.tv_sec -= 3;
    assert!(!CACHE.is_recent(&stat, began));
}
