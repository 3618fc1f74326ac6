//! What a known object costs. Run one at a time, and optimised:
//! `cargo test --release -p vmm measure::hot -- --ignored --nocapture`.

use std::fs;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::Fs;
use super::super::inodes::Inode;
use super::guest::*;
use crate::virtio::Device;

const FILES: usize = 1000;

/// This process's anonymous memory in KiB.
fn anonymous() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// So many thousand files with names of 15 bytes, known to a guest with so many descriptors.
fn know_all(directories: usize, descriptors: usize) -> (Guest, tempfile::TempDir) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for number in 0..directories {
        fs::create_dir(at(&directory, &format!("{number}"))).unwrap();
        for file in 0..FILES {
            fs::write(at(&directory, &format!("{number}/module-{file:05}.js")), "").unwrap();
        }
    }
    let shares = vec![share("s", directory.path(), false)];
    let mut guest = Guest::of(Fs::with_limits(shares, descriptors, 1000).unwrap());
    let root = guest.lookup(1, "s").unwrap().nodeid;
    let before = anonymous();
    for number in 0..directories {
        let parent = guest.lookup(root, &format!("{number}")).unwrap().nodeid;
        for file in 0..FILES {
            guest.lookup(parent, &format!("module-{file:05}.js")).unwrap();
        }
    }
    let server = guest.device.server();
    let (known, hot, grown) = (server.inodes.len(), server.inodes.hot, anonymous() - before);
    println!("{known} known, {hot} hot: {grown} KiB more, {} bytes each", grown * 1024 / known);
    (guest, directory)
}

#[test]
#[ignore = "measures"]
fn hot() {
    know_all(15, 18_000);
}

#[test]
#[ignore = "measures"]
fn cold() {
    know_all(100, 1000);
}

#[test]
fn a_slot_is_small() {
    assert_eq!(size_of::<Option<Inode>>(), 88);
}

/// Saves and restores what a guest knows.
fn save_and_restore((guest, directory): (Guest, tempfile::TempDir), descriptors: usize) {
    let start = Instant::now();
    let state = guest.device.save().unwrap();
    println!("saved in {:?}: {} bytes", start.elapsed(), state.len());
    drop(guest);
    let shares = vec![share("s", directory.path(), false)];
    let mut device = Fs::with_limits(shares, descriptors, 1000).unwrap();
    let (start, before) = (Instant::now(), anonymous());
    device.restore(&state).unwrap();
    println!("restored in {:?}, {} KiB more", start.elapsed(), anonymous().saturating_sub(before));
}

#[test]
#[ignore = "measures"]
fn saving_hot() {
    save_and_restore(know_all(15, 18_000), 18_000);
}

#[test]
#[ignore = "measures"]
fn saving_cold() {
    save_and_restore(know_all(100, 1000), 1000);
}
