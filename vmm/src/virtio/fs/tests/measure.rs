//! What a known object costs: two thousand of them here, a hundred thousand for docs/performance.md, one test at a time and
//! optimised: `MEASURE=100 cargo test --release -p vmm measure::cold -- --nocapture`.

use std::fs;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::Fs;
use super::guest::*;
use crate::virtio::Device;
use crate::virtio::fs::table::inode::Inode;

const FILES: usize = 1000;

/// Directories with so many files.
fn directories() -> usize {
    std::env::var("MEASURE").ok().and_then(|number| number.parse().ok()).unwrap_or(2)
}

/// This process's anonymous memory in KiB.
fn anonymous() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Files with names of 15 bytes, known to a guest with so many descriptors.
fn know_all(descriptors: usize) -> (Guest, tempfile::TempDir) {
    let directories = directories();
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
    let (known, hot, grown) = (server.inodes.len(), server.inodes.hot, anonymous().saturating_sub(before));
    assert_eq!(known, directories * (FILES + 1) + 1);
    assert_eq!(hot == known, known <= descriptors);
    println!("{known} known, {hot} hot: {grown} KiB more, {} bytes each", grown * 1024 / known);
    (guest, directory)
}

#[test]
fn hot() {
    know_all(18_000);
}

#[test]
fn cold() {
    know_all(1000);
}

#[test]
fn a_slot_is_small() {
    assert_eq!(size_of::<Option<Inode>>(), 88);
}

/// Saves and restores what a guest knows.
fn save_and_restore((mut guest, directory): (Guest, tempfile::TempDir), descriptors: usize) {
    let known = guest.device.server().inodes.len();
    let start = Instant::now();
    let state = guest.device.save().unwrap();
    println!("saved in {:?}: {} bytes", start.elapsed(), state.len());
    drop(guest);
    let shares = vec![share("s", directory.path(), false)];
    let mut device = Fs::with_limits(shares, descriptors, 1000).unwrap();
    let (start, before) = (Instant::now(), anonymous());
    device.restore(&state).unwrap();
    assert_eq!(device.server().inodes.len(), known);
    println!("restored in {:?}, {} KiB more", start.elapsed(), anonymous().saturating_sub(before));
}

#[test]
fn saving_hot() {
    save_and_restore(know_all(18_000), 18_000);
}

#[test]
fn saving_cold() {
    save_and_restore(know_all(1000), 1000);
}
