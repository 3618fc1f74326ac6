//! Removing names, and files that live on without one.

use rustix::fs::{rmdir, unlink};

use crate::check::*;
use crate::process::{ALICE, BOB, as_user};

cases! {
    an_open_file_lives_on
    it_keeps_attributes_and_can_change_them
    a_new_file_of_the_name_is_another
    what_cannot_be_unlinked
    what_cannot_be_removed_as_a_directory
    a_removed_directory_is_dead
    rights_to_remove
    sticky_directories
    many_open_files_without_names
}

fn an_open_file_lives_on() {
    let fd = create("file");
    write(&fd, &noise(1, 10_000));
    unlink("file").unwrap();
    assert_eq!(pread(&fd, 20_000, 0), noise(1, 10_000));
    pwrite(&fd, &noise(2, 10_000), 5_000);
    assert_eq!((pread(&fd, 20_000, 5_000), fstat(&fd).st_size), (noise(2, 10_000), 15_000));
    rustix::fs::ftruncate(&fd, 100).unwrap();
    rustix::fs::ftruncate(&fd, 200).unwrap();
    assert_eq!(pread(&fd, 300, 0), [&noise(1, 100)[..], &[0; 100]].concat());
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, 8192).unwrap();
    rustix::fs::fsync(&fd).unwrap();
    assert_eq!((fstat(&fd).st_size, fstat(&fd).st_nlink), (8192, 0));
    let map = crate::check::Map::shared(&fd.into(), 4096);
    map.set(0, b"mapped");
    map.sync();
    assert_eq!(map.get(0, 7), [&b"mapped"[..], &noise(1, 100)[6..7]].concat());
}

fn it_keeps_attributes_and_can_change_them() {
    let fd = create("file");
    unlink("file").unwrap();
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o604)).unwrap();
    rustix::fs::fchown(&fd, Some(Uid::from_raw(ALICE)), None).unwrap();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    rustix::fs::futimens(&fd, &Timestamps { last_access: time, last_modification: time }).unwrap();
    rustix::fs::fsetxattr(&fd, "user.key", b"value", XattrFlags::empty()).unwrap();
    let now = fstat(&fd);
    assert_eq!((now.st_mode & 0o777, now.st_uid, now.st_mtime, now.st_mtime_nsec), (0o604, ALICE, 1_000_000_000, 5));
    assert_eq!(rustix::fs::fgetxattr(&fd, "user.key", &mut [0u8; 5]), Ok(5));
}

fn a_new_file_of_the_name_is_another() {
    let old = create("file");
    write(&old, b"old");
    unlink("file").unwrap();
    let new = create("file");
    write(&new, b"newer");
    assert_eq!((pread(&old, 9, 0), content("file"), fstat(&old).st_size), (b"old".to_vec(), b"newer".to_vec(), 3));
    assert_ne!(fstat(&old).st_ino, fstat(&new).st_ino);
}

fn what_cannot_be_unlinked() {
    dir("dir", 0o755);
    file("file", "x", 0o644);
    fails(unlink("dir"), Errno::ISDIR);
    fails(unlink("none"), Errno::NOENT);
    fails(unlink("file/x"), Errno::NOTDIR);
    fails(unlink(""), Errno::NOENT);
    assert_eq!(names("."), ["dir", "file"]);
}

fn what_cannot_be_removed_as_a_directory() {
    dir("full", 0o755);
    dir("full/below", 0o755);
    file("file", "x", 0o644);
    std::os::unix::fs::symlink("full/below", "link").unwrap();
    let error = rmdir("full").unwrap_err();
    assert!(error == Errno::NOTEMPTY || error == Errno::EXIST, "{error}");
    for name in ["file", "link", "file/x"] {
        fails(rmdir(name), Errno::NOTDIR);
    }
    fails(rmdir("none"), Errno::NOENT);
    fails(rmdir("full/below/."), Errno::INVAL);
    rmdir("full/below").unwrap();
    rmdir("full").unwrap();
    assert_eq!(names("."), ["file", "link"]);
}

fn a_removed_directory_is_dead() {
    dir("dir", 0o755);
    let fd = open("dir", OFlags::RDONLY);
    rustix::process::chdir("dir").unwrap();
    rmdir("../dir").unwrap();
    fails(rustix::process::getcwd(Vec::new()), Errno::NOENT);
    fails(try_open("file", OFlags::RDWR | OFlags::CREATE), Errno::NOENT);
    fails(rustix::fs::mkdir("below", Mode::RWXU), Errno::NOENT);
    fails(rustix::fs::openat(&fd, "file", OFlags::RDWR | OFlags::CREATE, Mode::RWXU), Errno::NOENT);
    assert_eq!(fstat(&fd).st_nlink, 0);
    let left = rustix::fs::Dir::read_from(&fd).unwrap().filter_map(Result::ok);
    assert_eq!(left.filter(|entry| !entry.file_name().to_bytes().starts_with(b".")).count(), 0);
}

fn rights_to_remove() {
    dir("closed", 0o755);
    dir("open", 0o777);
    file("closed/file", "x", 0o666);
    file("open/file", "x", 0o000);
    dir("open/dir", 0o000);
    as_user(ALICE, || {
        fails(unlink("closed/file"), Errno::ACCESS);
        unlink("open/file").unwrap();
        rmdir("open/dir").unwrap();
    });
}

fn sticky_directories() {
    dir("sticky", 0o1777);
    as_user(ALICE, || {
        file("sticky/hers", "x", 0o666);
        dir("sticky/her-dir", 0o777);
    });
    as_user(BOB, || {
        fails(unlink("sticky/hers"), Errno::PERM);
        fails(rmdir("sticky/her-dir"), Errno::PERM);
    });
    // The directory's owner may, and so may the file's.
    chown("sticky", Some(BOB), None).unwrap();
    as_user(BOB, || unlink("sticky/hers").unwrap());
    as_user(ALICE, || rmdir("sticky/her-dir").unwrap());
}

fn many_open_files_without_names() {
    let files: Vec<_> = (0..80)
        .map(|i: u32| {
            let fd = create("file");
            write(&fd, &i.to_le_bytes());
            unlink("file").unwrap();
            fd
        })
        .collect();
    for (i, fd) in files.iter().enumerate() {
        assert_eq!(pread(fd, 9, 0), (i as u32).to_le_bytes());
    }
}
