//! File systems without room: of less than 4 MiB, and where [`ALICE`] may have less than 1 MiB.

use rustix::fs::statvfs;

use crate::cases::Case;
use crate::check::*;
use crate::process::{ALICE, as_user};

cases! {
    a_full_disk_says_so_and_keeps_what_it_has
    room_that_comes_back_can_be_used
    what_works_on_a_full_disk
    space_cannot_be_set_aside
    no_more_files
}

/// The cases of a quota.
pub const QUOTA: &[Case] = &[
    Case { module: module_path!(), name: "a_users_quota_ends_a_write", run: a_users_quota_ends_a_write },
    Case { module: module_path!(), name: "space_beyond_a_quota", run: space_beyond_a_quota },
];

const PIECE: usize = 10_000;

/// Writes until there is no room; how many bytes fitted.
fn fill(name: &str) -> usize {
    let fd = create(name);
    let mut written = 0;
    loop {
        match rustix::io::pwrite(&fd, &noise(written as u64, PIECE), written as u64) {
            Ok(PIECE) => written += PIECE,
            // Where there is room for a part only the rest is refused.
            Ok(part) => {
                written += part;
                fails(rustix::io::pwrite(&fd, &[1; PIECE], written as u64), Errno::NOSPC);
                return written;
            }
            Err(error) => {
                assert_eq!(error, Errno::NOSPC);
                return written;
            }
        }
        assert!(written < 64 << 20, "this file system is too large for these cases");
    }
}

fn a_full_disk_says_so_and_keeps_what_it_has() {
    let written = fill("file");
    assert!(written > 100_000, "{written} bytes");
    let found = content("file");
    assert_eq!((found.len(), stat("file").st_size as usize), (written, written));
    for (i, piece) in found.chunks_exact(PIECE).enumerate() {
        assert!(piece == noise((i * PIECE) as u64, PIECE), "piece {i} differs");
    }
    let fd = open("file", OFlags::RDWR);
    rustix::fs::fsync(&fd).unwrap();
    assert!(statvfs(".").unwrap().f_bavail < 4);
}

fn room_that_comes_back_can_be_used() {
    file("small", vec![1; 200_000], 0o644);
    fill("file");
    rustix::fs::unlink("small").unwrap();
    file("again", vec![2; 150_000], 0o644);
    assert_eq!(content("again"), vec![2; 150_000]);
}

fn what_works_on_a_full_disk() {
    file("other", "text", 0o644);
    fill("file");
    pwrite(open("other", OFlags::WRONLY), b"TEXT", 0);
    rustix::fs::rename("other", "renamed").unwrap();
    chmod("renamed", 0o600);
    assert_eq!((content("renamed"), mode("renamed")), (b"TEXT".to_vec(), 0o600));
    let fd = open("file", OFlags::RDWR);
    pwrite(&fd, b"over what is there", 5000);
    rustix::fs::ftruncate(&fd, 8192).unwrap();
    pwrite(&fd, &[3; 50_000], 8192);
    assert_eq!(fstat(&fd).st_size, 58_192);
}

fn space_cannot_be_set_aside() {
    let fd = create("file");
    fails(rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 1 << 30), Errno::NOSPC);
    assert_eq!(fstat(&fd).st_size, 0);
    rustix::fs::ftruncate(&fd, 1 << 30).unwrap();
    pwrite(&fd, b"x", 1 << 29);
}

fn no_more_files() {
    dir("dir", 0o755);
    let mut made = 0;
    let error = loop {
        match rustix::fs::mknodat(HERE, format!("dir/{made}"), FileType::RegularFile, Mode::RWXU, 0) {
            Ok(()) => made += 1,
            Err(error) => break error,
        }
        assert!(made < 5000, "this file system takes too many files for this case");
    };
    assert_eq!(error, Errno::NOSPC);
    assert_eq!(names("dir").len(), made);
    fails(rustix::fs::mkdir("more", Mode::RWXU), Errno::NOSPC);
    fails(rustix::fs::symlink("x", "more"), Errno::NOSPC);
    fails(try_open("more", OFlags::WRONLY | OFlags::CREATE), Errno::NOSPC);
    rustix::fs::unlink("dir/0").unwrap();
    file("more", "x", 0o644);
}

fn a_users_quota_ends_a_write() {
    dir("dir", 0o777);
    as_user(ALICE, || {
        let fd = create("dir/file");
        let mut written = 0;
        let error = loop {
            match rustix::io::write(&fd, &noise(written as u64, PIECE)) {
                Ok(more) => written += more,
                Err(error) => break error,
            }
            assert!(written < 64 << 20, "there is no quota");
        };
        assert_eq!((error, content("dir/file").len()), (Errno::DQUOT, written));
        rustix::fs::ftruncate(&fd, 0).unwrap();
        write(&fd, b"room again");
    });
}

fn space_beyond_a_quota() {
    dir("dir", 0o777);
    as_user(ALICE, || {
        let fd = create("dir/file");
        fails(rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 8 << 20), Errno::DQUOT);
    });
}
