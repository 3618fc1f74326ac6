//! What a hostile guest may not do to the files of a share, whatever it says of its processes. Needs root.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::sync::{Arc, Mutex};

use rustix::fs::FileType;

use super::super::fuse::*;
use super::super::{Fs, IdSet, Ids, MakeNode, Node, Policy, Share};
use super::guest::*;

fn ids(uids: &[u32], gids: &[u32]) -> Ids {
    let set = |ids: &[u32]| IdSet::of(ids.iter().map(|&id| id..=id));
    Ids { uids: set(uids), gids: set(gids) }
}

/// User 1000 with groups 2000 and 3000, without capabilities and ways to get any.
fn plain() -> Policy {
    Policy {
        device_nodes: false,
        file_capabilities: false,
        any_owner: false,
        keeps_set_id: false,
        set_id: true,
        known: Ids::all(),
        makers: ids(&[1000], &[2000, 3000]),
        own: ids(&[1000], &[2000, 3000]),
    }
}

/// Root of a user namespace with 65,536 ids.
fn mapped() -> Policy {
    let some = || IdSet::of([100_000..=165_535]);
    let some = || Ids { uids: some(), gids: some() };
    Policy { device_nodes: false, known: some(), makers: some(), own: some(), ..Policy::unrestricted() }
}

fn guest(policy: Policy) -> (Guest, tempfile::TempDir, u64) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let share = Share { policy, ..share("s", directory.path(), false) };
    let mut guest = Guest::of(Fs::new("test", vec![share]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    (guest, directory, root)
}

/// Makes a file of the host's; returns its nodeid.
fn file(guest: &mut Guest, directory: &tempfile::TempDir, root: u64, owner: (u32, u32), mode: u32) -> u64 {
    let path = at(directory, "file");
    fs::write(&path, "content").unwrap();
    chown(&path, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    guest.lookup(root, "file").unwrap().nodeid
}

fn mode_of(directory: &tempfile::TempDir) -> u32 {
    at(directory, "file").metadata().unwrap().mode() & 0o7777
}

fn set_mode(directory: &tempfile::TempDir, mode: u32) {
    fs::set_permissions(at(directory, "file"), Permissions::from_mode(mode)).unwrap();
}

fn mknod(guest: &mut Guest, root: u64, mode: u32, rdev: u32, name: &str) -> Result<EntryOut, i32> {
    guest.call(opcode::MKNOD, root, &MknodIn { mode, rdev, ..MknodIn::default() }, &z(name))
}

fn chmod(guest: &mut Guest, node: u64, mode: u32) -> Result<u32, i32> {
    guest.setattr(node, SetattrIn { valid: fattr::MODE, mode, ..SetattrIn::default() }).map(|attr| attr.mode & 0o7777)
}

fn give(guest: &mut Guest, node: u64, uid: u32, gid: u32) -> Result<(u32, u32), i32> {
    let valid = if uid == u32::MAX { 0 } else { fattr::UID } | if gid == u32::MAX { 0 } else { fattr::GID };
    guest.setattr(node, SetattrIn { valid, uid, gid, ..SetattrIn::default() }).map(|attr| (attr.uid, attr.gid))
}

/// A value of `security.capability` with CAP_NET_BIND_SERVICE; of the user namespace with this root, if any.
fn capability(root: Option<u32>) -> Vec<u8> {
    let words = [if root.is_some() { 0x0300_0001u32 } else { 0x0200_0001 }, 0x400, 0, 0, 0];
    words.into_iter().chain(root).flat_map(u32::to_le_bytes).collect()
}

/// An access ACL that names a user and a group.
fn acl(uid: u32, gid: u32) -> Vec<u8> {
    let none = u32::MAX;
    let entries: [(u16, u16, u32); 6] =
        [(1, 6, none), (2, 6, uid), (4, 4, none), (8, 4, gid), (0x10, 6, none), (0x20, 0, none)];
    let entries = entries.map(|(tag, permissions, id)| {
        [tag.to_le_bytes().as_slice(), &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    [2u32.to_le_bytes().to_vec(), entries.concat()].concat()
}

#[test]
fn nothing_is_made_in_another_name() {
    let (mut guest, directory, root) = guest(plain());
    for (uid, gid) in [(0, 0), (0, 2000), (1000, 0), (1001, 2000), (1000, u32::MAX)] {
        (guest.uid, guest.gid) = (uid, gid);
        let link: Result<EntryOut, i32> = guest.call(opcode::SYMLINK, root, &(), &zz("n", "x"));
        let nameless = CreateIn { flags: libc::O_RDWR as u32, mode: 0o600, ..CreateIn::default() };
        let refused = [
            guest.create(root, "n", libc::O_RDWR, 0o4755).map(drop),
            guest.create_with(opcode::TMPFILE, root, "n", nameless).map(drop),
            guest.mkdir(root, "n", 0o755).map(drop),
            mknod(&mut guest, root, libc::S_IFREG | 0o644, 0, "n").map(drop),
            mknod(&mut guest, root, libc::S_IFIFO | 0o644, 0, "n").map(drop),
            link.map(drop),
        ];
        assert_eq!(refused, [Err(libc::EPERM); 6], "as {uid}:{gid}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    (guest.uid, guest.gid) = (1000, 3000);
    let made = guest.create(root, "n", libc::O_RDWR, 0o4755).unwrap().0.attr;
    assert_eq!((made.uid, made.gid, made.mode & 0o7777), (1000, 3000, 0o4755), "its own it may, as under runc");
}

#[test]
fn device_nodes_want_the_right_and_whiteouts_none() {
    let (mut guest, directory, root) = guest(plain());
    (guest.uid, guest.gid) = (1000, 2000);
    for (kind, number) in [(libc::S_IFBLK, 0x800), (libc::S_IFCHR, 0x103), (libc::S_IFBLK, 0)] {
        assert_eq!(mknod(&mut guest, root, kind | 0o666, number, "n").unwrap_err(), libc::EPERM);
        assert!(!at(&directory, "n").exists());
    }
    for (name, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK), ("whiteout", libc::S_IFCHR)] {
        mknod(&mut guest, root, kind | 0o666, 0, name).unwrap();
    }
    let whiteout = fs::symlink_metadata(at(&directory, "whiteout")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    // Not the long way round, either.
    let rename = Rename2In { newdir: root, flags: libc::RENAME_WHITEOUT, padding: 0 };
    assert_eq!(guest.tell(opcode::RENAME2, root, &rename, &zz("fifo", "n")).unwrap_err(), libc::EINVAL);
}

#[test]
fn owner_group_and_mode_of_others_stay() {
    let (mut guest, directory, root) = guest(plain());
    (guest.uid, guest.gid) = (1000, 2000);
    let node = file(&mut guest, &directory, root, (0, 0), 0o755);
    for (uid, gid) in [(1000, u32::MAX), (u32::MAX, 2000), (0, 0), (1000, 2000)] {
        assert_eq!(give(&mut guest, node, uid, gid).unwrap_err(), libc::EPERM, "{uid}:{gid}");
    }
    for mode in [0o4755, 0o2755, 0o777, 0o6777] {
        assert_eq!(chmod(&mut guest, node, mode).unwrap_err(), libc::EPERM, "{mode:o}");
    }
    assert_eq!(guest.setxattr(node, "system.posix_acl_access", &acl(1000, 2000), 0).unwrap_err(), libc::EPERM);
    let gone = guest.tell(opcode::REMOVEXATTR, node, &(), &z("system.posix_acl_access"));
    assert_eq!((gone.unwrap_err(), mode_of(&directory)), (libc::EPERM, 0o755));
    // An older kernel takes dangerous bits away by itself.
    set_mode(&directory, 0o4755);
    assert_eq!(chmod(&mut guest, node, 0o755).unwrap(), 0o755);
    // Both in one request, and through a handle.
    let valid = fattr::UID | fattr::MODE | fattr::FH;
    let both = SetattrIn { valid, uid: 1000, mode: 0o4755, ..SetattrIn::default() };
    assert_eq!(guest.setattr(node, both).unwrap_err(), libc::EPERM);
    let owner = at(&directory, "file").metadata().unwrap();
    assert_eq!((owner.uid(), owner.gid(), mode_of(&directory)), (0, 0, 0o755));
}

#[test]
fn a_users_own_files_are_its_own_to_change() {
    let (mut guest, directory, root) = guest(plain());
    let node = file(&mut guest, &directory, root, (1000, 2000), 0o644);
    assert_eq!(give(&mut guest, node, u32::MAX, 3000).unwrap(), (1000, 3000));
    assert_eq!(give(&mut guest, node, 1000, 2000).unwrap(), (1000, 2000));
    assert_eq!(give(&mut guest, node, 0, u32::MAX).unwrap_err(), libc::EPERM);
    assert_eq!(give(&mut guest, node, u32::MAX, 0).unwrap_err(), libc::EPERM);
    assert_eq!(chmod(&mut guest, node, 0o6755).unwrap(), 0o6755);
    match guest.setxattr(node, "system.posix_acl_access", &acl(0, 0), 0) {
        Ok(()) | Err(libc::EOPNOTSUPP) => {}
        Err(error) => panic!("whom an ACL names is the owner's to say: {error}"),
    }
    // Where its file has another's group, as in a directory that is setgid.
    let node = file(&mut guest, &directory, root, (1000, 50), 0o644);
    assert_eq!(chmod(&mut guest, node, 0o6755).unwrap(), 0o4755);
    fs::create_dir(at(&directory, "shared")).unwrap();
    chown(at(&directory, "shared"), None, Some(50)).unwrap();
    fs::set_permissions(at(&directory, "shared"), Permissions::from_mode(0o2777)).unwrap();
    let shared = guest.lookup(root, "shared").unwrap().nodeid;
    (guest.uid, guest.gid) = (1000, 2000);
    let made = guest.create(shared, "n", libc::O_RDWR, 0o2755).unwrap().0.attr;
    assert_eq!((made.gid, made.mode & 0o7777), (50, 0o755));
    assert_eq!(guest.mkdir(shared, "d", 0o755).unwrap().attr.mode & 0o7777, 0o2755, "directories pass it on");
}

#[test]
fn no_setuid_where_the_policy_has_none() {
    let (mut guest, directory, root) = guest(Policy { set_id: false, ..plain() });
    (guest.uid, guest.gid) = (1000, 2000);
    assert_eq!(guest.create(root, "a", libc::O_RDWR, 0o6755).unwrap().0.attr.mode & 0o7777, 0o755);
    let made = mknod(&mut guest, root, libc::S_IFREG | 0o6755, 0, "b").unwrap();
    assert_eq!(made.attr.mode & 0o7777, 0o755);
    let node = file(&mut guest, &directory, root, (1000, 2000), 0o644);
    assert_eq!(chmod(&mut guest, node, 0o6711).unwrap(), 0o711);
    assert_eq!(guest.mkdir(root, "d", 0o755).unwrap().attr.mode & 0o7777, 0o755);
    let directory = guest.lookup(root, "d").unwrap().nodeid;
    assert_eq!(chmod(&mut guest, directory, 0o3755).unwrap(), 0o3755, "of directories it means something else");
}

#[test]
fn new_content_is_never_setuid_whatever_the_guest_does_not_ask_for() {
    let (mut guest, directory, root) = guest(plain());
    let node = file(&mut guest, &directory, root, (0, 0), 0o4755);
    let fh = guest.open(node, libc::O_RDWR).unwrap().fh;
    type Change = fn(&mut Guest, u64, u64) -> Result<(), i32>;
    let changes: [(&str, Change); 6] = [
        ("write", |guest, _, fh| guest.write(fh, 0, b"x").map(drop)),
        ("fallocate", |guest, _, fh| {
            guest.tell(opcode::FALLOCATE, 0, &FallocateIn { fh, length: 100, ..FallocateIn::default() }, &[])
        }),
        ("copy", |guest, _, fh| {
            let copy = CopyFileRangeIn { fh_in: fh, fh_out: fh, off_out: 50, len: 4, ..CopyFileRangeIn::default() };
            guest.call::<_, WriteOut>(opcode::COPY_FILE_RANGE, 0, &copy, &[]).map(drop)
        }),
        ("truncate", |guest, node, _| {
            guest.setattr(node, SetattrIn { valid: fattr::SIZE, size: 5, ..SetattrIn::default() }).map(drop)
        }),
        ("truncate by handle", |guest, node, fh| {
            let valid = fattr::SIZE | fattr::FH;
            guest.setattr(node, SetattrIn { valid, fh, size: 4, ..SetattrIn::default() }).map(drop)
        }),
        ("open", |guest, node, _| {
            guest.getattr(node).unwrap();
            guest.open(node, libc::O_WRONLY | libc::O_TRUNC).map(drop)
        }),
    ];
    for (what, change) in changes {
        set_mode(&directory, 0o4755);
        change(&mut guest, node, fh).unwrap();
        assert_eq!(mode_of(&directory), 0o755, "{what}");
    }
}

#[test]
fn capabilities_of_files_want_the_right() {
    let (mut guest, directory, root) = guest(plain());
    let node = file(&mut guest, &directory, root, (1000, 2000), 0o755);
    let mut set = |value: &[u8]| guest.setxattr(node, "security.capability", value, 0);
    for root in [None, Some(0), Some(1), Some(u32::MAX)] {
        assert_eq!(set(&capability(root)).unwrap_err(), libc::EPERM, "{root:?}");
    }
    for cut in 0..24 {
        assert!(set(&capability(Some(1000))[..cut]).is_err(), "{cut}");
    }
    // Whoever is user 1000 has all capabilities in a user namespace of its own, and this says something only there.
    set(&capability(Some(1000))).unwrap();
    guest.tell(opcode::REMOVEXATTR, node, &(), &z("security.capability")).unwrap();
    guest.setxattr(node, "user.x", b"x", 0).unwrap();
}

#[test]
fn a_user_namespace_reaches_its_own_ids_only() {
    let (mut guest, directory, root) = guest(mapped());
    for (uid, gid) in [(0, 0), (99_999, 100_000), (100_000, 165_536), (1000, 100_000)] {
        (guest.uid, guest.gid) = (uid, gid);
        assert_eq!(guest.create(root, "n", libc::O_RDWR, 0o644).map(drop).unwrap_err(), libc::EPERM, "{uid}:{gid}");
    }
    (guest.uid, guest.gid) = (100_000, 165_535);
    guest.create(root, "mine", libc::O_RDWR, 0o4755).unwrap();
    let mine = guest.lookup(root, "mine").unwrap().nodeid;
    assert_eq!(give(&mut guest, mine, 165_535, 100_001).unwrap(), (165_535, 100_001));
    assert_eq!(give(&mut guest, mine, 0, u32::MAX).unwrap_err(), libc::EPERM);
    assert_eq!(chmod(&mut guest, mine, 0o6755).unwrap(), 0o6755);
    assert_eq!(mknod(&mut guest, root, libc::S_IFCHR | 0o666, 0x103, "n").unwrap_err(), libc::EPERM);
    for (value, allowed) in [(acl(100_000, 165_535), true), (acl(0, 100_000), false), (acl(100_000, 5), false)] {
        match guest.setxattr(mine, "system.posix_acl_access", &value, 0) {
            Ok(()) | Err(libc::EOPNOTSUPP) => assert!(allowed),
            Err(error) => assert_eq!((error, allowed), (libc::EPERM, false)),
        }
    }
    for (of, allowed) in [(None, false), (Some(0), false), (Some(100_000), true), (Some(7), false)] {
        let set = guest.setxattr(mine, "security.capability", &capability(of), 0);
        assert_eq!(set.map_err(|_| ()), if allowed { Ok(()) } else { Err(()) }, "{of:?}");
    }
    // Root of a namespace is nobody to the files of others.
    let theirs = file(&mut guest, &directory, root, (0, 0), 0o666);
    assert_eq!(chmod(&mut guest, theirs, 0o4777).unwrap_err(), libc::EPERM);
    assert_eq!(give(&mut guest, theirs, 100_000, u32::MAX).unwrap_err(), libc::EPERM);
    let fh = guest.open(theirs, libc::O_WRONLY).unwrap().fh;
    guest.write(fh, 0, b"x").unwrap();
}

#[test]
fn who_makes_something_need_not_own_it() {
    let (mut guest, directory, root) = guest(Policy { makers: ids(&[0], &[0]), set_id: false, ..plain() });
    let made = guest.create(root, "n", libc::O_RDWR, 0o4755).unwrap().0;
    assert_eq!((made.attr.uid, made.attr.mode & 0o7777), (0, 0o755));
    assert_eq!(chmod(&mut guest, made.nodeid, 0o777).unwrap_err(), libc::EPERM);
    assert_eq!(give(&mut guest, made.nodeid, 1000, u32::MAX).unwrap_err(), libc::EPERM);
    let node = file(&mut guest, &directory, root, (0, 0), 0o600);
    assert_eq!(chmod(&mut guest, node, 0o666).unwrap_err(), libc::EPERM);
}

#[test]
fn a_share_has_its_own_policy_and_it_can_change() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let shares = vec![
        Share { policy: plain(), ..share("a", directories[0].path(), false) },
        share("b", directories[1].path(), false),
    ];
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    let [a, b] = ["a", "b"].map(|name| guest.lookup(1, name).unwrap().nodeid);
    let device = libc::S_IFCHR | 0o666;
    assert_eq!(mknod(&mut guest, a, device, 0x103, "n").unwrap_err(), libc::EPERM);
    mknod(&mut guest, b, device, 0x103, "n").unwrap();
    // What is in one share is not made into another's.
    assert_eq!(guest.tell(opcode::RENAME, b, &RenameIn { newdir: a }, &zz("n", "n")).unwrap_err(), libc::EXDEV);
    let node = guest.lookup(b, "n").unwrap().nodeid;
    let link: Result<EntryOut, i32> = guest.call(opcode::LINK, a, &LinkIn { oldnodeid: node }, &z("n"));
    assert_eq!(link.map(drop).unwrap_err(), libc::EXDEV);
    set_policies(&mut guest, vec![("a".into(), Policy::unrestricted()), ("b".into(), plain())]).unwrap();
    mknod(&mut guest, a, device, 0x103, "n").unwrap();
    assert_eq!(mknod(&mut guest, b, device, 0x103, "m").unwrap_err(), libc::EPERM);
    assert!(set_policies(&mut guest, vec![("c".into(), plain())]).is_err());
}

fn set_policies(guest: &mut Guest, policies: Vec<(String, Policy)>) -> Result<(), crate::virtio::Error> {
    let sharing = guest.device.sharing();
    let asking = std::thread::spawn(move || sharing.set_policies(policies));
    while !asking.is_finished() {
        guest.event(crate::virtio::Event::Fd(0, libc::EPOLLIN as u32)).unwrap();
    }
    asking.join().unwrap()
}

/// Makes FIFOs instead, and remembers what it was asked for.
struct Maker(Arc<Mutex<Vec<String>>>);

impl MakeNode for Maker {
    fn make(&self, node: &Node<'_>) -> io::Result<()> {
        let Node { name, mode, device, umask, uid, gid, .. } = node;
        let (major, minor) = (libc::major(*device), libc::minor(*device));
        self.0.lock().unwrap().push(format!("{name:?} {mode:o} {major}:{minor} {umask:o} {uid}:{gid}"));
        if *name == CString::new("bad").unwrap().as_c_str() {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        Ok(rustix::fs::mknodat(node.directory, *name, FileType::Fifo, rustix::fs::Mode::RWXU, 0)?)
    }
}

#[test]
fn device_nodes_can_be_made_by_somebody_else() {
    let (directory, asked) = (tempfile::tempdir().unwrap(), Arc::default());
    let policy = Policy { device_nodes: true, ..plain() };
    let mut device = Fs::new("test", vec![Share { policy, ..share("s", directory.path(), false) }]).unwrap();
    device.make_nodes_with(Box::new(Maker(Arc::clone(&asked))));
    let mut guest = Guest::of(device);
    let root = guest.lookup(1, "s").unwrap().nodeid;
    assert_eq!(mknod(&mut guest, root, libc::S_IFBLK | 0o666, 0x800, "n").unwrap_err(), libc::EPERM, "as root");
    (guest.uid, guest.gid) = (1000, 2000);
    let node = MknodIn { mode: libc::S_IFBLK | 0o666, rdev: 0x810, umask: 0o27, ..MknodIn::default() };
    let made: EntryOut = guest.call(opcode::MKNOD, root, &node, &z("disk")).unwrap();
    assert_eq!(made.attr.mode & libc::S_IFMT, libc::S_IFIFO, "the reply tells what is there");
    assert_eq!(mknod(&mut guest, root, libc::S_IFCHR, 0x103, "bad").unwrap_err(), libc::EDQUOT);
    // All else is made here.
    mknod(&mut guest, root, libc::S_IFCHR, 0, "whiteout").unwrap();
    mknod(&mut guest, root, libc::S_IFSOCK, 0x103, "socket").unwrap();
    assert_eq!(*asked.lock().unwrap(), [r#""disk" 60666 8:16 27 1000:2000"#, r#""bad" 20000 1:3 0 1000:2000"#]);
}

#[test]
fn without_a_restriction_nothing_is_refused() {
    let (mut guest, directory, root) = guest(Policy::unrestricted());
    let made = guest.create(root, "n", libc::O_RDWR, 0o6755).unwrap().0;
    assert_eq!(made.attr.mode & 0o7777, 0o6755);
    mknod(&mut guest, root, libc::S_IFBLK | 0o666, 0x800, "disk").unwrap();
    let node = file(&mut guest, &directory, root, (5, 6), 0o644);
    assert_eq!(give(&mut guest, node, 7, 8).unwrap(), (7, 8));
    assert_eq!(chmod(&mut guest, node, 0o6755).unwrap(), 0o6755);
    guest.setxattr(node, "security.capability", &capability(None), 0).unwrap();
}

#[test]
fn sets_of_ids_are_what_their_ranges_say() {
    let made = |ranges: &[(u32, u32)]| IdSet::of(ranges.iter().map(|&(first, last)| first..=last));
    let set = made(&[(10, 19), (5, 5), (20, 29), (15, 17), (40, 39), (100, u32::MAX)]);
    assert_eq!(set, made(&[(5, 5), (10, 29), (100, u32::MAX)]));
    let own = |uids| Policy { makers: Ids { uids, gids: IdSet::all() }, ..plain() };
    let inside: Vec<u32> = (0..50).filter(|&id| own(set.clone()).check_maker(id, 0).is_ok()).collect();
    assert_eq!(inside, [vec![5], (10..30).collect()].concat());
    for (id, inside) in [(99, false), (100, true), (u32::MAX - 1, true), (u32::MAX, false)] {
        assert_eq!(own(set.clone()).check_maker(id, 0).is_ok(), inside, "{id}");
    }
    assert_eq!(made(&[(0, 9), (10, u32::MAX - 1)]), IdSet::all());
}
