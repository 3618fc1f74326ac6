//! What the guest is told of changes that others make: another process, since this one is the device's.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::super::Fs;
use super::super::fuse::{NOTIFY_EVENT, NotifyEventOut, OutHeader, WatchIn, opcode};
use super::super::told::message::{LONGEST, Message};
use super::guest::{Guest, at, share};
use crate::virtio::{Device, Event};
use zerocopy::FromBytes;

const ALL: u32 = libc::IN_ALL_EVENTS;
/// What the guest's kernel adds for inotify.
const ON_CHILD: u32 = 0x0800_0000;

/// Has another process run a script in a directory.
fn another(directory: &Path, script: &str) {
    assert!(Command::new("sh").arg("-ec").arg(script).current_dir(directory).status().unwrap().success());
}

fn watch(guest: &mut Guest, nodeid: u64, mask: u32) -> Result<(), i32> {
    guest.tell(opcode::WATCH, nodeid, &WatchIn { mask, padding: 0 }, &[])
}

/// A guest that takes events, and watches its share for these.
fn watching(mask: u32) -> (Guest, tempfile::TempDir, u64) {
    let (mut guest, directory, root) = Guest::with_share();
    guest.device.server().told.offered = true;
    watch(&mut guest, root, mask | ON_CHILD).unwrap();
    (guest, directory, root)
}

/// What there is to tell the guest by now.
fn told(guest: &mut Guest) -> Vec<Message> {
    let mut all = Vec::new();
    loop {
        guest.device.server().hear();
        if guest.device.server().told.is_idle() {
            return all;
        }
        all.extend(guest.device.server().told.messages.drain(..));
    }
}

fn events(messages: &[Message]) -> Vec<(u32, String)> {
    messages.iter().map(|message| (message.mask, String::from_utf8(message.name.clone()).unwrap())).collect()
}

#[test]
fn changes_of_others_are_told_by_name() {
    let (mut guest, directory, root) = watching(ALL & !libc::IN_OPEN);
    another(directory.path(), "echo >f; chmod 600 f; mkdir d; rm f; rmdir d");
    let told = told(&mut guest);
    assert!(told.iter().all(|message| message.parent == root));
    let events = events(&told);
    for event in [libc::IN_CREATE, libc::IN_MODIFY, libc::IN_ATTRIB, libc::IN_CLOSE_WRITE, libc::IN_DELETE] {
        let count = events.iter().filter(|known| **known == (event, "f".to_owned())).count();
        assert_eq!(count, 1, "{event:x} in {events:x?}");
    }
    for event in [libc::IN_CREATE, libc::IN_DELETE] {
        assert!(events.contains(&(event | libc::IN_ISDIR, "d".to_owned())), "{events:x?}");
    }
}

#[test]
fn what_the_guest_does_itself_is_not_told() {
    let (mut guest, directory, root) = watching(ALL);
    let (_, open) = guest.create(root, "own", libc::O_RDWR, 0o644).unwrap();
    guest.write(open.fh, 0, b"own").unwrap();
    guest.mkdir(root, "dir", 0o755).unwrap();
    assert_eq!(told(&mut guest), []);
    another(directory.path(), "echo >other");
    assert!(told(&mut guest).iter().all(|message| message.name == b"other"));
}

#[test]
fn a_rename_is_one_event_with_both_names_where_both_directories_are_watched() {
    let (mut guest, directory, root) = watching(libc::IN_MOVED_FROM | libc::IN_MOVED_TO);
    let sub = guest.mkdir(root, "sub", 0o755).unwrap().nodeid;
    let away = guest.mkdir(root, "away", 0o755).unwrap().nodeid;
    watch(&mut guest, sub, libc::IN_MOVED_TO).unwrap();
    fs::write(at(&directory, "f"), "").unwrap();
    another(directory.path(), "mv f g; mv g sub/h; mv sub/h away/i; mv away/i j");
    let moved = libc::IN_MOVED_FROM;
    let message = |parent, name: &str, new_parent, new_name: &str| Message {
        mask: moved,
        parent,
        name: name.into(),
        new_parent,
        new_name: new_name.into(),
        child: 0,
    };
    let expected = [
        message(root, "f", root, "g"),
        message(root, "g", sub, "h"),
        message(sub, "h", 0, ""),
        message(0, "", root, "j"),
    ];
    assert_eq!(told(&mut guest), expected);
    assert_ne!(away, sub);
}

#[test]
fn a_file_can_be_watched_by_itself_until_it_has_no_name() {
    let (mut guest, directory, root) = Guest::with_share();
    guest.device.server().told.offered = true;
    fs::write(at(&directory, "f"), "").unwrap();
    let file = guest.lookup(root, "f").unwrap().nodeid;
    watch(&mut guest, file, libc::IN_MODIFY | libc::IN_DELETE_SELF).unwrap();
    another(directory.path(), "echo >>f; rm f");
    let message = |mask| Message { mask, child: file, ..Message::default() };
    let expected = [libc::IN_MODIFY, libc::IN_ATTRIB, libc::IN_DELETE_SELF].map(message);
    assert_eq!(told(&mut guest), expected);
}

#[test]
fn a_name_that_comes_again_is_there_in_the_end() {
    let (mut guest, directory, _) = watching(libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVE);
    another(directory.path(), "echo >a; rm a; echo >a; echo >b; rm b");
    let told = told(&mut guest);
    let last = |name: &[u8]| told.iter().rev().find(|message| message.name == name).unwrap().mask;
    assert_eq!((last(b"a"), last(b"b")), (libc::IN_CREATE, libc::IN_DELETE));
}

#[test]
fn nothing_is_told_of_what_is_watched_no_more() {
    let (mut guest, directory, root) = watching(ALL);
    fs::create_dir(at(&directory, "d")).unwrap();
    let below = guest.lookup(root, "d").unwrap().nodeid;
    watch(&mut guest, below, ALL).unwrap();
    watch(&mut guest, root, 0).unwrap();
    guest.forget(below, 1);
    another(directory.path(), "echo >f; echo >d/f");
    assert_eq!(told(&mut guest), []);
    assert_eq!(guest.device.server().told.marks.all().count(), 0);
}

#[test]
fn too_many_changes_are_an_overflow() {
    let (mut guest, directory, _) = watching(libc::IN_CREATE);
    let limit = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
    let more = limit.trim().parse::<usize>().unwrap() + 10;
    another(directory.path(), &format!("i=0; while [ $i -lt {more} ]; do : >f$i; i=$((i+1)); done"));
    let told = told(&mut guest);
    assert_eq!(told.last().unwrap().mask, libc::IN_Q_OVERFLOW);
}

#[test]
fn watches_are_for_the_devices_thread() {
    let (mut guest, _directory, root) = watching(ALL);
    assert_eq!(guest.at_exit(opcode::WATCH, root, &[0; 8], 0), None);
    assert_eq!(guest.device.server().told.marks.all().count(), 0);
    assert_eq!(guest.at_exit(opcode::GETATTR, root, &[0; 16], 104), Some(0));
}

#[test]
fn a_guest_that_has_no_queue_for_it_watches_nothing() {
    let (mut guest, _directory, root) = Guest::with_share();
    assert_eq!(watch(&mut guest, root, ALL), Err(libc::ENOSYS));
    assert!(guest.device.server().told.group.is_none());
}

#[test]
fn messages_wait_for_buffers_and_the_host_keeps_the_rest() {
    let (mut guest, directory, _) = watching(libc::IN_CREATE);
    another(directory.path(), "echo >a; echo >b");
    // Nothing has been offered, and what was taken from the host waits.
    guest.event(Event::Fd(1, libc::EPOLLIN as u32)).unwrap();
    assert_eq!(guest.device.server().told.messages.len(), 2);
    another(directory.path(), "echo >c");
    guest.event(Event::Fd(1, libc::EPOLLIN as u32)).unwrap();
    assert_eq!(guest.device.server().told.messages.len(), 2);
    let length = (size_of::<OutHeader>() + size_of::<NotifyEventOut>() + 1) as u32;
    let first = guest.offer_for_events(LONGEST as u32, 1).unwrap().unwrap();
    assert_eq!((first.len() as u32, first.last()), (length, Some(&b'a')));
    let second = guest.offer_for_events(4096, 2).unwrap().unwrap();
    assert_eq!((second.len() as u32, second.last()), (length, Some(&b'b')));
    let third = guest.offer_for_events(4096, 3).unwrap().unwrap();
    assert_eq!(third.last(), Some(&b'c'));
    assert_eq!(guest.offer_for_events(4096, 4).unwrap(), None);
}

#[test]
fn a_buffer_too_short_for_an_event_stops_the_device() {
    let (mut guest, directory, _) = watching(libc::IN_CREATE);
    another(directory.path(), "echo >a");
    assert!(guest.offer_for_events(LONGEST as u32 - 1, 1).is_err());
}

#[test]
fn after_a_restore_nobody_knows_what_has_changed() {
    let (guest, directory, _) = watching(libc::IN_CREATE);
    let state = guest.device.save().unwrap();
    let mut other = Fs::new("test", vec![share("s", directory.path(), false)]).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.server().told.messages, [Message::lost()]);
}

#[test]
fn messages_have_their_lengths() {
    let message =
        Message { mask: 1, parent: 2, name: vec![b'x'; 255], new_parent: 3, new_name: vec![b'y'; 300], child: 4 };
    let bytes = message.bytes();
    assert_eq!(bytes.len(), LONGEST);
    let (header, rest) = OutHeader::read_from_prefix(&bytes).unwrap();
    assert_eq!((header.len as usize, header.error, header.unique), (LONGEST, NOTIFY_EVENT, 0));
    let (out, _) = NotifyEventOut::read_from_prefix(rest).unwrap();
    assert_eq!((out.namelen, out.newnamelen, out.parent, out.newparent), (255, 255, 2, 3));
}
