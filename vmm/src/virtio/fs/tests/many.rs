//! Many known objects: how many have a descriptor, and that all survive saving and restoring.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::Fs;
use super::super::table::inode::Inode;
use super::guest::*;
use crate::virtio::Device;

const DIRECTORIES: usize = 2;
const FILES: usize = 1000;
/// Objects that the guest knows: those, their directories and the share's root.
const KNOWN: usize = DIRECTORIES * (FILES + 1) + 1;

/// A guest that knows many files, with so many descriptors.
fn know_all(descriptors: usize) -> (Guest, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..DIRECTORIES {
        fs::create_dir(at(&directory, &format!("{number}"))).unwrap();
        for file in 0..FILES {
            fs::write(at(&directory, &format!("{number}/{file}")), "").unwrap();
        }
    }
    let shares = vec![share("s", directory.path(), false)];
    let mut guest = Guest::of(Fs::with_limits(shares, descriptors, 1000).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    for number in 0..DIRECTORIES {
        let parent = guest.lookup(root, &format!("{number}")).unwrap().nodeid;
        for file in 0..FILES {
            guest.lookup(parent, &format!("{file}")).unwrap();
        }
    }
    (guest, directory)
}

#[test]
fn all_are_known_with_few_descriptors_and_survive_a_restore() {
    for descriptors in [300, 500] {
        let (mut guest, directory) = know_all(descriptors);
        let inodes = &guest.device.server().inodes;
        assert_eq!(inodes.len(), KNOWN);
        assert!((1..=descriptors).contains(&inodes.hot), "{} hot", inodes.hot);
        let state = guest.device.save().unwrap();
        drop(guest);
        let shares = vec![share("s", directory.path(), false)];
        let mut device = Fs::with_limits(shares, descriptors, 1000).unwrap();
        device.restore(&state).unwrap();
        assert_eq!(device.server().inodes.len(), KNOWN);
        let mut guest = Guest::unborn(device);
        let root = guest.lookup(1, "s").unwrap().nodeid;
        let last = guest.lookup(root, "1").unwrap().nodeid;
        let (nodeid, before) = (guest.lookup(last, "999").unwrap().nodeid, guest.device.server().inodes.len());
        assert!(guest.getattr(nodeid).is_ok());
        assert_eq!(before, KNOWN, "what was looked up again was known");
    }
}

#[test]
fn all_are_hot_where_descriptors_are_many() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let (mut guest, _directory) = know_all(KNOWN + 10);
    assert_eq!(guest.device.server().inodes.hot, KNOWN);
}

#[test]
fn a_slot_is_small() {
    assert_eq!(size_of::<Option<Inode>>(), 96);
}
