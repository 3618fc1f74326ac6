//! Shares that come and go.

use std::fs;

use super::super::{Fs, Share, Sharing};
use super::guest::*;
use crate::virtio::{Error, Event};

/// Asks from another thread, as the device's own has to answer.
fn ask<T: Send + 'static>(guest: &mut Guest, ask: impl FnOnce(Sharing) -> T + Send + 'static) -> T {
    let sharing = guest.device.sharing();
    let asking = std::thread::spawn(move || ask(sharing));
    while !asking.is_finished() {
        guest.event(Event::Fd(0, libc::EPOLLIN as u32)).unwrap();
    }
    asking.join().unwrap()
}

fn add(guest: &mut Guest, shares: Vec<Share>) -> Result<(), Error> {
    ask(guest, move |sharing| sharing.add(shares))
}

fn remove(guest: &mut Guest, name: &'static str) {
    ask(guest, move |sharing| sharing.remove(vec![name.to_owned()])).unwrap();
}

fn open_below(directory: &tempfile::TempDir) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| fs::read_link(link.path()).is_ok_and(|path| path.starts_with(directory.path()))).count()
}

#[test]
fn who_does_not_wait_is_heard_before_the_next_request() {
    let (mut guest, ..) = Guest::with_share();
    let other = tempfile::tempdir().unwrap();
    // Nobody serves the device meanwhile.
    let sharing = guest.device.sharing().unwaiting();
    sharing.add(vec![share("other", other.path(), false)]).unwrap();
    guest.lookup(1, "other").unwrap();
    sharing.remove(vec!["other".to_owned()]).unwrap();
    assert_eq!(guest.lookup(1, "other").unwrap_err(), libc::ENOENT);
    assert_eq!(open_below(&other), 0);
}

#[test]
fn an_added_share_is_there_and_a_removed_one_leaves_nothing_open() {
    let (mut guest, directory, first) = Guest::with_share();
    let other = tempfile::tempdir().unwrap();
    fs::write(at(&other, "file"), "text").unwrap();
    fs::write(at(&other, "hidden"), "").unwrap();
    add(&mut guest, vec![share("other", other.path(), false)]).unwrap();
    let root = guest.lookup(1, "other").unwrap().nodeid;
    let file = guest.lookup(root, "file").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    assert_eq!(guest.read(fh, 0, 10).unwrap(), b"text");
    // A guest may forget what it has open.
    let hidden = guest.lookup(root, "hidden").unwrap().nodeid;
    guest.open(hidden, libc::O_RDWR).unwrap();
    guest.forget(hidden, 1);
    assert_eq!(open_below(&other), 4);
    remove(&mut guest, "other");
    assert_eq!(open_below(&other), 0);
    assert_eq!(guest.lookup(1, "other").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.getattr(file).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.lookup(root, "file").unwrap_err(), libc::ESTALE);
    assert_eq!(guest.read(fh, 0, 10).unwrap_err(), libc::EBADF);
    guest.forget(file, 1);
    // The others are as they were.
    fs::write(at(&directory, "mine"), "text").unwrap();
    guest.lookup(first, "mine").unwrap();
}

#[test]
fn a_number_that_is_free_again_is_another_share() {
    let (mut guest, _directory, first) = Guest::with_share();
    let other = tempfile::tempdir().unwrap();
    remove(&mut guest, "s");
    add(&mut guest, vec![share("read-only", other.path(), true)]).unwrap();
    let root = guest.lookup(1, "read-only").unwrap().nodeid;
    assert_ne!(root, first);
    assert_eq!(guest.getattr(first).unwrap_err(), libc::ESTALE);
    assert_eq!(guest.mkdir(root, "new", 0o755).unwrap_err(), libc::EROFS);
}

#[test]
fn all_are_added_or_none() {
    let (mut guest, _directory, _) = Guest::with_share();
    let other = tempfile::tempdir().unwrap();
    for bad in ["s", "new", "", "a/b"] {
        let shares = vec![share("new", other.path(), false), share(bad, other.path(), false)];
        assert!(add(&mut guest, shares).is_err(), "{bad}");
        assert_eq!(guest.lookup(1, "new").unwrap_err(), libc::ENOENT);
    }
    assert_eq!(open_below(&other), 0);
    remove(&mut guest, "unknown");
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let sharing = Fs::new("test", vec![]).unwrap().sharing();
    assert!(sharing.remove(vec!["x".into()]).is_err());
}
