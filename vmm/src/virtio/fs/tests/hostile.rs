//! A guest that lies: bad names, bad sizes, traps in the tree, and tables that it tries to fill.

use std::fs;
use std::os::unix::fs::symlink;

use zerocopy::IntoBytes;

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;
use crate::virtio::Error;

/// Requests of one name each, as (opcode, bytes before the name).
fn requests_of_a_name() -> Vec<(u32, Vec<u8>)> {
    vec![
        (opcode::LOOKUP, vec![]),
        (opcode::UNLINK, vec![]),
        (opcode::RMDIR, vec![]),
        (opcode::MKDIR, vec![0; size_of::<MkdirIn>()]),
        (opcode::MKNOD, vec![0; size_of::<MknodIn>()]),
        (opcode::CREATE, vec![0; size_of::<CreateIn>()]),
        (opcode::LOOKUP_OPEN, vec![0; size_of::<OpenIn>()]),
        (opcode::LINK, vec![0; size_of::<LinkIn>()]),
    ]
}

#[test]
fn only_single_components_are_names() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::create_dir(at(&directory, "a")).unwrap();
    fs::write(at(&directory, "a/b"), "").unwrap();
    let outside = directory.path().parent().unwrap().join("runvm-fs-victim");
    let bad: [&[u8]; 9] =
        [b"", b"\0", b".\0", b"..\0", b"a/b\0", b"/\0", b"../runvm-fs-victim\0", b"a\0b\0", b"unterminated"];
    for (code, args) in requests_of_a_name() {
        for name in bad {
            let result = guest.request(code, root, &[&args, name].concat(), 400);
            assert_eq!(result.unwrap_err(), libc::EINVAL, "{code} {name:?}");
        }
        let long = [&args, &vec![b'x'; 256][..], &[0]].concat();
        assert_eq!(guest.request(code, root, &long, 400).unwrap_err(), libc::ENAMETOOLONG);
    }
    for (old, new) in [("..", "a"), ("a", ".."), ("a/b", "c"), ("a", "c/d"), ("", "x"), ("a", "")] {
        let result = guest.tell(opcode::RENAME, root, &RenameIn { newdir: root }, &zz(old, new));
        assert_eq!(result.unwrap_err(), libc::EINVAL);
    }
    let result = guest.call::<_, EntryOut>(opcode::SYMLINK, root, &(), &zz("../link", "target"));
    assert_eq!(result.unwrap_err(), libc::EINVAL);
    assert!(at(&directory, "a/b").exists() && !outside.exists());
}

#[test]
fn links_are_never_followed_on_the_host() {
    let (mut guest, directory, root) = Guest::with_share();
    let secret = tempfile::tempdir().unwrap();
    fs::write(at(&secret, "key"), "secret").unwrap();
    symlink(secret.path(), at(&directory, "out")).unwrap();
    symlink(at(&secret, "key"), at(&directory, "key")).unwrap();
    let out = guest.lookup(root, "out").unwrap();
    assert_eq!(out.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(guest.lookup(out.nodeid, "key").unwrap_err(), libc::ENOTDIR);
    assert_eq!(guest.mkdir(out.nodeid, "new", 0o700).unwrap_err(), libc::ENOTDIR);
    assert_eq!(guest.opendir(out.nodeid).unwrap_err(), libc::ENXIO);
    let key = guest.lookup(root, "key").unwrap().nodeid;
    assert_eq!(guest.open(key, libc::O_RDONLY).unwrap_err(), libc::ENXIO);
    let cut = SetattrIn { valid: fattr::SIZE, ..SetattrIn::default() };
    assert_eq!(guest.setattr(key, cut).unwrap_err(), libc::ENXIO);
    let mode = SetattrIn { valid: fattr::MODE, mode: 0, ..SetattrIn::default() };
    assert!(guest.setattr(key, mode).is_err());
    guest.setxattr(key, "user.x", b"x", 0).unwrap_err();
    assert_eq!(fs::read(at(&secret, "key")).unwrap(), b"secret");
    guest.tell(opcode::UNLINK, root, &(), &z("key")).unwrap();
    assert!(at(&secret, "key").exists());
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let (mut guest, directory, root) = Guest::with_share();
    let secret = tempfile::tempdir().unwrap();
    fs::create_dir(at(&directory, "dir")).unwrap();
    let dir = guest.lookup(root, "dir").unwrap().nodeid;
    fs::rename(at(&directory, "dir"), at(&directory, "moved")).unwrap();
    symlink(secret.path(), at(&directory, "dir")).unwrap();
    guest.create(dir, "file", libc::O_RDWR, 0o600).unwrap();
    assert!(at(&directory, "moved/file").exists() && !at(&secret, "file").exists());
    // Moved out of the share it stays what the guest held, and no way leads up from it.
    fs::rename(at(&directory, "moved"), at(&secret, "moved")).unwrap();
    assert_eq!(guest.lookup(dir, "..").unwrap_err(), libc::EINVAL);
    assert_eq!(guest.tell(opcode::RENAME, dir, &RenameIn { newdir: root }, &zz("file", "back")), Ok(()));
}

#[test]
fn shares_do_not_mix() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shares = vec![share("rw", one.path(), false), share("ro", one.path(), true), share("b", two.path(), false)];
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    fs::write(at(&one, "file"), "x").unwrap();
    let mut enter = |name| guest.lookup(1, name).unwrap().nodeid;
    let (rw, ro, b) = (enter("rw"), enter("ro"), enter("b"));
    let (file_rw, file_ro) = (guest.lookup(rw, "file").unwrap().nodeid, guest.lookup(ro, "file").unwrap().nodeid);
    assert_ne!(file_rw, file_ro, "the same file, but with other rights");
    assert_eq!(guest.open(file_ro, libc::O_WRONLY).unwrap_err(), libc::EROFS);
    guest.open(file_rw, libc::O_WRONLY).unwrap();
    let moved = |guest: &mut Guest, to| guest.tell(opcode::RENAME, rw, &RenameIn { newdir: to }, &zz("file", "f"));
    assert_eq!(moved(&mut guest, b).unwrap_err(), libc::EXDEV);
    assert_eq!(moved(&mut guest, ro).unwrap_err(), libc::EROFS);
    let link = LinkIn { oldnodeid: file_rw };
    assert_eq!(guest.call::<_, EntryOut>(opcode::LINK, b, &link, &z("f")).unwrap_err(), libc::EXDEV);
    let link = LinkIn { oldnodeid: file_ro };
    assert_eq!(guest.call::<_, EntryOut>(opcode::LINK, rw, &link, &z("f")).unwrap_err(), libc::EROFS);
}

#[test]
fn lies_about_sizes_are_answered_or_stop_the_device() {
    let (mut guest, _directory, _) = Guest::with_share();
    assert!(matches!(guest.raw(&[0; 39], 100), Err(Error::Protocol(_))));
    let (mut guest, _directory, root) = Guest::with_share();
    let header = InHeader { len: 40, opcode: opcode::GETATTR, unique: 1, nodeid: root, ..InHeader::default() };
    let answer = |reply: Vec<u8>| i32::from_ne_bytes(reply[4..8].try_into().unwrap());
    assert_eq!(answer(guest.raw(header.as_bytes(), 200).unwrap()), -libc::EINVAL, "without its structure");
    let longer = InHeader { len: 5000, ..header };
    assert_eq!(answer(guest.raw(longer.as_bytes(), 200).unwrap()), -libc::EINVAL);
    let extended = InHeader { total_extlen: 1, ..header };
    assert_eq!(answer(guest.raw(extended.as_bytes(), 200).unwrap()), -libc::EINVAL);
    let unknown = InHeader { opcode: 4711, ..header };
    assert_eq!(answer(guest.raw(unknown.as_bytes(), 200).unwrap()), -libc::ENOSYS);
    let huge =
        [InHeader { len: 40 + (1 << 20), opcode: opcode::SETXATTR, ..header }.as_bytes(), &[0; 1 << 20]].concat();
    assert_eq!(answer(guest.raw(&huge, 200).unwrap()), -libc::E2BIG);
    assert!(matches!(guest.raw(header.as_bytes(), 15), Err(Error::Protocol(_))));
}

#[test]
fn a_reply_without_room_leaves_nothing_behind() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "file"), "x").unwrap();
    let known = guest.device.server().inodes.len();
    assert_eq!(guest.request(opcode::LOOKUP, root, &z("file"), 10).unwrap_err(), libc::EINVAL);
    let create = [CreateIn { flags: libc::O_RDWR as u32, ..CreateIn::default() }.as_bytes(), &z("new")].concat();
    assert_eq!(guest.request(opcode::CREATE, root, &create, size_of::<EntryOut>()).unwrap_err(), libc::EINVAL);
    assert_eq!(guest.request(opcode::OPENDIR, root, &[0; 8], 3).unwrap_err(), libc::EINVAL);
    assert_eq!(guest.device.server().inodes.len(), known);
    assert!(guest.device.server().handles.is_empty());
}

#[test]
fn forgetting_is_accounted_for() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "file"), "x").unwrap();
    let file = guest.lookup(root, "file").unwrap().nodeid;
    assert_eq!(guest.lookup(root, "file").unwrap().nodeid, file);
    guest.forget(file, 1);
    guest.getattr(file).unwrap();
    guest.forget(file, 1);
    assert_eq!(guest.getattr(file).unwrap_err(), libc::ESTALE);
    guest.forget(file, 1);
    let again = guest.lookup(root, "file").unwrap().nodeid;
    assert_ne!(again, file, "an old nodeid never means a new object");
    let batch = [(again, u64::MAX), (root, u64::MAX), (4711, 1), (1, 1), (0, 1)];
    let ones: Vec<u8> =
        batch.iter().flat_map(|&(nodeid, nlookup)| ForgetOne { nodeid, nlookup }.as_bytes().to_vec()).collect();
    guest.tell(opcode::BATCH_FORGET, 0, &BatchForgetIn { count: 1000, padding: 0 }, &ones).unwrap();
    assert_eq!(guest.device.server().inodes.len(), 1, "the share stays");
    guest.lookup(1, "s").unwrap();
    guest.tell(opcode::DESTROY, 0, &(), &[]).unwrap();
    assert_eq!(guest.lookup(1, "s").unwrap_err(), libc::ENOTCONN);
}

#[test]
fn descriptors_are_bounded_and_the_guest_does_not_notice() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(at(&directory, "dir")).unwrap();
    for name in 0..200 {
        fs::write(at(&directory, &format!("dir/{name}")), name.to_string()).unwrap();
    }
    let mut guest = Guest::of(Fs::with_limits(vec![share("s", directory.path(), false)], 16, 4).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let dir = guest.lookup(root, "dir").unwrap().nodeid;
    let files: Vec<_> = (0..200).map(|name| guest.lookup(dir, &name.to_string()).unwrap().nodeid).collect();
    assert!(guest.device.server().inodes.hot <= 16);
    for (name, &file) in files.iter().enumerate() {
        let fh = guest.open(file, libc::O_RDWR).unwrap().fh;
        assert_eq!(guest.read(fh, 0, 10).unwrap(), name.to_string().as_bytes());
        guest.release(fh).unwrap();
        assert_eq!(guest.lookup(dir, &name.to_string()).unwrap().nodeid, file);
        assert!(guest.device.server().inodes.hot <= 16);
    }
    // The guest's own changes of names don't make anything stale.
    guest.tell(opcode::RENAME, root, &RenameIn { newdir: root }, &zz("dir", "moved")).unwrap();
    guest.tell(opcode::RENAME, dir, &RenameIn { newdir: root }, &zz("7", "seven")).unwrap();
    guest.tell(opcode::UNLINK, dir, &(), &z("8")).unwrap();
    assert_eq!(guest.getattr(files[7]).unwrap().size, 1);
    assert_eq!(guest.getattr(files[8]).unwrap().nlink, 0);
    assert_eq!(guest.getattr(files[9]).unwrap().nlink, 1);
    // The host's do, until the name is looked up again.
    let other =
        (20..40).map(|at| files[at]).find(|&file| guest.device.server().inodes.peek(file).unwrap().fd().is_err());
    let name = files.iter().position(|&file| Some(file) == other).unwrap();
    fs::rename(at(&directory, &format!("moved/{name}")), at(&directory, "moved/host")).unwrap();
    assert_eq!(guest.getattr(files[name]).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.lookup(dir, "host").unwrap().nodeid, files[name]);
    assert_eq!(guest.getattr(files[name]).unwrap().size, 2);
    fs::remove_file(at(&directory, "moved/50")).unwrap();
    fs::write(at(&directory, "moved/50"), "another").unwrap();
    let now = guest.lookup(dir, "50").unwrap();
    assert!(now.nodeid != files[50] && now.attr.size == 7);
    for &file in &files {
        guest.forget(file, 100);
    }
    assert!(files.iter().all(|&file| guest.getattr(file).err() == Some(libc::ESTALE)));
}

#[test]
fn what_has_no_name_stays_and_fills_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let mut guest = Guest::of(Fs::with_limits(vec![share("s", directory.path(), false)], 16, 4).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let mut gone = Vec::new();
    let error = loop {
        match guest.create(root, "file", libc::O_RDWR, 0o600) {
            Ok((entry, open)) => {
                guest.release(open.fh).unwrap();
                guest.tell(opcode::UNLINK, root, &(), &z("file")).unwrap();
                gone.push(entry.nodeid);
            }
            Err(error) => break error,
        }
    };
    assert_eq!((error, gone.len()), (libc::ENFILE, 15));
    assert!(gone.iter().all(|&file| guest.getattr(file).is_ok()));
    guest.forget(gone[3], 1);
    guest.lookup(root, "file").unwrap();
}

#[test]
fn handles_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "file"), "x").unwrap();
    let shares = |names: &[&str]| names.iter().map(|name| share(name, directory.path(), false)).collect();
    let mut guest = Guest::of(Fs::with_limits(shares(&["s"]), 16, 4).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let fh = guest.opendir(root).unwrap().fh;
    for _ in 0..3 {
        guest.open(file, libc::O_RDONLY).unwrap();
    }
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap_err(), libc::ENFILE);
    guest.release(fh).unwrap();
    guest.open(file, libc::O_RDONLY).unwrap();
    assert!(Fs::with_limits(shares(&["a", "b"]), 1, 1).is_err());
}

/// Every number of a request, known or not, with every length at which something could be cut, on what is there and what is not.
#[test]
fn every_request_can_be_cut_short_and_made_long() {
    const LENGTHS: [usize; 18] = [0, 1, 3, 4, 7, 8, 16, 24, 31, 32, 40, 48, 64, 88, 104, 128, 5000, 66_560];
    let (outside, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(at(&outside, "secret"), "secret").unwrap();
    fs::create_dir(at(&directory, "s")).unwrap();
    symlink(outside.path(), at(&directory, "s/out")).unwrap();
    let new = |directory: &tempfile::TempDir| {
        Guest::of(Fs::new("test", vec![share("s", &at(directory, "s"), false)]).unwrap())
    };
    let mut guest = new(&directory);
    let patterns: [&[u8]; 4] = [b"\0", b"\xff", b"../a/../\0", b"\x01\0\0\0\0\0\0\0"];
    for code in (0..64).chain([4096, 1 << 31, u32::MAX]).filter(|&code| code != opcode::SYNCFS) {
        let root = guest.lookup(1, "s").unwrap().nodeid;
        for (nodeid, length) in
            [root, root + 1, 0, 1, u64::MAX].into_iter().flat_map(|id| LENGTHS.map(|length| (id, length)))
        {
            for pattern in patterns {
                let body: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
                let answer = guest.request(code, nodeid, &body, 200);
                let well_known = opcode::name(code) != opcode::name(u32::MAX);
                assert!(well_known || answer == Err(libc::ENOSYS), "{code}: {answer:?}");
            }
        }
        if code == opcode::INIT || code == opcode::DESTROY {
            guest.init(u64::MAX);
        }
    }
    assert_eq!(fs::read_to_string(at(&outside, "secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["s"], "nothing beside the share");
    let server = guest.device.server();
    assert!(server.inodes.len() < 100 && server.handles.len() < 5000 && server.unfinished.is_none());
    assert!(server.locks.is_empty());
    guest.lookup(1, "s").unwrap();
}
