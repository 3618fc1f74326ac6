//! Reading directories in small pieces, from anywhere, while they change.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use zerocopy::{FromBytes, IntoBytes};

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;

pub struct Listed {
    pub name: String,
    pub off: u64,
    dirent: Dirent,
    entry: EntryOut,
}

impl Guest {
    pub fn list(&mut self, nodeid: u64, fh: u64, offset: u64, size: usize, plus: bool) -> Result<Vec<Listed>, i32> {
        let args = ReadIn { fh, offset, size: size as u32, ..ReadIn::default() };
        let code = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let reply = self.request(code, nodeid, args.as_bytes(), size + 100)?;
        assert!(reply.len() <= size);
        let (mut rest, mut all) = (&reply[..], Vec::new());
        while !rest.is_empty() {
            let mut entry = EntryOut::default();
            if plus {
                (entry, rest) = EntryOut::read_from_prefix(rest).unwrap();
            }
            let (dirent, after) = Dirent::read_from_prefix(rest).unwrap();
            let length = dirent.namelen as usize;
            let name = String::from_utf8(after[..length].to_vec()).unwrap();
            rest = &after[length.next_multiple_of(8)..];
            all.push(Listed { name, off: dirent.off, dirent, entry });
        }
        Ok(all)
    }

    fn list_all(&mut self, nodeid: u64, fh: u64, size: usize, plus: bool) -> Vec<Listed> {
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let some = self.list(nodeid, fh, offset, size, plus).unwrap();
            let Some(last) = some.last() else { return all };
            offset = last.off;
            all.extend(some);
        }
    }
}

fn names(listed: &[Listed]) -> HashSet<String> {
    listed.iter().map(|entry| entry.name.clone()).collect()
}

#[test]
fn twenty_thousand_entries_in_small_pieces() {
    let (mut guest, directory, root) = Guest::with_share();
    for number in 0..20_000 {
        fs::write(at(&directory, &format!("file-{number}")), "").unwrap();
    }
    let fh = guest.opendir(root).unwrap().fh;
    let all = guest.list_all(root, fh, 4096, false);
    assert_eq!((all.len(), names(&all).len()), (20_002, 20_002));
    let tiny = guest.list(root, fh, all[10_000].off, 64, false).unwrap();
    assert_eq!(tiny[0].name, all[10_001].name, "a position means the same later");
    // Two handles in turns, each from where it was.
    let other = guest.opendir(root).unwrap().fh;
    let (mut one, mut two) = (0, 0);
    for _ in 0..100 {
        let first = guest.list(root, fh, one, 2000, false).unwrap();
        let second = guest.list(root, other, two, 2000, false).unwrap();
        assert_eq!(first[0].name, second[0].name);
        (one, two) = (first.last().unwrap().off, second.last().unwrap().off);
    }
    // Removing what was listed loses nothing of the rest.
    let (mut seen, mut offset) = (HashSet::new(), 0);
    loop {
        let some = guest.list(root, fh, offset, 4096, false).unwrap();
        let Some(last) = some.last() else { break };
        offset = last.off;
        for entry in some.iter().filter(|entry| entry.name.starts_with("file")) {
            assert!(seen.insert(entry.name.clone()), "{} came twice", entry.name);
            guest.tell(opcode::UNLINK, root, &(), &z(&entry.name)).unwrap();
        }
    }
    assert_eq!(seen.len(), 20_000);
    guest.release(fh).unwrap();
    assert_eq!(guest.list(root, fh, 0, 4096, false).err(), Some(libc::EBADF));
}

#[test]
fn plus_gives_what_lookups_would() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "file"), "12345").unwrap();
    fs::create_dir(at(&directory, "dir")).unwrap();
    let fh = guest.opendir(root).unwrap().fh;
    let all = guest.list_all(root, fh, 400, true);
    assert_eq!(all.len(), 4);
    for entry in &all {
        let dots = entry.name.starts_with('.');
        assert_eq!(entry.entry.nodeid == 0, dots);
        if !dots {
            assert_eq!(entry.dirent.ino, at(&directory, &entry.name).metadata().unwrap().ino());
            assert_eq!(entry.dirent.ino, entry.entry.attr.ino);
            assert_eq!(guest.lookup(root, &entry.name).unwrap().nodeid, entry.entry.nodeid);
            guest.forget(entry.entry.nodeid, 1);
            guest.getattr(entry.entry.nodeid).unwrap();
            guest.forget(entry.entry.nodeid, 1);
            guest.getattr(entry.entry.nodeid).unwrap_err();
        }
    }
    assert_eq!(guest.list(root, fh, 0, 8, true).err(), Some(libc::EINVAL), "no room for one");
    assert_eq!(guest.list(root, fh, u64::MAX, 4096, true).err(), Some(libc::EINVAL));
    fs::write(at(&directory, "late"), "").unwrap();
    assert!(names(&guest.list_all(root, fh, 4096, false)).contains("late"), "from the start afresh");
}

#[test]
fn the_root_lists_shares() {
    let directory = tempfile::tempdir().unwrap();
    let shares = (0..50).map(|number| share(&format!("share-{number}"), directory.path(), true)).collect();
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    let fh = guest.opendir(1).unwrap().fh;
    assert_eq!(names(&guest.list_all(1, fh, 4096, false)).len(), 52);
    let all = guest.list_all(1, fh, 500, true);
    assert_eq!(all.len(), 52);
    assert!(all[2..].iter().all(|entry| entry.entry.attr.flags == ATTR_SUBMOUNT && entry.entry.nodeid > 1));
    assert!(guest.list(1, fh, u64::MAX, 4096, false).unwrap().is_empty());
    let fsync = FsyncIn { fh, flags: 0, padding: 0 };
    guest.tell(opcode::FSYNCDIR, 1, &fsync, &[]).unwrap();
    assert_eq!(guest.read(fh, 0, 10).unwrap_err(), libc::EBADF);
}
