//! Opening with one request: names looked up and opened, content that comes along, and messages without a reply.

use std::fs;
use std::os::unix::fs::symlink;

use zerocopy::{FromBytes, IntoBytes};

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;
use crate::virtio::AtExit;

/// What a reply that opens something is made of.
const HEADS: usize = size_of::<EntryOut>() + size_of::<OpenOut>();

/// A reply of `LOOKUP_OPEN` or `CREATE`: entry, what is open, content.
fn taken_apart(reply: &[u8]) -> (EntryOut, OpenOut, &[u8]) {
    let (entry, rest) = EntryOut::read_from_prefix(reply).unwrap();
    let (open, content) = OpenOut::read_from_prefix(rest).unwrap();
    (entry, open, content)
}

fn lookup_open(guest: &mut Guest, parent: u64, name: &str, flags: i32, room: usize) -> Result<Vec<u8>, i32> {
    let args = OpenIn { flags: flags as u32, open_flags: 0 };
    guest.request(opcode::LOOKUP_OPEN, parent, &[args.as_bytes(), &z(name)].concat(), HEADS + room)
}

fn create_or_lookup(guest: &mut Guest, parent: u64, name: &str, flags: i32) -> Result<Vec<u8>, i32> {
    let args = CreateIn { flags: flags as u32, mode: 0o644, umask: 0, open_flags: CREATE_OR_LOOKUP };
    guest.request(opcode::CREATE, parent, &[args.as_bytes(), &z(name)].concat(), HEADS)
}

#[test]
fn a_small_file_is_found_opened_and_read_by_one_request() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "f"), "content").unwrap();
    let reply = lookup_open(&mut guest, root, "f", libc::O_RDONLY, 8192).unwrap();
    let (entry, open, content) = taken_apart(&reply);
    assert_eq!((entry.attr.size, content), (7, &b"content"[..]));
    assert_eq!(
        open.open_flags & (FOPEN_CONTENT | FOPEN_KEEP_CACHE | FOPEN_LOOKED_UP),
        FOPEN_CONTENT | FOPEN_KEEP_CACHE
    );
    assert_eq!(guest.read(open.fh, 3, 100).unwrap(), b"tent");
    guest.release(open.fh).unwrap();
    guest.forget(entry.nodeid, 1);
    assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), libc::ESTALE);
}

#[test]
fn content_that_is_large_or_has_no_room_is_left_to_reads() {
    let (mut guest, directory, root) = Guest::with_share();
    let sizes = [(0, 1 << 14), (4096, 4095), ((16 << 10) + 1, 1 << 16), (1 << 20, 1 << 14)];
    for (number, (size, room)) in sizes.into_iter().enumerate() {
        fs::write(at(&directory, &number.to_string()), vec![7; size]).unwrap();
        let reply = lookup_open(&mut guest, root, &number.to_string(), libc::O_RDONLY, room).unwrap();
        let (entry, open, content) = taken_apart(&reply);
        assert_eq!((entry.attr.size, content.len(), open.open_flags & FOPEN_CONTENT), (size as u64, 0, 0), "{size}");
        assert_eq!(guest.read(open.fh, 0, size).unwrap(), vec![7; size]);
    }
    fs::write(at(&directory, "most"), vec![7; 16 << 10]).unwrap();
    let reply = lookup_open(&mut guest, root, "most", libc::O_RDONLY, 16 << 10).unwrap();
    assert_eq!(taken_apart(&reply).2, vec![7; 16 << 10]);
}

#[test]
fn what_is_no_file_to_read_is_only_looked_up() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::create_dir(at(&directory, "d")).unwrap();
    fs::write(at(&directory, "f"), "content").unwrap();
    symlink("f", at(&directory, "link")).unwrap();
    let fifo = at(&directory, "fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let kinds = [("d", libc::S_IFDIR), ("link", libc::S_IFLNK), ("fifo", libc::S_IFIFO)];
    let reads = kinds.map(|(name, kind)| (name, kind, libc::O_RDONLY));
    // Opening a file for writing may change it, and the guest has yet to ask whether its process may.
    let writes =
        [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_ACCMODE].map(|flags| ("f", libc::S_IFREG, flags));
    for (name, kind, flags) in reads.into_iter().chain(writes) {
        let reply = lookup_open(&mut guest, root, name, flags, 8192).unwrap();
        let (entry, open, content) = taken_apart(&reply);
        assert_eq!(
            (entry.attr.mode & libc::S_IFMT, open.open_flags, content),
            (kind, FOPEN_LOOKED_UP, &b""[..]),
            "{name}"
        );
    }
    assert_eq!(lookup_open(&mut guest, root, "absent", libc::O_RDONLY, 0).unwrap_err(), libc::ENOENT);
    assert!(guest.device.server().handles.is_empty());
    assert_eq!(fs::read(at(&directory, "f")).unwrap(), b"content");
}

#[test]
fn a_reply_without_room_opens_and_finds_nothing() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "f"), "content").unwrap();
    let known = guest.device.server().inodes.len();
    for room in [0, size_of::<EntryOut>(), HEADS - 1] {
        let args = OpenIn::default();
        let result = guest.request(opcode::LOOKUP_OPEN, root, &[args.as_bytes(), &z("f")].concat(), room);
        assert_eq!(result.unwrap_err(), libc::EINVAL);
        let args = CreateIn { open_flags: CREATE_OR_LOOKUP, ..CreateIn::default() };
        let result = guest.request(opcode::CREATE, root, &[args.as_bytes(), &z("f")].concat(), room);
        assert_eq!(result.unwrap_err(), libc::EINVAL);
    }
    assert!(guest.device.server().handles.is_empty());
    assert_eq!(guest.device.server().inodes.len(), known);
}

#[test]
fn open_brings_content_unless_the_guest_is_to_drop_its_own() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "f"), "content").unwrap();
    age();
    let file = guest.lookup(root, "f").unwrap().nodeid;
    let open = |guest: &mut Guest| {
        let args = OpenIn { flags: libc::O_RDONLY as u32, open_flags: 0 };
        let reply = guest.request(opcode::OPEN, file, args.as_bytes(), size_of::<OpenOut>() + 4096).unwrap();
        let (open, content) = OpenOut::read_from_prefix(&reply).unwrap();
        (open.open_flags & (FOPEN_KEEP_CACHE | FOPEN_CONTENT), content.to_vec())
    };
    assert_eq!(open(&mut guest), (FOPEN_KEEP_CACHE | FOPEN_CONTENT, b"content".to_vec()));
    fs::write(at(&directory, "f"), "other").unwrap();
    assert_eq!(guest.getattr(file).unwrap().size, 5);
    assert_eq!(open(&mut guest), (0, vec![]));
}

#[test]
fn create_looks_up_what_is_there() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "f"), "content").unwrap();
    symlink("target", at(&directory, "link")).unwrap();
    fs::create_dir(at(&directory, "d")).unwrap();
    for (name, kind) in [("f", libc::S_IFREG), ("link", libc::S_IFLNK), ("d", libc::S_IFDIR)] {
        let reply = create_or_lookup(&mut guest, root, name, libc::O_WRONLY | libc::O_TRUNC).unwrap();
        let (entry, open, _) = taken_apart(&reply);
        assert_eq!((entry.attr.mode & libc::S_IFMT, open.open_flags), (kind, FOPEN_LOOKED_UP));
        assert_eq!(guest.lookup(root, name).unwrap().nodeid, entry.nodeid);
    }
    assert_eq!(fs::read(at(&directory, "f")).unwrap(), b"content");
    assert!(!at(&directory, "target").exists());
    assert!(guest.device.server().handles.is_empty());
    let reply = create_or_lookup(&mut guest, root, "new", libc::O_WRONLY).unwrap();
    let (_, open, _) = taken_apart(&reply);
    assert_eq!((open.open_flags & FOPEN_LOOKED_UP, guest.write(open.fh, 0, b"x").unwrap()), (0, 1));
}

#[test]
fn create_in_a_read_only_share_looks_up_too() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(at(&directory, "f"), "content").unwrap();
    let mut guest = Guest::of(Fs::new("test", vec![share("s", directory.path(), true)]).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let reply = create_or_lookup(&mut guest, root, "f", libc::O_WRONLY).unwrap();
    assert_eq!(taken_apart(&reply).1.open_flags, FOPEN_LOOKED_UP);
    assert_eq!(create_or_lookup(&mut guest, root, "new", libc::O_WRONLY).unwrap_err(), libc::EROFS);
}

#[test]
fn messages_are_served_along_with_a_request() {
    let (mut guest, directory, root) = Guest::with_share();
    fs::write(at(&directory, "f"), "content").unwrap();
    let reply = lookup_open(&mut guest, root, "f", libc::O_RDONLY, 0).unwrap();
    let (entry, open, _) = taken_apart(&reply);
    let release =
        guest.message(opcode::RELEASE, entry.nodeid, ReleaseIn { fh: open.fh, ..ReleaseIn::default() }.as_bytes());
    let forget = guest.message(opcode::FORGET, entry.nodeid, ForgetIn { nlookup: 1 }.as_bytes());
    guest.add_message(&release);
    guest.add_message(&forget);
    assert_eq!((guest.messages_served(), guest.device.server().handles.len()), (0, 1));
    let attributes = GetattrIn::default();
    assert_eq!(guest.at_exit(opcode::GETATTR, root, attributes.as_bytes(), size_of::<AttrOut>()), Some(0));
    assert_eq!((guest.messages_served(), guest.device.server().handles.len()), (2, 0));
    assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), libc::ESTALE);
}

#[test]
fn an_exit_serves_a_bounded_number_of_messages_and_the_devices_thread_the_rest() {
    let (mut guest, _directory, root) = Guest::with_share();
    let nothing = guest.message(opcode::FORGET, root, ForgetIn { nlookup: 0 }.as_bytes());
    (0..60).for_each(|_| guest.add_message(&nothing));
    guest.offer(&guest.message(opcode::GETATTR, root, GetattrIn::default().as_bytes()), 16 + size_of::<AttrOut>());
    assert_eq!(guest.exit().unwrap(), AtExit::Served);
    assert_eq!(guest.messages_served(), 32);
    guest.event(crate::virtio::Event::Fd(0, libc::EPOLLIN as u32)).unwrap();
    assert_eq!(guest.messages_served(), 60);
}

/// What is there is on another mount, which a vCPU's thread leaves alone: here `/proc`, in a share of `/`.
#[test]
fn create_finds_what_is_on_another_mount_on_the_devices_thread() {
    for read_only in [false, true] {
        let mut guest = Guest::of(Fs::new("test", vec![share("s", std::path::Path::new("/"), read_only)]).unwrap());
        let root = guest.lookup(1, "s").unwrap().nodeid;
        let args = CreateIn { flags: libc::O_WRONLY as u32, open_flags: CREATE_OR_LOOKUP, ..CreateIn::default() };
        let body = [args.as_bytes(), &z("proc")].concat();
        assert_eq!(guest.at_exit(opcode::CREATE, root, &body, HEADS), None);
        let reply = create_or_lookup(&mut guest, root, "proc", libc::O_WRONLY).unwrap();
        assert_eq!(taken_apart(&reply).1.open_flags, FOPEN_LOOKED_UP);
    }
}

#[test]
fn a_device_that_is_set_apart_keeps_to_the_requests_of_the_standard() {
    let directory = tempfile::tempdir().unwrap();
    let offered = |apart: bool| {
        let mut device = Fs::new("test", vec![share("s", directory.path(), false)]).unwrap();
        if apart {
            device.set_apart();
        }
        let flags = Guest::unborn(device).init(u64::MAX);
        (u64::from(flags.flags2) << 32) & init::OPEN_AT_ONCE
    };
    assert_eq!((offered(false), offered(true)), (init::OPEN_AT_ONCE, 0));
}
