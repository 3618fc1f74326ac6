//! Owners, modes, privileges, read-only shares and extended attributes. Needs root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;

/// An access ACL: owner rwx, user 1234 rw, group r, mask rw, others none.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 6, 1234), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn what_a_caller_makes_is_its_own() {
    let (mut guest, directory, root) = Guest::with_share();
    // The guest's kernel has judged that it may, with groups that only it knows.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
    (guest.uid, guest.gid) = (1000, 2000);
    let file = guest.create(root, "file", libc::O_RDWR, 0o666).unwrap().0;
    let dir = guest.mkdir(root, "dir", 0o777).unwrap();
    let node = MknodIn { mode: libc::S_IFIFO | 0o600, ..MknodIn::default() };
    let fifo: EntryOut = guest.call(opcode::MKNOD, root, &node, &z("fifo")).unwrap();
    let link: EntryOut = guest.call(opcode::SYMLINK, root, &(), &zz("link", "x")).unwrap();
    for entry in [file, dir, fifo, link] {
        assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 2000));
    }
    (guest.uid, guest.gid) = (0, 0);
    assert_eq!(guest.create(root, "mine", libc::O_RDWR, 0o600).unwrap().0.attr.uid, 0);
    fs::set_permissions(at(&directory, "dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    chown(at(&directory, "dir"), None, Some(77)).unwrap();
    fs::set_permissions(at(&directory, "dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    guest.uid = 1000;
    let below = guest.mkdir(dir.nodeid, "below", 0o755).unwrap().attr;
    assert_eq!((below.uid, below.gid, below.mode & 0o7777), (1000, 77, 0o2755));
}

#[test]
fn the_umask_counts_unless_the_directory_has_a_default_acl() {
    let (mut guest, _directory, root) = Guest::with_share();
    let plain = guest.call::<_, EntryOut>(opcode::MKDIR, root, &MkdirIn { mode: 0o777, umask: 0o027 }, &z("plain"));
    assert_eq!(plain.unwrap().attr.mode & 0o777, 0o750);
    let args = CreateIn { flags: libc::O_RDWR as u32, mode: 0o666, umask: 0o077, open_flags: 0 };
    assert_eq!(guest.create_with(opcode::CREATE, root, "file", args).unwrap().0.attr.mode & 0o777, 0o600);
    assert_eq!(guest.mkdir(root, "next", 0o777).unwrap().attr.mode & 0o777, 0o777, "it is not kept");
    match guest.setxattr(root, "system.posix_acl_default", &acl(), 0) {
        Err(libc::EOPNOTSUPP) => return, // This host's file system has no ACLs.
        result => result.unwrap(),
    }
    let made = guest.create_with(opcode::CREATE, root, "inherits", args).unwrap().0;
    assert_eq!(made.attr.mode & 0o777, 0o660, "from the default ACL, whatever the umask");
    assert!(guest.getxattr(made.nodeid, "system.posix_acl_access", 100).unwrap().len() > 4);
}

#[test]
fn writing_drops_setuid_when_the_caller_has_no_right_to_keep_it() {
    let (mut guest, directory, root) = Guest::with_share();
    let (file, open) = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap();
    let set = || fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || at(&directory, "file").metadata().unwrap().mode() & 0o7777;
    set();
    guest.write(open.fh, 0, b"by root").unwrap();
    assert_eq!(mode(), 0o6755);
    let kill = WriteIn { fh: open.fh, write_flags: WRITE_KILL_SUIDGID, ..WriteIn::default() };
    guest.write_with(kill, b"by a user").unwrap();
    assert_eq!(mode(), 0o755);
    set();
    guest.lookup(root, "file").unwrap();
    let truncate = OpenIn { flags: (libc::O_WRONLY | libc::O_TRUNC) as u32, open_flags: OPEN_KILL_SUIDGID };
    guest.call::<_, OpenOut>(opcode::OPEN, file.nodeid, &truncate, &[]).unwrap();
    assert_eq!((mode(), at(&directory, "file").metadata().unwrap().len()), (0o755, 0));
    set();
    let owner = SetattrIn { valid: fattr::UID, uid: 5, ..SetattrIn::default() };
    assert_eq!(guest.setattr(file.nodeid, owner).unwrap().mode & 0o7777, 0o755);
    let capability = [0x0200_0001u32, 0x400, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    guest.setxattr(file.nodeid, "security.capability", &capability, 0).unwrap();
    assert_eq!(guest.getxattr(file.nodeid, "security.capability", 100).unwrap(), capability);
    guest.write(open.fh, 0, b"anybody").unwrap();
    assert_eq!(guest.getxattr(file.nodeid, "security.capability", 100).unwrap_err(), libc::ENODATA);
}

#[test]
fn space_and_copies_drop_setuid_but_not_for_root() {
    let (mut guest, directory, root) = Guest::with_share();
    let fh = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap().1.fh;
    guest.write(fh, 0, b"content").unwrap();
    let file = guest_node(&mut guest, root);
    let from = guest.open(file, libc::O_RDONLY).unwrap().fh;
    let mode = || at(&directory, "file").metadata().unwrap().mode() & 0o7777;
    for (uid, left) in [(0, 0o6755), (5, 0o755)] {
        guest.uid = uid;
        fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o6755)).unwrap();
        guest.tell(opcode::FALLOCATE, 0, &FallocateIn { fh, length: 100, ..FallocateIn::default() }, &[]).unwrap();
        assert_eq!(mode(), left);
        fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o6755)).unwrap();
        let copy = CopyFileRangeIn { fh_in: from, fh_out: fh, off_out: 50, len: 4, ..CopyFileRangeIn::default() };
        guest.call::<_, WriteOut>(opcode::COPY_FILE_RANGE, 0, &copy, &[]).unwrap();
        assert_eq!(mode(), left);
    }
}

fn guest_node(guest: &mut Guest, root: u64) -> u64 {
    guest.lookup(root, "file").unwrap().nodeid
}

#[test]
fn setuid_stays_in_a_read_only_share_whatever_the_guest_asks_for() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "file"), "content").unwrap();
    fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o6755)).unwrap();
    let shares = vec![share("s", directory.path(), true), share("w", directory.path(), false)];
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let file = guest_node(&mut guest, root);
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    guest.uid = 5;
    let write = WriteIn { fh, write_flags: WRITE_KILL_SUIDGID, ..WriteIn::default() };
    assert_eq!(guest.write_with(write, b"x").unwrap_err(), libc::EBADF);
    let space = FallocateIn { fh, length: 1, ..FallocateIn::default() };
    assert_eq!(guest.tell(opcode::FALLOCATE, file, &space, &[]).unwrap_err(), libc::EBADF);
    // A handle of the one share with a node of the other.
    let writable = guest.lookup(1, "w").unwrap().nodeid;
    let other = guest.lookup(writable, "file").unwrap().nodeid;
    let valid = fattr::SIZE | fattr::FH | fattr::KILL_SUIDGID;
    assert!(guest.setattr(other, SetattrIn { valid, fh, ..SetattrIn::default() }).is_err());
    assert_eq!(at(&directory, "file").metadata().unwrap().mode() & 0o7777, 0o6755);
}

#[test]
fn nothing_changes_in_a_read_only_share() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "file"), "content").unwrap();
    let mut guest = Guest::of(Fs::new("test", vec![share("s", directory.path(), true)]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(fh, 0, 100).unwrap(), b"content");
    let mut errors = vec![
        guest.write(fh, 0, b"x").map(drop).map_err(|error| if error == libc::EBADF { libc::EROFS } else { error }),
        guest.open(file, libc::O_RDWR).map(drop),
        guest.open(file, libc::O_RDONLY | libc::O_TRUNC).map(drop),
        guest.create(root, "new", libc::O_RDWR, 0o600).map(drop),
        guest.mkdir(root, "new", 0o700).map(drop),
        guest.setattr(file, SetattrIn { valid: fattr::MODE, ..SetattrIn::default() }).map(drop),
        guest.setxattr(file, "user.x", b"x", 0),
        guest.tell(opcode::REMOVEXATTR, file, &(), &z("user.x")),
        guest.tell(opcode::UNLINK, root, &(), &z("file")),
        guest.tell(opcode::RENAME, root, &RenameIn { newdir: root }, &zz("file", "b")),
        guest
            .tell(opcode::FALLOCATE, file, &FallocateIn { fh, length: 1, ..FallocateIn::default() }, &[])
            .map_err(|error| if error == libc::EBADF { libc::EROFS } else { error }),
    ];
    errors.push(guest.call::<_, EntryOut>(opcode::SYMLINK, root, &(), &zz("l", "x")).map(drop));
    errors.push(guest.call::<_, EntryOut>(opcode::LINK, root, &LinkIn { oldnodeid: file }, &z("l")).map(drop));
    assert!(errors.iter().all(|result| *result == Err(libc::EROFS)), "{errors:?}");
}

#[test]
fn extended_attributes_keep_to_their_policy() {
    let (mut guest, directory, root) = Guest::with_share();
    let file = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap().0.nodeid;
    guest.setxattr(file, "user.colour", b"green", 0).unwrap();
    guest.setxattr(file, "trusted.overlay.opaque", b"y", 0).unwrap();
    guest.setxattr(file, "user.empty", b"", 0).unwrap();
    assert_eq!(guest.getxattr(file, "user.colour", 0).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.getxattr(file, "user.colour", 4).unwrap_err(), libc::ERANGE);
    assert_eq!(guest.getxattr(file, "user.colour", 5).unwrap(), b"green");
    assert_eq!(guest.getxattr(file, "user.empty", 5).unwrap(), b"");
    assert_eq!(guest.getxattr(file, "trusted.overlay.opaque", 9).unwrap(), b"y");
    assert_eq!(guest.getxattr(file, "user.none", 9).unwrap_err(), libc::ENODATA);
    for name in ["user.virtiofs.trusted.overlay.opaque", "security.selinux", "system.other", "bare"] {
        assert_eq!(guest.setxattr(file, name, b"n", 0).unwrap_err(), libc::EOPNOTSUPP);
        assert_eq!(guest.getxattr(file, name, 9).unwrap_err(), libc::EOPNOTSUPP);
    }
    let list = guest.listxattr(file, 1000).unwrap();
    let size = guest.listxattr(file, 0).unwrap();
    assert_eq!(u32::from_le_bytes(size[..4].try_into().unwrap()) as usize, list.len());
    assert_eq!(guest.listxattr(file, list.len() as u32 - 1).unwrap_err(), libc::ERANGE);
    let mut names: Vec<_> = list.split(|&byte| byte == 0).map(|name| String::from_utf8_lossy(name)).collect();
    names.sort();
    assert_eq!(names, ["", "trusted.overlay.opaque", "user.colour", "user.empty"]);
    guest.uid = 5;
    assert_eq!(guest.listxattr(file, 1000).unwrap().iter().filter(|&&byte| byte == 0).count(), 2);
    guest.uid = 0;
    guest.tell(opcode::REMOVEXATTR, file, &(), &z("user.colour")).unwrap();
    assert_eq!(guest.getxattr(file, "user.colour", 9).unwrap_err(), libc::ENODATA);
    let path = at(&directory, "file");
    let mut value = [0u8; 8];
    assert_eq!(rustix::fs::getxattr(&path, "user.virtiofs.trusted.overlay.opaque", &mut value).unwrap(), 1);
    assert!(guest.listxattr(1, 100).unwrap().is_empty());
}

#[test]
fn an_acl_of_somebody_elses_group_drops_setgid() {
    let (mut guest, directory, root) = Guest::with_share();
    let file = guest.create(root, "file", libc::O_RDWR, 0o600).unwrap().0.nodeid;
    fs::set_permissions(at(&directory, "file"), fs::Permissions::from_mode(0o2770)).unwrap();
    match guest.setxattr(file, "system.posix_acl_access", &acl(), SETXATTR_ACL_KILL_SGID) {
        Err(libc::EOPNOTSUPP) => return, // This host's file system has no ACLs.
        result => result.unwrap(),
    }
    assert_eq!(guest.getattr(file).unwrap().mode & 0o7777, 0o760);
    assert_eq!(guest.getxattr(file, "system.posix_acl_access", 100).unwrap(), acl());
}
