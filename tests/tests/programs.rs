//! Programs that ask much of a file system, on the root file system and on a volume: each checks its own files in the end.
//!
//! Their scripts are files in `tests/tests/programs`.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tests::command::{Outcome, start};
use tests::disk::Disk;
use tests::{Scene, place};

/// How long one of them may take: postgres needs a fifth of it on an emulated host.
const LIMIT: Duration = Duration::from_secs(600);

/// What Docker gives to root.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Runs a script in a container of Debian on ext4, with a volume at `/volume`. It must succeed, say `done` as its last
/// word, and nothing on standard error.
#[track_caller]
fn works(script: &str) -> Outcome {
    let scene = Scene::new();
    let mut disk = Disk::made(scene.dir(), 2 << 30, &["-b", "4096"]);
    disk.mount_over(scene.dir(), "rw");
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let mut container = scene.container_over(&place::tools_rootfs());
    container.mount("bind", &volume, "/volume", &["rbind", "rw"]);
    let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(CAPABILITIES)));
    container.set("/process/capabilities", serde_json::Map::from_iter(sets).into());
    container.sh(&format!("set -eu\nexport LC_ALL=C HOME=/root\n{script}\necho done"));
    let outcome = start(&mut container.named("run", &[])).finish_within(LIMIT).success();
    // A busy emulated host's clock and its guest's differ by fractions of a second, and make(1) says so.
    let skewed = |line: &&str| line.contains("in the future") || line.contains("Clock skew detected");
    let complaints = outcome.stderr.lines().filter(|line| !skewed(line)).count();
    assert!(outcome.stdout.ends_with("done\n") && complaints == 0, "{outcome:?}");
    drop((container, disk));
    outcome
}

#[test]
fn sqlite_with_writers_at_a_time() {
    works(include_str!("programs/sqlite.sh"));
}

#[test]
fn git_from_the_first_commit_to_fsck() {
    works(include_str!("programs/git.sh"));
}

#[test]
fn make_builds_what_has_changed_and_no_more() {
    works(include_str!("programs/make.sh"));
}

#[test]
fn apt_installs_upgrades_and_purges() {
    works(include_str!("programs/apt.sh"));
}

#[test]
fn tar_brings_back_what_it_took() {
    works(include_str!("programs/tar.sh"));
}

#[test]
fn postgres_survives_a_crash() {
    works(include_str!("programs/postgres.sh"));
}

#[test]
fn a_deep_tree_of_small_files() {
    works(include_str!("programs/tree.sh"));
}
