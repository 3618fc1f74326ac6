//! Setuid, setgid and file capabilities: what takes them away.

use crate::check::*;
use crate::process::{ALICE, as_user};

cases! {
    chown_drops_setuid_and_setgid
    chown_of_a_directory_drops_nothing
    a_users_write_drops_them
    a_users_other_changes_drop_them
    roots_write_keeps_them
    a_write_drops_capabilities
    chown_drops_capabilities
    truncating_drops_capabilities
    reading_and_linking_drop_nothing
}

/// `CAP_CHOWN`, permitted and effective: `struct vfs_cap_data` of version 2.
pub const CHOWN: [u8; 20] = [1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Their attribute.
pub const CAPABILITY: &str = "security.capability";

fn capable(name: &str) -> bool {
    match rustix::fs::getxattr(name, CAPABILITY, &mut [0u8; 64]) {
        Ok(length) => length == CHOWN.len(),
        Err(error) => {
            assert_eq!(error, Errno::NODATA);
            false
        }
    }
}

fn make_capable(name: &str) {
    file(name, "program", 0o777);
    rustix::fs::setxattr(name, CAPABILITY, &CHOWN, XattrFlags::empty()).unwrap();
    assert!(capable(name));
}

fn chown_drops_setuid_and_setgid() {
    for (bits, left) in [(0o6755, 0o755), (0o4711, 0o711), (0o2775, 0o775)] {
        file("file", "x", bits);
        chown("file", Some(ALICE), Some(ALICE)).unwrap();
        assert_eq!(mode("file"), left);
        chmod("file", bits);
        as_user(ALICE, || chown("file", None, Some(ALICE)).unwrap());
        assert_eq!(mode("file"), left);
        rustix::fs::unlink("file").unwrap();
    }
}

fn chown_of_a_directory_drops_nothing() {
    dir("dir", 0o7755);
    chown("dir", Some(ALICE), Some(ALICE)).unwrap();
    assert_eq!(mode("dir"), 0o7755);
}

fn a_users_write_drops_them() {
    file("file", "content", 0o6777);
    as_user(ALICE, || {
        let fd = open("file", OFlags::RDWR);
        assert_eq!((pread(&fd, 1, 0), mode("file")), (b"c".to_vec(), 0o6777));
        pwrite(&fd, b"C", 0);
        assert_eq!((mode("file"), fstat(&fd).st_mode & 0o7777), (0o777, 0o777));
    });
    nap(1100);
    assert_eq!((mode("file"), content("file")), (0o777, b"Content".to_vec()));
}

fn a_users_other_changes_drop_them() {
    let changes: [(&str, fn()); 5] = [
        ("truncate", || drop(std::fs::File::options().write(true).open("file").unwrap().set_len(3))),
        ("O_TRUNC", || drop(open("file", OFlags::WRONLY | OFlags::TRUNC))),
        ("append", || write(open("file", OFlags::WRONLY | OFlags::APPEND), b"!")),
        ("fallocate", || {
            rustix::fs::fallocate(open("file", OFlags::WRONLY), FallocateFlags::empty(), 0, 9000).unwrap();
        }),
        ("copy_file_range", || {
            let (from, to) = (open("source", OFlags::RDONLY), open("file", OFlags::WRONLY));
            assert_eq!(rustix::fs::copy_file_range(from, None, to, None, 4), Ok(4));
        }),
    ];
    file("source", "text", 0o644);
    for (what, change) in changes {
        file("file", "content", 0o6777);
        as_user(ALICE, change);
        assert_eq!(mode("file"), 0o777, "{what}");
    }
}

fn roots_write_keeps_them() {
    file("file", "content", 0o6755);
    pwrite(open("file", OFlags::RDWR), b"C", 0);
    std::fs::File::options().write(true).open("file").unwrap().set_len(3).unwrap();
    assert_eq!((mode("file"), content("file")), (0o6755, b"Con".to_vec()));
}

fn a_write_drops_capabilities() {
    make_capable("one");
    pwrite(open("one", OFlags::WRONLY), b"P", 0);
    assert!(!capable("one"));
    make_capable("two");
    as_user(ALICE, || pwrite(open("two", OFlags::WRONLY), b"P", 0));
    assert!(!capable("two"));
}

fn chown_drops_capabilities() {
    make_capable("file");
    chown("file", Some(ALICE), None).unwrap();
    assert!(!capable("file"));
}

fn truncating_drops_capabilities() {
    make_capable("one");
    open("one", OFlags::WRONLY | OFlags::TRUNC);
    assert!(!capable("one"));
    make_capable("two");
    rustix::fs::ftruncate(open("two", OFlags::WRONLY), 2).unwrap();
    assert!(!capable("two"));
}

fn reading_and_linking_drop_nothing() {
    make_capable("file");
    chmod("file", 0o6755);
    content("file");
    rustix::fs::link("file", "link").unwrap();
    rustix::fs::rename("link", "moved").unwrap();
    let now = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        last_modification: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
    };
    rustix::fs::utimensat(HERE, "file", &now, AtFlags::empty()).unwrap();
    assert_eq!((mode("file"), capable("file"), capable("moved")), (0o6755, true, true));
}
