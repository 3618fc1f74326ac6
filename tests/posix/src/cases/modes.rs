//! Permission bits, owners, and who may do what.

use std::os::unix::fs::symlink;

use crate::check::*;
use crate::process::{ALICE, BOB, as_member, as_user};

cases! {
    the_mask_takes_bits_away
    the_mask_does_not_hold_for_chmod
    owner_group_and_others
    directories_need_search_and_write
    groups_beyond_the_first_count
    root_may_nearly_all
    access_asks_for_the_real_user
    chmod_is_the_owners
    chown_is_roots
    owners_change_to_groups_of_theirs
    directories_hand_their_group_down
    setgid_of_a_foreign_group_is_dropped
    rights_are_checked_at_open_only
    a_changed_mode_holds_at_once
    all_twelve_bits
}

fn the_mask_takes_bits_away() {
    for (mask, file_mode, dir_mode) in [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777), (0o777, 0, 0)]
    {
        rustix::process::umask(Mode::from_raw_mode(mask));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        rustix::fs::open("file", flags, Mode::from_raw_mode(0o666)).unwrap();
        rustix::fs::mkdir("dir", Mode::from_raw_mode(0o777)).unwrap();
        rustix::fs::mknodat(HERE, "fifo", FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        symlink("nowhere", "link").unwrap();
        assert_eq!((mode("file"), mode("dir"), mode("fifo"), mode("link")), (file_mode, dir_mode, file_mode, 0o777));
        for name in ["file", "fifo", "link"] {
            rustix::fs::unlink(name).unwrap();
        }
        rustix::fs::rmdir("dir").unwrap();
    }
}

fn the_mask_does_not_hold_for_chmod() {
    rustix::process::umask(Mode::from_raw_mode(0o777));
    std::fs::write("file", "x").unwrap();
    assert_eq!(mode("file"), 0);
    chmod("file", 0o666);
    assert_eq!(mode("file"), 0o666);
}

/// What the calling process may do with a file: its bits of read, write, execute.
fn rights(name: &str) -> u32 {
    let may = |flags| u32::from(try_open(name, flags).is_ok());
    let execute = rustix::fs::access(name, rustix::fs::Access::EXEC_OK).is_ok();
    may(OFlags::RDONLY) << 2 | may(OFlags::WRONLY) << 1 | u32::from(execute)
}

fn owner_group_and_others() {
    file("file", "x", 0);
    chown("file", Some(ALICE), Some(BOB)).unwrap();
    for bits in 0..8 {
        // The first class that a process is in counts, be it the poorest.
        for (shift, user, group) in [(6, ALICE, BOB), (3, BOB, BOB), (0, BOB, ALICE)] {
            chmod("file", 0o777 & !(7 << shift) | bits << shift);
            as_member(user, group, &[], || assert_eq!(rights("file"), bits, "{bits:o} of user {user}, group {group}"));
        }
    }
}

fn directories_need_search_and_write() {
    dir("dir", 0o777);
    file("dir/file", "x", 0o666);
    let make = || try_open("dir/new", OFlags::WRONLY | OFlags::CREATE).map(drop);
    let list = || std::fs::read_dir("dir").map(Iterator::count).map_err(|error| error.raw_os_error());
    chmod("dir", 0o744);
    as_user(ALICE, || {
        assert_eq!(list(), Ok(1));
        fails(try_stat("dir/file"), Errno::ACCESS);
        fails(make(), Errno::ACCESS);
    });
    chmod("dir", 0o711);
    as_user(ALICE, || {
        assert_eq!(list(), Err(Some(libc::EACCES)));
        assert_eq!(content("dir/file"), b"x");
        fails(make(), Errno::ACCESS);
        fails(rustix::fs::unlink("dir/file"), Errno::ACCESS);
        fails(rustix::fs::link("dir/file", "dir/more"), Errno::ACCESS);
    });
    chmod("dir", 0o733);
    as_user(ALICE, || {
        make().unwrap();
        rustix::fs::rename("dir/file", "dir/moved").unwrap();
        rustix::fs::unlink("dir/moved").unwrap();
    });
}

fn groups_beyond_the_first_count() {
    file("file", "x", 0o060);
    chown("file", None, Some(77)).unwrap();
    dir("dir", 0o070);
    chown("dir", None, Some(78)).unwrap();
    as_member(ALICE, ALICE, &[5, 77, 78], || {
        assert_eq!(rights("file"), 6);
        // The server of a shared file system may not know these groups.
        file("dir/hers", "x", 0o600);
        dir("dir/below", 0o755);
        symlink("x", "dir/link").unwrap();
        rustix::fs::link("file", "dir/hard").unwrap();
        rustix::fs::rename("dir/hers", "dir/her-own").unwrap();
        assert_eq!((stat("dir/her-own").st_uid, stat("dir/below").st_gid), (ALICE, ALICE));
    });
}

fn root_may_nearly_all() {
    file("file", "x", 0);
    dir("dir", 0);
    chown("file", Some(ALICE), Some(ALICE)).unwrap();
    assert_eq!(rights("file"), 6);
    file("dir/file", "x", 0o644);
    assert_eq!(names("dir"), ["file"]);
    chmod("file", 0o001);
    assert_eq!(rights("file"), 7);
}

fn access_asks_for_the_real_user() {
    use rustix::fs::{Access, access, accessat};
    file("file", "x", 0o600);
    crate::process::fork(|| {
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::setresuid(ALICE, 0, 0) }, 0);
        fails(access("file", Access::READ_OK), Errno::ACCESS);
        access("file", Access::EXISTS).unwrap();
        accessat(HERE, "file", Access::READ_OK, AtFlags::EACCESS).unwrap();
        open("file", OFlags::RDONLY);
    })
    .join();
    fails(access("none", Access::EXISTS), Errno::NOENT);
    as_user(ALICE, || fails(access("file", Access::WRITE_OK), Errno::ACCESS));
}

fn chmod_is_the_owners() {
    file("file", "x", 0o666);
    chown("file", Some(ALICE), Some(ALICE)).unwrap();
    as_user(BOB, || fails(try_chmod("file", 0o777), Errno::PERM));
    as_user(ALICE, || chmod("file", 0o640));
    assert_eq!(mode("file"), 0o640);
    fails(try_chmod("none", 0o777), Errno::NOENT);
    symlink("file", "link").unwrap();
    chmod("link", 0o600);
    assert_eq!((mode("file"), mode("link")), (0o600, 0o777));
}

fn chown_is_roots() {
    file("file", "x", 0o666);
    chown("file", Some(ALICE), Some(ALICE)).unwrap();
    as_user(ALICE, || {
        fails(chown("file", Some(BOB), None), Errno::PERM);
        fails(chown("file", None, Some(BOB)), Errno::PERM);
        chown("file", Some(ALICE), Some(ALICE)).unwrap();
    });
    as_user(BOB, || fails(chown("file", Some(BOB), None), Errno::PERM));
    chown("file", None, Some(4_000_000_000)).unwrap();
    assert_eq!((stat("file").st_uid, stat("file").st_gid), (ALICE, 4_000_000_000));
}

fn owners_change_to_groups_of_theirs() {
    file("file", "x", 0o666);
    chown("file", Some(ALICE), Some(ALICE)).unwrap();
    as_member(ALICE, ALICE, &[77], || {
        chown("file", None, Some(77)).unwrap();
        fails(chown("file", None, Some(78)), Errno::PERM);
    });
    assert_eq!(stat("file").st_gid, 77);
}

fn directories_hand_their_group_down() {
    dir("dir", 0o2777);
    chown("dir", None, Some(77)).unwrap();
    chmod("dir", 0o2777);
    as_user(ALICE, || {
        file("dir/file", "x", 0o644);
        rustix::fs::mkdir("dir/below", Mode::from_raw_mode(0o755)).unwrap();
        symlink("x", "dir/link").unwrap();
        file("dir/below/file", "x", 0o644);
        rustix::fs::mknodat(HERE, "dir/fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        let fd = open("dir", OFlags::WRONLY | OFlags::TMPFILE);
        assert_eq!((fstat(&fd).st_uid, fstat(&fd).st_gid), (ALICE, 77));
    });
    for name in ["dir/file", "dir/below", "dir/link", "dir/below/file", "dir/fifo"] {
        assert_eq!((stat(name).st_uid, stat(name).st_gid), (ALICE, 77), "{name}");
    }
    assert_eq!((mode("dir/below"), mode("dir/file")), (0o2755, 0o644));
}

fn setgid_of_a_foreign_group_is_dropped() {
    dir("dir", 0o777);
    chown("dir", None, Some(77)).unwrap();
    chmod("dir", 0o2777);
    let flags = OFlags::WRONLY | OFlags::CREATE;
    as_user(ALICE, || {
        rustix::fs::open("dir/made", flags, Mode::from_raw_mode(0o2755)).unwrap();
        file("dir/set", "x", 0o2755);
    });
    assert_eq!((mode("dir/made"), mode("dir/set")), (0o755, 0o755));
    as_member(ALICE, 77, &[], || chmod("dir/set", 0o2755));
    assert_eq!(mode("dir/set"), 0o2755);
}

fn rights_are_checked_at_open_only() {
    dir("dir", 0o777);
    file("dir/file", "content", 0o666);
    as_user(ALICE, || {
        let fd = open("dir/file", OFlags::RDWR);
        crate::check::write(open("dir/file", OFlags::WRONLY | OFlags::APPEND), b"!");
        let mine = create("dir/hers");
        chmod("dir/hers", 0);
        crate::check::write(&mine, b"still");
        rustix::fs::ftruncate(&mine, 2).unwrap();
        assert_eq!(pread(&mine, 9, 0), b"st");
        fails(try_open("dir/hers", OFlags::RDONLY), Errno::ACCESS);
        pwrite(&fd, b"C", 0);
    });
    assert_eq!(content("dir/file"), b"Content!");
}

fn a_changed_mode_holds_at_once() {
    dir("dir", 0o700);
    file("dir/file", "x", 0o600);
    let (go, gone) = (Gate::new(), Gate::new());
    let alice = crate::process::fork(|| {
        crate::process::become_user(ALICE, ALICE, &[]);
        for _ in 0..3 {
            fails(try_open("dir/file", OFlags::RDONLY), Errno::ACCESS);
            gone.open();
            go.pass();
            assert_eq!(content("dir/file"), b"x");
            gone.open();
            go.pass();
        }
    });
    for _ in 0..3 {
        gone.pass();
        chmod("dir", 0o755);
        chmod("dir/file", 0o644);
        go.open();
        gone.pass();
        chmod("dir/file", 0o600);
        go.open();
    }
    alice.join();
}

fn all_twelve_bits() {
    file("file", "", 0);
    dir("dir", 0);
    for shift in 0..12 {
        for name in ["file", "dir"] {
            chmod(name, 1 << shift);
            assert_eq!(mode(name), 1 << shift, "{name}");
        }
    }
    chmod("file", 0o7777);
    assert_eq!(mode("file"), 0o7777);
}
