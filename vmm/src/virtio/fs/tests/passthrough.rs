//! What each request does on the host.

use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};

use zerocopy::IntoBytes;

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;
use crate::virtio::Device;

#[test]
fn init_agrees_on_what_both_can_do() {
    let mut guest = Guest::unborn(Fs::new("shares", vec![]).unwrap());
    assert_eq!(guest.getattr(1).unwrap_err(), libc::ENOTCONN);
    let out = guest.init(u64::MAX);
    assert_eq!((out.major, out.minor, out.max_write, out.max_pages), (7, 41, 1 << 20, 256));
    assert_ne!(u64::from(out.flags) & init::POSIX_ACL, 0);
    let out = guest.init(!init::DONT_MASK);
    assert_eq!(u64::from(out.flags) & (init::POSIX_ACL | init::DONT_MASK), 0);
    let old = InitIn { major: 7, minor: 30, ..InitIn::default() };
    assert_eq!(guest.call::<_, InitOut>(opcode::INIT, 0, &old, &[]).unwrap_err(), libc::EPROTO);
    let plain = InitIn { major: 7, minor: 31, flags: 0, max_readahead: 0 };
    let out: InitOut = guest.call(opcode::INIT, 0, &plain, &[]).unwrap();
    assert_eq!((out.minor, out.flags, out.flags2), (31, 0, 0));
}

#[test]
fn configuration_has_tag_and_one_request_queue() {
    let device = Fs::new("shares", vec![]).unwrap();
    let config = device.config();
    assert_eq!((config.len(), &config[..7], &config[36..]), (40, &b"shares\0"[..], &[1u8, 0, 0, 0][..]));
    assert_eq!((device.id(), device.queue_sizes().len()), (26, 3));
    assert!(Fs::new("", vec![]).is_err());
    assert!(Fs::new(&"x".repeat(37), vec![]).is_err());
}

#[test]
fn shares_are_entries_of_a_read_only_root() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "hosts"), "127.0.0.1").unwrap();
    age();
    let shares = || vec![share("data", directory.path(), false), share("hosts", &at(&directory, "hosts"), false)];
    let mut guest = Guest::of(Fs::new("test", shares()).unwrap());
    let data = guest.lookup(1, "data").unwrap();
    assert_eq!(data.attr.flags, ATTR_SUBMOUNT);
    assert_eq!(data.attr.ino, directory.path().metadata().unwrap().ino());
    let hosts = guest.lookup(1, "hosts").unwrap();
    assert_eq!((hosts.attr.flags, hosts.attr.mode & libc::S_IFMT), (0, libc::S_IFREG));
    assert_eq!(guest.lookup(1, "etc").unwrap_err(), libc::ENOENT);
    let fh = guest.open(hosts.nodeid, libc::O_RDWR).unwrap().fh;
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"127.0.0.1");
    assert_eq!(guest.mkdir(1, "new", 0o755).unwrap_err(), libc::EROFS);
    assert_eq!(guest.tell(opcode::UNLINK, 1, &(), &z("hosts")).unwrap_err(), libc::EROFS);
    assert_eq!(guest.setattr(1, SetattrIn::default()).unwrap_err(), libc::EROFS);
    assert_eq!(guest.getattr(1).unwrap().mode, libc::S_IFDIR | 0o555);
    let statfs: StatfsOut = guest.call(opcode::STATFS, 1, &(), &[]).unwrap();
    assert_eq!(statfs.namelen, 255);
    assert!(Fs::new("test", [shares(), shares()].concat_vec()).is_err());
}

/// `concat` for what cannot be cloned.
trait ConcatVec<T> {
    fn concat_vec(self) -> Vec<T>;
}

impl<T, const N: usize> ConcatVec<T> for [Vec<T>; N] {
    fn concat_vec(self) -> Vec<T> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn files_are_made_written_and_read() {
    let (mut guest, directory, root) = Guest::with_share();
    let (entry, open) = guest.create(root, "file", libc::O_RDWR, 0o640).unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o640);
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(guest.write(open.fh, 5, &data).unwrap(), data.len() as u32);
    assert_eq!(guest.read(open.fh, 5, data.len()).unwrap(), data);
    assert_eq!(guest.read(open.fh, 900_005, 1 << 20).unwrap(), data[900_000..], "short at the end");
    assert_eq!(guest.read(open.fh, 2_000_000, 100).unwrap(), b"");
    assert_eq!(fs::read(at(&directory, "file")).unwrap()[5..], data);
    let far = 5 << 32;
    assert_eq!(guest.write(open.fh, far, b"far").unwrap(), 3);
    assert_eq!(guest.read(open.fh, far - 2, 10).unwrap(), b"\0\0far");
    assert_eq!(guest.getattr(entry.nodeid).unwrap().size, far + 3);
    assert_eq!(guest.write(open.fh, u64::MAX - 1, b"x").unwrap_err(), libc::EINVAL);
    let lseek = LseekIn { fh: open.fh, offset: 2_000_000, whence: libc::SEEK_DATA as u32, padding: 0 };
    let out: LseekOut = guest.call(opcode::LSEEK, entry.nodeid, &lseek, &[]).unwrap();
    assert!(out.offset > 2_000_000 && out.offset <= far);
    let lseek = LseekIn { whence: libc::SEEK_END as u32, ..lseek };
    assert_eq!(guest.call::<_, LseekOut>(opcode::LSEEK, entry.nodeid, &lseek, &[]).unwrap_err(), libc::EINVAL);
    let fsync = FsyncIn { fh: open.fh, flags: 1, padding: 0 };
    guest.tell(opcode::FSYNC, entry.nodeid, &fsync, &[]).unwrap();
    let flush = FlushIn { fh: open.fh, ..FlushIn::default() };
    guest.tell(opcode::FLUSH, entry.nodeid, &flush, &[]).unwrap();
    guest.release(open.fh).unwrap();
    assert_eq!(guest.read(open.fh, 0, 1).unwrap_err(), libc::EBADF);
    assert_eq!(guest.release(open.fh).unwrap_err(), libc::EBADF);
}

#[test]
fn create_opens_what_is_there_unless_it_must_not() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "old"), "content").unwrap();
    let (entry, open) = guest.create(root, "old", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(guest.read(open.fh, 0, 100).unwrap(), b"content");
    assert_eq!(entry.attr.size, 7);
    assert_eq!(guest.create(root, "old", libc::O_RDWR | libc::O_EXCL, 0o600).unwrap_err(), libc::EEXIST);
    guest.create(root, "old", libc::O_RDWR | libc::O_TRUNC, 0o600).unwrap();
    assert_eq!(fs::read(at(&directory, "old")).unwrap(), b"");
    symlink("/etc/passwd", at(&directory, "link")).unwrap();
    assert_eq!(guest.create(root, "link", libc::O_RDWR, 0o600).unwrap_err(), libc::ENXIO);
    let known = guest.device.server().inodes.len();
    fs::create_dir(at(&directory, "dir")).unwrap();
    assert_eq!(guest.create(root, "dir", libc::O_RDWR, 0o600).unwrap_err(), libc::EISDIR);
    assert_eq!(guest.device.server().inodes.len(), known);
}

#[test]
fn open_truncates_appends_and_keeps_the_cache_of_unchanged_files() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "log"), "one").unwrap();
    age();
    let log = guest.lookup(root, "log").unwrap().nodeid;
    assert_ne!(guest.open(log, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
    assert_ne!(guest.open(log, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
    fs::write(at(&directory, "log"), "two").unwrap();
    age();
    assert_eq!(guest.open(log, libc::O_RDONLY).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.lookup(root, "log").unwrap().nodeid, log);
    assert_eq!(guest.open(log, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
    assert_ne!(guest.open(log, libc::O_RDONLY).unwrap().open_flags & FOPEN_KEEP_CACHE, 0);
    let fh = guest.open(log, libc::O_WRONLY | libc::O_APPEND).unwrap().fh;
    fs::OpenOptions::new().write(true).open(at(&directory, "log")).unwrap().write_at(b"three", 3).unwrap();
    // The guest still believes that the file ends at 3.
    let append = WriteIn { fh, offset: 3, flags: libc::O_APPEND as u32, ..WriteIn::default() };
    guest.write_with(append, b"four").unwrap();
    assert_eq!(fs::read(at(&directory, "log")).unwrap(), b"twothreefour");
    guest.write_with(WriteIn { offset: 0, write_flags: WRITE_CACHE, ..append }, b"TWO").unwrap();
    assert_eq!(fs::read(at(&directory, "log")).unwrap(), b"TWOthreefour");
    guest.open(log, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(fs::read(at(&directory, "log")).unwrap(), b"");
}

#[test]
fn unlinked_files_live_while_open_or_known() {
    let (mut guest, directory, root) = Guest::with_share();
    let (entry, open) = guest.create(root, "gone", libc::O_RDWR, 0o600).unwrap();
    guest.tell(opcode::UNLINK, root, &(), &z("gone")).unwrap();
    assert!(!at(&directory, "gone").exists());
    guest.write(open.fh, 0, b"still here").unwrap();
    let again = guest.open(entry.nodeid, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(again, 0, 100).unwrap(), b"still here");
    assert_eq!(guest.getattr(entry.nodeid).unwrap().nlink, 0);
    guest.forget(entry.nodeid, 1);
    assert_eq!(guest.read(open.fh, 0, 100).unwrap(), b"still here");
    assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), libc::ESTALE);
}

#[test]
fn tmpfile_gets_a_name_by_link() {
    let (mut guest, directory, root) = Guest::with_share();
    let args = CreateIn { flags: libc::O_RDWR as u32, mode: 0o600, ..CreateIn::default() };
    let (entry, open) = guest.create_with(opcode::TMPFILE, root, "/", args).unwrap();
    guest.write(open.fh, 0, b"data").unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let link = LinkIn { oldnodeid: entry.nodeid };
    let linked: EntryOut = guest.call(opcode::LINK, root, &link, &z("named")).unwrap();
    assert_eq!((linked.nodeid, linked.attr.nlink), (entry.nodeid, 1));
    assert_eq!(fs::read(at(&directory, "named")).unwrap(), b"data");
}

#[test]
fn names_are_made_linked_renamed_and_removed() {
    let (mut guest, directory, root) = Guest::with_share();
    let dir = guest.mkdir(root, "dir", 0o751).unwrap();
    assert_eq!(dir.attr.mode, libc::S_IFDIR | 0o751);
    let link: EntryOut = guest.call(opcode::SYMLINK, root, &(), &zz("link", "../any where")).unwrap();
    assert_eq!(guest.readlink(link.nodeid).unwrap(), b"../any where");
    let node = |mode, rdev| MknodIn { mode, rdev, umask: 0, padding: 0 };
    let fifo: EntryOut = guest.call(opcode::MKNOD, root, &node(libc::S_IFIFO | 0o600, 0), &z("fifo")).unwrap();
    assert_eq!(guest.open(fifo.nodeid, libc::O_RDONLY).unwrap_err(), libc::ENXIO);
    let whiteout = node(libc::S_IFCHR, 0);
    guest.call::<_, EntryOut>(opcode::MKNOD, root, &whiteout, &z("whiteout")).unwrap();
    assert!(at(&directory, "whiteout").metadata().unwrap().file_type().is_char_device());
    let null: EntryOut = guest.call(opcode::MKNOD, root, &node(libc::S_IFCHR | 0o666, 0x103), &z("null")).unwrap();
    assert_eq!(null.attr.rdev, 0x103);
    assert_eq!(guest.open(null.nodeid, libc::O_RDONLY).unwrap_err(), libc::ENXIO);
    let (file, _) = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    let hard: EntryOut = guest.call(opcode::LINK, dir.nodeid, &LinkIn { oldnodeid: file.nodeid }, &z("hard")).unwrap();
    assert_eq!((hard.nodeid, hard.attr.nlink), (file.nodeid, 2));
    let hardlink: EntryOut = guest.call(opcode::LINK, root, &LinkIn { oldnodeid: link.nodeid }, &z("link2")).unwrap();
    assert_eq!(hardlink.nodeid, link.nodeid, "a symbolic link itself is linked");
    guest.tell(opcode::RENAME, root, &RenameIn { newdir: dir.nodeid }, &zz("file", "moved")).unwrap();
    assert_eq!(guest.lookup(dir.nodeid, "moved").unwrap().nodeid, file.nodeid);
    assert_eq!(guest.tell(opcode::RMDIR, root, &(), &z("dir")).unwrap_err(), libc::ENOTEMPTY);
    assert_eq!(guest.tell(opcode::UNLINK, root, &(), &z("dir")).unwrap_err(), libc::EISDIR);
    guest.tell(opcode::UNLINK, dir.nodeid, &(), &z("hard")).unwrap();
    guest.tell(opcode::UNLINK, dir.nodeid, &(), &z("moved")).unwrap();
    guest.tell(opcode::RMDIR, root, &(), &z("dir")).unwrap();
    assert!(!at(&directory, "dir").exists());
}

#[test]
fn rename_flags() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "a"), "A").unwrap();
    fs::write(at(&directory, "b"), "B").unwrap();
    let mut rename =
        |flags| guest.tell(opcode::RENAME2, root, &Rename2In { newdir: root, flags, padding: 0 }, &zz("a", "b"));
    assert_eq!(rename(libc::RENAME_NOREPLACE).unwrap_err(), libc::EEXIST);
    assert_eq!(rename(libc::RENAME_WHITEOUT).unwrap_err(), libc::EINVAL);
    assert_eq!(rename(1 << 7).unwrap_err(), libc::EINVAL);
    rename(libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(at(&directory, "a")).unwrap(), b"B");
    rename(0).unwrap();
    assert_eq!(fs::read(at(&directory, "b")).unwrap(), b"B");
    assert!(!at(&directory, "a").exists());
}

#[test]
fn attributes_are_set() {
    let (mut guest, directory, root) = Guest::with_share();
    let (file, open) = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    let valid = fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME;
    let args = SetattrIn {
        valid,
        mode: 0o6755,
        uid: 7,
        gid: 8,
        size: 100,
        atime: 5,
        mtime: 6,
        mtimensec: 9,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(file.nodeid, args).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.uid, attr.gid, attr.size), (0o6755, 7, 8, 100));
    assert_eq!((attr.atime, attr.mtime, attr.mtimensec), (5, 6, 9));
    let metadata = at(&directory, "file").metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.mtime()), (0o6755, 7, 6));
    let kill = fattr::SIZE | fattr::FH | fattr::KILL_SUIDGID;
    let attr = guest.setattr(file.nodeid, SetattrIn { valid: kill, fh: open.fh, size: 3, ..SetattrIn::default() });
    let attr = attr.unwrap();
    assert_eq!((attr.mode & 0o7777, attr.size), (0o755, 3));
    let now = SetattrIn { valid: fattr::MTIME | fattr::MTIME_NOW, ..SetattrIn::default() };
    assert!(guest.setattr(file.nodeid, now).unwrap().mtime > 1_000_000_000);
    symlink("nowhere", at(&directory, "link")).unwrap();
    let link = guest.lookup(root, "link").unwrap().nodeid;
    let owner = SetattrIn { valid: fattr::UID | fattr::MTIME, uid: 9, mtime: 77, ..SetattrIn::default() };
    let attr = guest.setattr(link, owner).unwrap();
    assert_eq!((attr.uid, attr.mtime, attr.mode & libc::S_IFMT), (9, 77, libc::S_IFLNK));
    let statx: StatxOut = guest.call(opcode::STATX, file.nodeid, &StatxIn::default(), &[]).unwrap();
    assert_eq!((statx.size, statx.uid, u32::from(statx.mode)), (3, 7, libc::S_IFREG | 0o755));
    assert!(statx.btime.sec > 1_000_000_000);
}

#[test]
fn space_is_allocated_copied_and_synced() {
    let (mut guest, _directory, root) = Guest::with_share();
    let (one, from) = guest.create(root, "one", libc::O_RDWR, 0o600).unwrap();
    let (_, to) = guest.create(root, "two", libc::O_RDWR, 0o600).unwrap();
    guest.write(from.fh, 0, &[7; 10_000]).unwrap();
    let copy =
        CopyFileRangeIn { fh_in: from.fh, off_in: 10, fh_out: to.fh, off_out: 3, len: u64::MAX, ..Default::default() };
    let out: WriteOut = guest.call(opcode::COPY_FILE_RANGE, one.nodeid, &copy, &[]).unwrap();
    assert_eq!(out.size, 9_990);
    assert_eq!(guest.read(to.fh, 0, 5).unwrap(), [0, 0, 0, 7, 7]);
    let allocate = FallocateIn { fh: from.fh, offset: 0, length: 1 << 20, mode: 0, padding: 0 };
    guest.tell(opcode::FALLOCATE, one.nodeid, &allocate, &[]).unwrap();
    assert_eq!(guest.getattr(one.nodeid).unwrap().size, 1 << 20);
    guest.tell(opcode::SYNCFS, root, &0u64, &[]).unwrap();
    guest.tell(opcode::SYNCFS, 1, &0u64, &[]).unwrap();
}

#[test]
fn names_may_be_any_bytes() {
    let (mut guest, directory, root) = Guest::with_share();
    let name = [&[0xff, b' ', b'\n', 0x80, b'\\'][..], &[0]].concat();
    let body = [MkdirIn { mode: 0o700, umask: 0 }.as_bytes(), &name].concat();
    guest.request(opcode::MKDIR, root, &body, 200).unwrap();
    guest.mkdir(root, &"x".repeat(255), 0o700).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_device_without_guest_objects_fits_any_shares() {
    let (mut guest, directory, root) = Guest::with_share();
    guest.forget(root, 1);
    let state = guest.device.save().unwrap();
    let mut other = Fs::new("test", vec![share("t", directory.path(), false)]).unwrap();
    assert!(other.restore(&state[1..]).is_err());
    other.restore(&state).unwrap();
    let mut guest = Guest::unborn(other);
    assert_eq!(guest.lookup(1, "t").unwrap().attr.flags, ATTR_SUBMOUNT);
    assert_eq!(guest.lookup(1, "s").unwrap_err(), libc::ENOENT);
    assert_ne!(guest.lookup(1, "t").unwrap().nodeid, root, "an old nodeid never means a new object");
}
