//! What the guest knows and has open is the same on another server, and what it was is never another file.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::super::fuse::*;
use super::super::{Fs, Share};
use super::guest::*;
use crate::virtio::{Device, Error};

/// The guest goes on with a new server of these shares.
fn restored(guest: &Guest, shares: Vec<Share>) -> Guest {
    restored_within(guest, shares, 1000)
}

fn restored_within(guest: &Guest, shares: Vec<Share>, descriptors: usize) -> Guest {
    let state = guest.device.save().unwrap();
    let mut device = Fs::with_limits(shares, descriptors, 100).unwrap();
    device.restore(&state).unwrap();
    Guest::unborn(device)
}

fn refused(guest: &Guest, shares: Vec<Share>) -> String {
    let state = guest.device.save().unwrap();
    let error = Fs::with_limits(shares, 1000, 100).unwrap().restore(&state).unwrap_err();
    assert!(matches!(error, Error::Host(..)));
    error.to_string()
}

fn one(directory: impl AsRef<Path>) -> Vec<Share> {
    vec![share("s", directory.as_ref(), false)]
}

/// A guest of few descriptors that has looked up all of a tree; nodeids by path.
fn explorer(directory: impl AsRef<Path>, descriptors: usize) -> (Guest, BTreeMap<String, u64>) {
    let mut guest = Guest::of(Fs::with_limits(one(&directory), descriptors, 100).unwrap());
    let mut known = BTreeMap::from([("".to_owned(), guest.lookup(1, "s").unwrap().nodeid)]);
    let mut paths = vec!["".to_owned()];
    while let Some(path) = paths.pop() {
        let mut names: Vec<_> =
            fs::read_dir(directory.as_ref().join(&path)).unwrap().map(|entry| entry.unwrap()).collect();
        names.sort_by_key(|entry| entry.file_name());
        for entry in names {
            let name = entry.file_name().into_string().unwrap();
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            known.insert(below.clone(), guest.lookup(known[&path], &name).unwrap().nodeid);
            if entry.file_type().unwrap().is_dir() {
                paths.push(below);
            }
        }
    }
    (guest, known)
}

fn parent_and_name<'a>(known: &BTreeMap<String, u64>, path: &'a str) -> (u64, &'a str) {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    (known[parent], name)
}

fn assert_known(guest: &mut Guest, directory: &Path, known: &BTreeMap<String, u64>) {
    for (path, &nodeid) in known {
        let ino = directory.join(path).symlink_metadata().unwrap().ino();
        assert_eq!(guest.getattr(nodeid).map(|attr| attr.ino), Ok(ino), "{path}");
        if !path.is_empty() {
            let (parent, name) = parent_and_name(known, path);
            assert_eq!(guest.lookup(parent, name).unwrap().nodeid, nodeid, "{path}");
            guest.forget(nodeid, 1);
        }
    }
}

#[test]
fn thousands_of_objects_are_the_same_whether_hot_or_cold() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..40 {
        let path = at(&directory, &format!("dir-{}/below/deeper/{number}", number % 7));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            fs::write(path.join(format!("file-{file}")), file.to_string()).unwrap();
        }
        std::os::unix::fs::symlink("nowhere", path.join("link")).unwrap();
    }
    for (before, after) in [(10_000, 10_000), (64, 10_000), (10_000, 64), (64, 64)] {
        let (mut guest, mut known) = explorer(&directory, before);
        assert!(known.len() > 4000);
        for name in 0..50 {
            // Holes in the table, and an object known twice.
            guest.forget(known.remove(&format!("dir-3/below/deeper/3/file-{name}")).unwrap(), 1);
        }
        let twice = known["dir-3/below/deeper/3/file-77"];
        guest.lookup(known["dir-3/below/deeper/3"], "file-77").unwrap();
        let state = guest.device.save().unwrap();
        let mut guest = restored_within(&guest, one(&directory), after);
        assert_eq!(guest.device.save().unwrap(), state, "nothing is lost by doing it again");
        assert!(guest.device.server().inodes.hot <= after);
        assert_known(&mut guest, directory.path(), &known);
        assert!(guest.device.server().inodes.hot <= after);
        // Counts are the same, and what was forgotten is never meant again.
        guest.forget(twice, 1);
        guest.getattr(twice).unwrap();
        guest.forget(twice, 1);
        assert_eq!(guest.getattr(twice).unwrap_err(), libc::ESTALE);
        let old: HashSet<u64> = known.values().copied().collect();
        for name in 0..50 {
            let new = guest.lookup(known["dir-3/below/deeper/3"], &format!("file-{name}")).unwrap().nodeid;
            assert!(!old.contains(&new));
        }
        guest.getattr(known["dir-3/below"]).unwrap();
    }
}

#[test]
fn a_guest_without_init_is_still_without() {
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest::unborn(Fs::new("test", one(&directory)).unwrap());
    let mut guest = restored(&guest, one(&directory));
    assert_eq!(guest.lookup(1, "s").unwrap_err(), libc::ENOTCONN);
}

#[test]
fn handles_go_on() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "log"), "one").unwrap();
    fs::write(at(&directory, "text"), "0123456789").unwrap();
    let (log, text) = (guest.lookup(root, "log").unwrap().nodeid, guest.lookup(root, "text").unwrap().nodeid);
    let closed = guest.open(text, libc::O_RDONLY).unwrap().fh;
    let append = guest.open(log, libc::O_WRONLY | libc::O_APPEND).unwrap().fh;
    let read = guest.open(text, libc::O_RDONLY).unwrap().fh;
    let both = guest.open(text, libc::O_RDWR | libc::O_SYNC).unwrap().fh;
    let truncated = guest.create(root, "new", libc::O_RDWR | libc::O_TRUNC, 0o600).unwrap().1.fh;
    guest.write(truncated, 0, b"kept").unwrap();
    let top = guest.opendir(1).unwrap().fh;
    guest.release(closed).unwrap();
    let mut guest = restored_within(&guest, one(&directory), 16);
    assert_eq!(guest.read(closed, 0, 10).unwrap_err(), libc::EBADF);
    assert_eq!(guest.read(read, 5, 100).unwrap(), b"56789");
    assert_eq!(guest.write(read, 0, b"x").unwrap_err(), libc::EBADF);
    assert_eq!(guest.read(append, 0, 1).unwrap_err(), libc::EBADF);
    fs::write(at(&directory, "log"), "one and").unwrap();
    let end = WriteIn { fh: append, offset: 3, flags: libc::O_APPEND as u32, ..WriteIn::default() };
    guest.write_with(end, b" two").unwrap();
    assert_eq!(fs::read(at(&directory, "log")).unwrap(), b"one and two");
    guest.write(both, 0, b"abc").unwrap();
    assert_eq!(guest.read(read, 0, 5).unwrap(), b"abc34");
    assert_eq!(guest.read(truncated, 0, 10).unwrap(), b"kept");
    assert_eq!(guest.list(1, top, 0, 4096, false).unwrap().len(), 3);
    let open: Vec<OFlags> = [append, read, both, truncated]
        .map(|fh| rustix::fs::fcntl_getfl(guest.device.server().handles.file(fh).unwrap()).unwrap())
        .to_vec();
    assert!(open[2].contains(OFlags::SYNC) && !open.iter().any(|flags| flags.contains(OFlags::APPEND)));
    // A file that is open stays known by what it is, whatever becomes of its name.
    for number in 0..30 {
        fs::write(at(&directory, &number.to_string()), "").unwrap();
        guest.lookup(root, &number.to_string()).unwrap();
    }
    fs::remove_file(at(&directory, "text")).unwrap();
    assert_eq!(guest.getattr(text).unwrap().size, 10);
    for fh in [append, read, both, truncated, top] {
        guest.release(fh).unwrap();
    }
    assert!(guest.device.server().handles.is_empty());
    let new = guest.open(log, libc::O_RDONLY).unwrap().fh;
    assert!(![closed, append, read, both, truncated, top].contains(&new), "a handle is never valid twice");
}

#[test]
fn caches_stay_valid_exactly_when_nothing_changed() {
    let (mut guest, directory, root) = Guest::with_share();
    let mut nodeids = Vec::new();
    for name in ["same", "changed"] {
        fs::write(at(&directory, name), "content").unwrap();
        age();
        nodeids.push(guest.lookup(root, name).unwrap().nodeid);
        let fh = guest.open(nodeids[nodeids.len() - 1], libc::O_RDONLY).unwrap().fh;
        guest.release(fh).unwrap();
    }
    let state = guest.device.save().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(at(&directory, "changed"), "CONTENT").unwrap();
    let mut device = Fs::new("test", one(&directory)).unwrap();
    device.restore(&state).unwrap();
    let mut guest = Guest::unborn(device);
    let mut keep = |nodeid| guest.open(nodeid, libc::O_RDONLY).map(|open| open.open_flags & FOPEN_KEEP_CACHE != 0);
    assert_eq!(keep(nodeids[0]), Ok(true));
    // What the guest was told of it holds no more, nor do its pages.
    assert_eq!([keep(nodeids[1]), keep(nodeids[1])], [Err(libc::ESTALE), Ok(false)]);
}

#[test]
fn of_two_objects_of_one_number_the_later_one_is_found() {
    let (mut guest, directory, root) = Guest::with_share();
    for name in ["later", "earlier"] {
        fs::write(at(&directory, name), "").unwrap();
    }
    let [later, earlier] = ["later", "earlier"].map(|name| guest.lookup(root, name).unwrap().nodeid);
    // As if the earlier one had been removed and its number given to the later one.
    let mut state = guest.device.save().unwrap();
    let name = state.windows(7).position(|part| part == b"earlier").unwrap();
    let record = name - 52;
    state[record..record + 8].copy_from_slice(&at(&directory, "later").metadata().unwrap().ino().to_le_bytes());
    state[record + 18] = 2;
    let mut device = Fs::new("test", one(&directory)).unwrap();
    device.restore(&state).unwrap();
    let mut guest = restored(&Guest::unborn(device), one(&directory));
    assert_eq!(guest.getattr(earlier).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.lookup(root, "later").unwrap().nodeid, later);
    guest.getattr(later).unwrap();
}

/// Lists a directory piece by piece, every third one from another server.
fn list_across(place: &Path) {
    let directory = tempfile::tempdir_in(place).unwrap();
    for number in 0..3000 {
        fs::write(at(&directory, &format!("file-{number}")), "").unwrap();
    }
    let mut guest = Guest::of(Fs::new("test", one(&directory)).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let fh = guest.opendir(root).unwrap().fh;
    let (mut seen, mut offset) = (Vec::new(), 0);
    for round in 0.. {
        let some = guest.list(root, fh, offset, 4096, round % 2 == 0).unwrap();
        let Some(last) = some.last() else { break };
        offset = last.off;
        seen.extend(some.into_iter().map(|entry| entry.name));
        if round % 3 == 1 {
            guest = restored_within(&guest, one(&directory), 100);
        }
    }
    assert_eq!(seen.len(), 3002);
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 3002);
}

#[test]
fn listings_go_on_where_they_were() {
    list_across(&std::env::temp_dir());
    list_across(Path::new("/dev/shm"));
}

#[test]
fn names_that_the_host_changed_before_are_found() {
    for descriptors in [1000, 16] {
        let directory = tempfile::tempdir().unwrap();
        for path in ["a/below", "b", "c"] {
            fs::create_dir_all(at(&directory, path)).unwrap();
        }
        for number in 0..100 {
            fs::write(at(&directory, &format!("c/{number}")), "").unwrap();
        }
        for name in ["a/renamed", "a/moved", "a/first", "b/other", "a/below/file"] {
            fs::write(at(&directory, name), name).unwrap();
        }
        let (mut guest, known) = explorer(&directory, 1000);
        let link = |guest: &mut Guest, file: &str, parent: &str, name: &str| {
            let args = LinkIn { oldnodeid: known[file] };
            guest.call::<_, EntryOut>(opcode::LINK, known[parent], &args, &z(name)).unwrap();
        };
        // One whose first name goes away, and one found last under a name that goes away.
        link(&mut guest, "a/first", "b", "second");
        guest.tell(opcode::UNLINK, known["a"], &(), &z("first")).unwrap();
        link(&mut guest, "b/other", "a", "brief");
        guest.tell(opcode::UNLINK, known["a"], &(), &z("brief")).unwrap();
        fs::rename(at(&directory, "a/renamed"), at(&directory, "a/new name")).unwrap();
        fs::rename(at(&directory, "a/moved"), at(&directory, "b/moved")).unwrap();
        fs::rename(at(&directory, "a/below"), at(&directory, "b/below")).unwrap();
        let fhs: Vec<u64> = ["a/first", "b/other", "a/renamed", "a/moved", "a/below/file"]
            .map(|path| {
                // The first attempt says that it has been renamed.
                let open = guest.open(known[path], libc::O_RDONLY);
                open.or_else(|_| guest.open(known[path], libc::O_RDONLY)).unwrap().fh
            })
            .to_vec();
        let mut guest = restored_within(&guest, one(&directory), descriptors);
        for (fh, content) in fhs.iter().zip(["a/first", "b/other", "a/renamed", "a/moved", "a/below/file"]) {
            assert_eq!(guest.read(*fh, 0, 100).unwrap(), content.as_bytes());
        }
        assert_eq!(guest.lookup(known["b"], "second").unwrap().nodeid, known["a/first"]);
        assert_eq!(guest.lookup(known["b"], "moved").unwrap().nodeid, known["a/moved"]);
        assert_eq!(guest.lookup(known["a"], "new name").unwrap().nodeid, known["a/renamed"]);
        assert_eq!(guest.lookup(known["b"], "below").unwrap().nodeid, known["a/below"]);
    }
}

#[test]
fn what_the_guest_renamed_is_found() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..200 {
        fs::create_dir_all(at(&directory, &format!("from/{number}"))).unwrap();
        fs::write(at(&directory, &format!("from/{number}/file")), number.to_string()).unwrap();
    }
    fs::create_dir(at(&directory, "to")).unwrap();
    let (mut guest, known) = explorer(&directory, 32);
    for number in 0..200 {
        let rename = RenameIn { newdir: known["to"] };
        let names = zz(&number.to_string(), &format!("new-{number}"));
        guest.tell(opcode::RENAME, known["from"], &rename, &names).unwrap();
    }
    let mut guest = restored_within(&guest, one(&directory), 32);
    for number in 0..200 {
        let file = known[&format!("from/{number}/file")];
        let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
        assert_eq!(guest.read(fh, 0, 10).unwrap(), number.to_string().as_bytes());
        guest.release(fh).unwrap();
        assert_eq!(
            guest.lookup(known["to"], &format!("new-{number}")).unwrap().nodeid,
            known[&format!("from/{number}")]
        );
    }
}

#[test]
fn open_files_without_a_name_are_not_saved() {
    let (mut guest, directory, root) = Guest::with_share();
    let (deleted, open) = guest.create(root, "deleted", libc::O_RDWR, 0o600).unwrap();
    guest.tell(opcode::UNLINK, root, &(), &z("deleted")).unwrap();
    let args = CreateIn { flags: libc::O_RDWR as u32, mode: 0o600, ..CreateIn::default() };
    let (_, temporary) = guest.create_with(opcode::TMPFILE, root, "/", args).unwrap();
    let error = guest.device.save().unwrap_err().to_string();
    assert!(error.contains("2 open files have no name") && error.contains("deleted"), "{error}");
    guest.write(open.fh, 0, b"still here").unwrap();
    guest.release(temporary.fh).unwrap();
    assert!(guest.device.save().unwrap_err().to_string().contains("1 open files"));
    guest.release(open.fh).unwrap();
    // Known, but not open: as gone as it is.
    fs::write(at(&directory, "deleted"), "another").unwrap();
    let mut guest = restored(&guest, one(&directory));
    assert_eq!(guest.getattr(deleted.nodeid).unwrap_err(), libc::ESTALE);
    let another = guest.lookup(root, "deleted").unwrap();
    assert_ne!(another.nodeid, deleted.nodeid);
    assert_eq!(another.attr.size, 7);
    guest.forget(deleted.nodeid, 1);
}

#[test]
fn what_the_host_replaced_meanwhile_is_stale_and_never_the_wrong_file() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["dir/below", "gone", "moved"] {
        fs::create_dir_all(at(&directory, path)).unwrap();
    }
    for path in ["file", "link", "dir/below/file", "gone/file", "moved/file", "same"] {
        fs::write(at(&directory, path), "old").unwrap();
    }
    let (mut guest, known) = explorer(&directory, 1000);
    let fhs =
        ["file", "link", "dir/below/file", "gone/file"].map(|path| guest.open(known[path], libc::O_RDWR).unwrap().fh);
    let listing = guest.opendir(known["gone"]).unwrap().fh;
    let state = guest.device.save().unwrap();
    // Two births at one time would be one on a file system that reuses inode numbers at once.
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::remove_file(at(&directory, "file")).unwrap();
    fs::write(at(&directory, "file"), "new").unwrap();
    fs::remove_file(at(&directory, "link")).unwrap();
    std::os::unix::fs::symlink("same", at(&directory, "link")).unwrap();
    fs::rename(at(&directory, "dir"), at(&directory, "old")).unwrap();
    fs::create_dir_all(at(&directory, "dir/below")).unwrap();
    fs::write(at(&directory, "dir/below/file"), "new").unwrap();
    fs::remove_dir_all(at(&directory, "gone")).unwrap();
    fs::rename(at(&directory, "moved"), at(&directory, "there")).unwrap();
    let mut device = Fs::new("test", one(&directory)).unwrap();
    device.restore(&state).unwrap();
    let mut guest = Guest::unborn(device);
    for path in ["file", "link", "dir", "dir/below", "dir/below/file", "gone", "gone/file", "moved", "moved/file"] {
        assert_eq!(guest.getattr(known[path]).err(), Some(libc::ESTALE), "{path}");
    }
    for fh in fhs {
        assert_eq!(guest.read(fh, 0, 10).unwrap_err(), libc::ESTALE);
        assert_eq!(guest.write(fh, 0, b"x").unwrap_err(), libc::ESTALE);
    }
    assert_eq!(guest.list(known["gone"], listing, 0, 4096, false).err(), Some(libc::ESTALE));
    assert_eq!(guest.getattr(known["same"]).unwrap().size, 3);
    let root = known[""];
    let new = guest.lookup(root, "file").unwrap();
    assert_ne!(new.nodeid, known["file"]);
    // Found where they are now, they are what they were.
    assert_eq!(guest.lookup(root, "old").unwrap().nodeid, known["dir"]);
    assert_eq!(guest.getattr(known["dir/below"]).map(drop), Ok(()));
    assert_eq!(guest.lookup(root, "there").unwrap().nodeid, known["moved"]);
    assert_eq!(guest.lookup(known["moved"], "file").unwrap().nodeid, known["moved/file"]);
    // Being stale survives another time, and ends with the handle.
    let shares = one(&directory);
    let mut guest = restored(&guest, shares);
    for fh in fhs {
        assert_eq!(guest.read(fh, 0, 10).unwrap_err(), libc::ESTALE);
        guest.release(fh).unwrap();
    }
    assert_eq!(fs::read(at(&directory, "file")).unwrap(), b"new");
}

#[test]
fn shares_are_known_by_name_wherever_they_come() {
    let (a, b, c) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (directory, content) in [(&a, "A"), (&b, "B"), (&c, "C")] {
        fs::write(at(directory, "file"), content).unwrap();
    }
    let shares = vec![share("a", a.path(), false), share("b", b.path(), true), share("one", &at(&c, "file"), false)];
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    let [ra, rb, file] = ["a", "b", "one"].map(|name| guest.lookup(1, name).unwrap().nodeid);
    let fa = guest.lookup(ra, "file").unwrap().nodeid;
    let fb = guest.lookup(rb, "file").unwrap().nodeid;
    let fhs = [fa, fb, file].map(|nodeid| guest.open(nodeid, libc::O_RDONLY).unwrap().fh);
    let top = guest.opendir(1).unwrap().fh;
    let names = |listed: Vec<super::listing::Listed>| listed.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
    let rest = guest.list(1, top, 0, 4096, false).unwrap()[2].off;
    // Another order, one more, and one that is known under its old name only.
    let new = || {
        vec![
            share("more", c.path(), false),
            share("one", &at(&c, "file"), false),
            share("b", b.path(), true),
            share("a", a.path(), false),
        ]
    };
    let mut again = restored(&guest, new());
    for (fh, content) in fhs.iter().zip(["A", "B", "C"]) {
        assert_eq!(again.read(*fh, 0, 10).unwrap(), content.as_bytes());
    }
    assert_eq!(["a", "b", "one"].map(|name| again.lookup(1, name).unwrap().nodeid), [ra, rb, file]);
    assert_eq!(names(again.list(1, top, rest, 4096, false).unwrap()), ["b", "one", "more"]);
    assert_eq!(again.open(fb, libc::O_RDWR).unwrap_err(), libc::EROFS);
    again.open(fa, libc::O_RDWR).unwrap();
    let more = again.lookup(1, "more").unwrap().nodeid;
    assert!(![ra, rb, file, fa, fb].contains(&more));
    assert_eq!(again.lookup(more, "file").unwrap().attr.size, 1);
    // Missing ones are an error, by their names; so is another kind.
    let missing = refused(&guest, vec![share("a", a.path(), false), share("one", &at(&c, "file"), false)]);
    assert!(missing.contains("\"b\"") && missing.contains("missing"), "{missing}");
    let renamed = new().into_iter().map(|share| Share { name: share.name.replace('b', "other"), ..share }).collect();
    assert!(refused(&guest, renamed).contains("\"b\""));
    let mut kind = new();
    kind[1] = share("one", c.path(), false);
    assert!(refused(&guest, kind).contains("another kind"));
    // What is open for writing stays so or is refused.
    let writer = guest.open(fa, libc::O_RDWR).unwrap().fh;
    let mut guarded = new();
    guarded[3].read_only = true;
    let error = refused(&guest, guarded);
    assert!(error.contains("\"file\"") && error.contains("Read-only"), "{error}");
    let mut reader = Guest::of(Fs::new("test", vec![share("s", a.path(), false)]).unwrap());
    let root = reader.lookup(1, "s").unwrap().nodeid;
    let file = reader.lookup(root, "file").unwrap().nodeid;
    let fhs = [reader.open(file, libc::O_RDONLY).unwrap().fh, reader.opendir(root).unwrap().fh];
    let mut reader = restored(&reader, vec![share("s", a.path(), true)]);
    let handles = &reader.device.server().handles;
    let flags =
        [handles.file(fhs[0]), handles.directory(fhs[1])].map(|fd| rustix::fs::fcntl_getfl(fd.unwrap()).unwrap());
    assert!(flags.iter().all(|flags| flags.contains(OFlags::NOATIME)), "not even a time stamp changes there");
    let mut writable = new();
    writable[2].read_only = false;
    let mut guest = restored(&guest, writable);
    guest.write(writer, 0, b"a").unwrap();
    guest.open(fb, libc::O_RDWR).unwrap();
}

#[test]
fn a_share_of_one_file_is_what_the_new_share_is() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::write(at(&directory, name), name).unwrap();
    }
    let shares = |name| vec![share("hosts", &at(&directory, name), false)];
    let mut guest = Guest::of(Fs::new("test", shares("one")).unwrap());
    let nodeid = guest.lookup(1, "hosts").unwrap().nodeid;
    let fh = guest.open(nodeid, libc::O_RDONLY).unwrap().fh;
    let mut guest = restored(&guest, shares("two"));
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"two");
    assert_eq!(guest.open(nodeid, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
}

#[test]
fn more_open_files_than_descriptors_is_an_error() {
    let (mut guest, directory, root) = Guest::with_share();
    for number in 0..20 {
        guest.create(root, &number.to_string(), libc::O_RDWR, 0o600).unwrap();
    }
    let state = guest.device.save().unwrap();
    assert!(Fs::with_limits(one(&directory), 10, 100).unwrap().restore(&state).is_err());
    assert!(Fs::with_limits(one(&directory), 100, 10).unwrap().restore(&state).is_err());
    let mut device = Fs::with_limits(one(&directory), 21, 20).unwrap();
    device.restore(&state).unwrap();
}

/// Overlays in a mount namespace of this thread's, unmounted when dropped.
struct Overlays {
    base: tempfile::TempDir,
    mounts: Vec<String>,
}

impl Overlays {
    /// With lower layers on two file systems.
    fn new() -> Self {
        // SAFETY: plain flags; the namespace is this test's thread's only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let base = tempfile::tempdir().unwrap();
        let mut overlays = Self { base, mounts: Vec::new() };
        overlays.directory("tmpfs");
        overlays.mount("tmpfs", "tmpfs", "");
        overlays
    }

    fn directory(&self, name: &str) -> String {
        let path = at(&self.base, name);
        fs::create_dir_all(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn mount(&mut self, kind: &str, name: &str, options: &str) {
        let (target, options) = (self.directory(name), std::ffi::CString::new(options).unwrap());
        rustix::mount::mount(kind, &target, kind, MountFlags::empty(), options.as_c_str()).unwrap();
        self.mounts.push(target);
    }

    /// An overlay of both layers with an upper layer of its own; returns where it is.
    fn overlay(&mut self, name: &str) -> PathBuf {
        let [upper, work] = ["upper", "work"].map(|part| self.directory(&format!("{part}-{name}")));
        let [one, two] = ["lower", "tmpfs/lower"].map(|part| self.directory(part));
        self.mount("overlay", name, &format!("lowerdir={one}:{two},upperdir={upper},workdir={work},xino=off"));
        at(&self.base, name)
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let _ = rustix::mount::unmount(mount, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn another_overlay_of_the_same_layers_has_the_same_files() {
    let mut overlays = Overlays::new();
    for (layer, content) in [("lower", "disk"), ("tmpfs/lower", "tmpfs")] {
        for number in 0..20 {
            let path = overlays.directory(&format!("{layer}/dir-{}/{content}/{number}", number % 3));
            fs::write(format!("{path}/file"), content).unwrap();
        }
        let base = overlays.directory(layer);
        fs::write(format!("{base}/{content}"), content).unwrap();
        fs::write(format!("{base}/changed-{content}"), content).unwrap();
    }
    let first = overlays.overlay("first");
    // Each container gets its working directory, and some files.
    fs::create_dir(first.join("work")).unwrap();
    fs::write(first.join("changed-disk"), "by the first").unwrap();
    let (mut guest, known) = explorer(&first, 1000);
    let fhs = ["disk", "tmpfs", "dir-1/disk/1/file", "dir-2/tmpfs/2/file"].map(|path| {
        let kept = guest.open(known[path], libc::O_RDONLY).unwrap().fh;
        (kept, path)
    });
    let listing = guest.opendir(known["dir-0"]).unwrap().fh;
    let changed = guest.open(known["changed-disk"], libc::O_RDWR).unwrap().fh;
    // The very mount again, as another process's.
    assert_known(&mut restored(&guest, one(&first)), &first, &known);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let second = overlays.overlay("second");
    fs::create_dir(second.join("work")).unwrap();
    let numbers = |root: &Path, path: &str| root.join(path).metadata().map(|of| (of.dev(), of.ino())).unwrap();
    assert_ne!(numbers(&first, "dir-1"), numbers(&second, "dir-1"), "or else there is nothing to see here");
    let mut guest = restored(&guest, one(&second));
    for (fh, path) in fhs {
        assert!(path.as_bytes().windows(4).any(|part| guest.read(fh, 0, 4).unwrap() == part), "{path}");
    }
    assert_eq!(guest.list(known["dir-0"], listing, 0, 4096, false).unwrap().len(), 4);
    // What the first one had changed is another file here, and open for writing there.
    assert_eq!(guest.read(changed, 0, 100).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.getattr(known["changed-disk"]).unwrap_err(), libc::ESTALE);
    let mut known = known;
    let old = known.remove("changed-disk").unwrap();
    assert_ne!(guest.lookup(known[""], "changed-disk").unwrap().nodeid, old);
    assert_known(&mut guest, &second, &known);
    // Files of either layer that were not used yet are found by name, too.
    assert_known(&mut restored(&guest, one(&second)), &second, &known);
}

#[test]
fn mounts_below_a_share_are_found_again() {
    let mut overlays = Overlays::new();
    let share = overlays.directory("share");
    for path in ["share/mount", "share/plain"] {
        overlays.directory(path);
    }
    overlays.mount("tmpfs", "share/mount", "");
    overlays.directory("share/mount/below");
    for path in ["share/plain/file", "share/mount/file", "share/mount/below/file", "share/plain/mounted"] {
        fs::write(at(&overlays.base, path), path).unwrap();
    }
    let bind = |from: &str, to: &str| {
        rustix::mount::mount_bind(at(&overlays.base, from), at(&overlays.base, to)).unwrap();
    };
    bind("share/mount/file", "share/plain/mounted");
    let (guest, known) = explorer(&share, 1000);
    // The same mounts in the same order, but others.
    let state = guest.device.save().unwrap();
    // SAFETY: plain flags; the namespace is this test's thread's only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    let mut device = Fs::with_limits(one(&share), 1000, 100).unwrap();
    device.restore(&state).unwrap();
    let mut guest = Guest::unborn(device);
    assert_known(&mut guest, Path::new(&share), &known);
    rustix::mount::unmount(at(&overlays.base, "share/plain/mounted"), UnmountFlags::DETACH).unwrap();
}

/// A state with something of everything.
fn some_state(directory: &tempfile::TempDir) -> Vec<u8> {
    fs::create_dir_all(at(directory, "dir/below")).unwrap();
    for path in ["a", "dir/a", "dir/below/a"] {
        fs::write(at(directory, path), "content").unwrap();
    }
    let (mut guest, known) = explorer(directory, 100);
    for path in ["a", "dir/a"] {
        guest.open(known[path], libc::O_RDWR).unwrap();
    }
    for path in ["", "dir/below"] {
        guest.opendir(known[path]).unwrap();
    }
    guest.opendir(1).unwrap();
    guest.forget(known["dir/below/a"], 1);
    guest.device.save().unwrap()
}

#[test]
fn a_state_cut_short_or_continued_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let state = some_state(&directory);
    let take = |state: &[u8]| Fs::with_limits(one(&directory), 100, 100).unwrap().restore(state);
    take(&state).unwrap();
    for length in 0..state.len() {
        assert!(take(&state[..length]).is_err(), "{length} of {}", state.len());
    }
    assert!(take(&[&state[..], &[0]].concat()).is_err());
    // Counts that are lies.
    for at in [16, 20, 24] {
        let mut bad = state.clone();
        bad[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(take(&bad).is_err());
    }
    for bad in [&b"dir"[..], b"below"] {
        let at = state.windows(bad.len()).position(|part| part == bad).unwrap();
        for evil in [b'/', 0] {
            let mut state = state.clone();
            state[at + 1] = evil;
            assert!(take(&state).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_state_of_lies_is_refused_or_leads_nowhere(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let secret = tempfile::tempdir().unwrap();
        fs::write(at(&secret, "a"), "secret").unwrap();
        let mut state = some_state(&directory);
        std::os::unix::fs::symlink(secret.path(), at(&directory, "out")).unwrap();
        for (index, value) in changes {
            let at = index.index(state.len());
            state[at] = value;
        }
        let mut device = Fs::with_limits(one(&directory), 100, 100).unwrap();
        let taken = device.restore(&state);
        let mut guest = Guest::unborn(device);
        if taken.is_err() {
            guest.init(u64::MAX);
            let _ = guest.lookup(1, "s");
        }
        for nodeid in 0..10 {
            let _ = guest.getattr(nodeid);
            let _ = guest.lookup(nodeid, "a");
            if let Ok(content) = guest.read(nodeid, 0, 100) {
                prop_assert_ne!(&content[..], b"secret");
            }
            let _ = guest.release(nodeid);
            guest.forget(nodeid, 1);
        }
        let _ = guest.device.save();
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let head = [&2u32.to_le_bytes()[..], &1u32.to_le_bytes()[..]].concat();
        let mut device = Fs::new("test", vec![]).unwrap();
        prop_assert!(device.restore(&[head, bytes].concat()).is_err());
    }
}
