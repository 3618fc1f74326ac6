//! Times of access, modification and change.

use rustix::fs::{UTIME_NOW, UTIME_OMIT, utimensat};

use crate::check::*;
use crate::process::{ALICE, as_user};

cases! {
    times_are_set_to_the_nanosecond
    times_of_the_last_and_of_the_next_century
    times_set_to_now_or_left
    who_may_set_times
    times_of_a_link_itself
    writing_changes_mtime_and_ctime
    reading_and_empty_writes_change_neither
    attributes_change_ctime_alone
    directories_change_with_their_entries
    times_do_not_move_by_themselves
    a_mapped_write_changes_mtime
    the_birth_stays
    the_later_is_not_earlier
}

fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn set(name: &str, last_access: Timespec, last_modification: Timespec) -> Result<(), Errno> {
    utimensat(HERE, name, &Timestamps { last_access, last_modification }, AtFlags::empty())
}

fn atime(name: &str) -> (i64, i64) {
    (stat(name).st_atime, stat(name).st_atime_nsec as i64)
}

fn mtime(name: &str) -> (i64, i64) {
    (stat(name).st_mtime, stat(name).st_mtime_nsec as i64)
}

fn ctime(name: &str) -> (i64, i64) {
    (stat(name).st_ctime, stat(name).st_ctime_nsec as i64)
}

/// Longer than a kernel's clock for files ticks: a hundredth of a second at most.
fn tick() {
    nap(25);
}

fn times_are_set_to_the_nanosecond() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    for name in ["file", "dir"] {
        set(name, at(1_234_567_890, 123_456_789), at(987_654_321, 1)).unwrap();
        assert_eq!((atime(name), mtime(name)), ((1_234_567_890, 123_456_789), (987_654_321, 1)));
    }
    fails(set("file", at(0, 1_000_000_000), at(0, 0)), Errno::INVAL);
    fails(set("none", at(0, 0), at(0, 0)), Errno::NOENT);
}

fn times_of_the_last_and_of_the_next_century() {
    file("file", "x", 0o644);
    for seconds in [0, -1, -86_400 * 365 * 60, i64::from(i32::MAX) + 1, 4_102_444_800, 1 << 33] {
        set("file", at(seconds, 5), at(seconds, 999_999_999)).unwrap();
        assert_eq!((atime("file"), mtime("file")), ((seconds, 5), (seconds, 999_999_999)));
    }
}

fn times_set_to_now_or_left() {
    file("file", "x", 0o644);
    set("file", at(1000, 1), at(2000, 2)).unwrap();
    set("file", at(0, UTIME_OMIT), at(3000, 3)).unwrap();
    assert_eq!((atime("file"), mtime("file")), ((1000, 1), (3000, 3)));
    set("file", at(4000, 4), at(0, UTIME_OMIT)).unwrap();
    assert_eq!((atime("file"), mtime("file")), ((4000, 4), (3000, 3)));
    let before = ctime("file");
    set("file", at(0, UTIME_OMIT), at(0, UTIME_OMIT)).unwrap();
    assert_eq!(ctime("file"), before);
    set("file", at(0, UTIME_OMIT), at(0, UTIME_NOW)).unwrap();
    assert!(mtime("file") >= before && atime("file") == (4000, 4));
    set("file", at(0, UTIME_NOW), at(0, UTIME_NOW)).unwrap();
    assert!(atime("file") >= before && atime("file") == mtime("file"));
}

fn who_may_set_times() {
    file("writable", "x", 0o666);
    file("closed", "x", 0o644);
    let (now, omit) = (at(0, UTIME_NOW), at(0, UTIME_OMIT));
    as_user(ALICE, || {
        set("writable", now, now).unwrap();
        fails(set("writable", at(1, 1), at(1, 1)), Errno::PERM);
        fails(set("writable", omit, now), Errno::PERM);
        fails(set("closed", now, now), Errno::ACCESS);
        fails(set("closed", at(1, 1), at(1, 1)), Errno::PERM);
        set("closed", omit, omit).unwrap();
    });
    chown("closed", Some(ALICE), None).unwrap();
    chmod("closed", 0);
    as_user(ALICE, || set("closed", at(1, 1), at(1, 1)).unwrap());
}

fn times_of_a_link_itself() {
    file("file", "x", 0o644);
    std::os::unix::fs::symlink("file", "link").unwrap();
    let before = mtime("file");
    let times = Timestamps { last_access: at(5, 5), last_modification: at(6, 6) };
    utimensat(HERE, "link", &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((mtime("link"), mtime("file")), ((6, 6), before));
    set("link", at(7, 7), at(8, 8)).unwrap();
    assert_eq!((mtime("link"), mtime("file")), ((6, 6), (8, 8)));
}

/// Insists on which of a name's times a change moves: modification, change.
#[track_caller]
fn moves(name: &str, mtime_moves: bool, ctime_moves: bool, change: impl FnOnce()) {
    let before = (mtime(name), ctime(name));
    tick();
    change();
    let after = (mtime(name), ctime(name));
    assert_eq!((after.0 > before.0, after.1 > before.1), (mtime_moves, ctime_moves), "{name}: {before:?} {after:?}");
    assert!(after.0 >= before.0 && after.1 >= before.1, "a time went back: {before:?} {after:?}");
}

fn writing_changes_mtime_and_ctime() {
    file("file", "content", 0o644);
    let fd = open("file", OFlags::RDWR);
    moves("file", true, true, || write(&fd, b"C"));
    moves("file", true, true, || write(open("file", OFlags::WRONLY | OFlags::APPEND), b"!"));
    moves("file", true, true, || rustix::fs::ftruncate(&fd, 3).unwrap());
    moves("file", true, true, || drop(open("file", OFlags::WRONLY | OFlags::TRUNC)));
    moves("file", true, true, || rustix::fs::ftruncate(&fd, 9).unwrap());
    moves("file", true, true, || rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 100).unwrap());
    file("source", "text", 0o644);
    moves("file", true, true, || {
        rustix::fs::copy_file_range(open("source", OFlags::RDONLY), None, &fd, None, 4).unwrap();
    });
}

fn reading_and_empty_writes_change_neither() {
    file("file", "content", 0o644);
    let fd = open("file", OFlags::RDWR);
    moves("file", false, false, || drop(content("file")));
    moves("file", false, false, || write(&fd, b""));
    moves("file", false, false, || drop(open("file", OFlags::RDWR)));
    moves("file", false, false, || fails(rustix::fs::link("file", "file"), Errno::EXIST));
    moves("file", false, false, || rustix::fs::fsync(&fd).unwrap());
    let access = atime("file");
    tick();
    assert_eq!(pread(&fd, 3, 0), b"con");
    assert!(atime("file") >= access);
}

fn attributes_change_ctime_alone() {
    file("file", "content", 0o644);
    moves("file", false, true, || chmod("file", 0o600));
    moves("file", false, true, || chown("file", Some(ALICE), None).unwrap());
    moves("file", false, true, || rustix::fs::link("file", "link").unwrap());
    moves("file", false, true, || rustix::fs::unlink("link").unwrap());
    moves("file", false, true, || rustix::fs::setxattr("file", "user.x", b"y", XattrFlags::empty()).unwrap());
    moves("file", false, true, || rustix::fs::removexattr("file", "user.x").unwrap());
    moves("file", false, true, || set("file", at(1, 1), at(0, UTIME_OMIT)).unwrap());
}

fn directories_change_with_their_entries() {
    dir("dir", 0o755);
    dir("other", 0o755);
    moves("dir", true, true, || file("dir/file", "x", 0o644));
    moves("dir", false, false, || file("dir/file", "rewritten", 0o600));
    moves("dir", true, true, || rustix::fs::link("dir/file", "dir/link").unwrap());
    moves("dir", true, true, || rustix::fs::rename("dir/link", "dir/moved").unwrap());
    moves("dir", true, true, || rustix::fs::rename("dir/moved", "other/moved").unwrap());
    moves("other", true, true, || rustix::fs::rename("dir/file", "other/file").unwrap());
    moves("dir", true, true, || rustix::fs::mkdir("dir/below", Mode::RWXU).unwrap());
    moves("dir", false, false, || file("dir/below/file", "x", 0o644));
    moves("dir", true, true, || std::fs::remove_dir_all("dir/below").unwrap());
    moves("dir", true, true, || std::os::unix::fs::symlink("x", "dir/soft").unwrap());
    moves("dir", true, true, || rustix::fs::unlink("dir/soft").unwrap());
    moves("dir", false, false, || fails(rustix::fs::unlink("dir/soft"), Errno::NOENT));
}

fn times_do_not_move_by_themselves() {
    file("old", "x", 0o644);
    let fd = create("file");
    write(&fd, &noise(1, 5000));
    chmod("file", 0o600);
    rustix::fs::rename("file", "moved").unwrap();
    let by_name = |name| (mtime(name), ctime(name), stat(name).st_size);
    let before = (by_name("old"), by_name("moved"), (fstat(&fd).st_mtime, fstat(&fd).st_mtime_nsec as i64));
    assert_eq!(before.1.0, before.2);
    rustix::fs::fsync(&fd).unwrap();
    drop(fd);
    // Longer than anything is believed without asking again.
    nap(1200);
    assert_eq!((by_name("old"), by_name("moved")), (before.0, before.1));
}

fn a_mapped_write_changes_mtime() {
    file("file", [0; 4096], 0o644);
    let fd = std::fs::File::options().read(true).write(true).open("file").unwrap();
    moves("file", true, true, || {
        let map = Map::shared(&fd, 4096);
        map.set(0, b"x");
        map.sync();
    });
}

fn the_birth_stays() {
    use rustix::fs::{StatxFlags, statx};
    let birth = |name: &str| {
        let found = statx(HERE, name, AtFlags::empty(), StatxFlags::BTIME).unwrap();
        assert!(found.stx_mask & StatxFlags::BTIME.bits() != 0, "no time of birth");
        (found.stx_btime.tv_sec, found.stx_btime.tv_nsec)
    };
    file("file", "x", 0o644);
    let born = birth("file");
    tick();
    file("file", "rewritten", 0o600);
    rustix::fs::rename("file", "moved").unwrap();
    assert_eq!(birth("moved"), born);
    assert!(born.0 >= stat("moved").st_ctime - 60, "born long ago: {born:?}");
}

fn the_later_is_not_earlier() {
    let mut last = (0, 0);
    for i in 0..50 {
        let name = i.to_string();
        file(&name, "x", 0o644);
        assert!(mtime(&name) >= last, "{:?} after {last:?}", mtime(&name));
        last = mtime(&name);
    }
    tick();
    file("0", "again", 0o644);
    assert!(mtime("0") > last);
}
