//! `rename` and `renameat2`.

use std::os::unix::fs::symlink;

use rustix::fs::{rename, renameat_with};

use crate::check::*;
use crate::process::{ALICE, BOB, as_user};

cases! {
    everything_over_everything
    a_directory_into_itself
    to_itself_and_to_a_name_of_the_same_file
    what_cannot_be_renamed
    what_is_open_stays_so
    a_replaced_file_lives_on
    directories_with_all_that_is_in_them
    a_directory_moves_only_if_it_is_writable
    sticky_directories_keep_what_is_anothers
    not_over_anything
    two_names_exchanged
    exchange_of_a_file_and_a_directory
    readers_always_find_the_name
    working_directories_move_along
}

/// What there is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Nothing,
    File,
    Link,
    Fifo,
    EmptyDir,
    FullDir,
}

use What::{EmptyDir, Fifo, File, FullDir, Link, Nothing};

impl What {
    fn make(self, name: &str) {
        match self {
            Nothing => {}
            File => file(name, "x", 0o644),
            Link => symlink("nowhere", name).unwrap(),
            Fifo => rustix::fs::mknodat(HERE, name, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            EmptyDir => dir(name, 0o755),
            FullDir => {
                dir(name, 0o755);
                file(&format!("{name}/file"), "x", 0o644);
            }
        }
    }

    fn is_dir(self) -> bool {
        matches!(self, EmptyDir | FullDir)
    }

    /// What renaming it over another one gives.
    fn over(self, other: Self) -> Result<(), Errno> {
        match (self, other) {
            (_, Nothing) => Ok(()),
            (from, FullDir) if from.is_dir() => Err(Errno::NOTEMPTY),
            (from, to) if from.is_dir() && !to.is_dir() => Err(Errno::NOTDIR),
            (from, to) if !from.is_dir() && to.is_dir() => Err(Errno::ISDIR),
            _ => Ok(()),
        }
    }
}

fn everything_over_everything() {
    for from in [File, Link, Fifo, EmptyDir, FullDir] {
        for to in [Nothing, File, Link, Fifo, EmptyDir, FullDir] {
            let place = format!("{from:?}-{to:?}");
            dir(&place, 0o755);
            let (old, new) = (format!("{place}/old"), format!("{place}/new"));
            from.make(&old);
            to.make(&new);
            let before = stat(&old).st_ino;
            // POSIX has two words for a directory that is not empty.
            let result =
                rename(&old[..], &new[..]).map_err(|error| if error == Errno::EXIST { Errno::NOTEMPTY } else { error });
            assert_eq!(result, from.over(to), "{place}");
            if result.is_ok() {
                assert_eq!((stat(&new).st_ino, names(&place)), (before, vec!["new".to_owned()]), "{place}");
            } else {
                assert_eq!((stat(&old).st_ino, names(&place).len()), (before, 2), "{place}");
            }
        }
    }
}

fn a_directory_into_itself() {
    dir("dir", 0o755);
    dir("dir/below", 0o755);
    fails(rename("dir", "dir/inside"), Errno::INVAL);
    fails(rename("dir", "dir/below/inside"), Errno::INVAL);
    fails(rename("dir/below", "dir"), Errno::NOTEMPTY);
    assert_eq!(names("dir"), ["below"]);
}

fn to_itself_and_to_a_name_of_the_same_file() {
    file("one", "x", 0o644);
    rename("one", "one").unwrap();
    rustix::fs::link("one", "two").unwrap();
    rename("one", "two").unwrap();
    assert_eq!((names("."), stat("one").st_nlink), (vec!["one".to_owned(), "two".to_owned()], 2));
}

fn what_cannot_be_renamed() {
    dir("dir", 0o755);
    file("file", "x", 0o644);
    for name in [".", "..", "dir/.", "dir/.."] {
        fails(rename(name, "new"), Errno::BUSY);
    }
    fails(rename("dir", "."), Errno::BUSY);
    fails(rename("none", "new"), Errno::NOENT);
    fails(rename("file", "none/new"), Errno::NOENT);
    fails(rename("file/x", "new"), Errno::NOTDIR);
    fails(rename("file", "/dev/new"), Errno::XDEV);
    as_user(ALICE, || fails(rename("file", "new"), Errno::ACCESS));
    assert_eq!(names("."), ["dir", "file"]);
}

fn what_is_open_stays_so() {
    dir("dir", 0o755);
    let fd = create("file");
    rename("file", "dir/moved").unwrap();
    write(&fd, b"text");
    assert_eq!((content("dir/moved"), fstat(&fd).st_ino), (b"text".to_vec(), stat("dir/moved").st_ino));
    fails(try_stat("file"), Errno::NOENT);
}

fn a_replaced_file_lives_on() {
    file("old", "old content", 0o644);
    file("new", "new", 0o644);
    let fd = open("old", OFlags::RDWR);
    rename("new", "old").unwrap();
    assert_eq!((pread(&fd, 20, 0), fstat(&fd).st_nlink, content("old")), (b"old content".to_vec(), 0, b"new".to_vec()));
    pwrite(&fd, b"OLD", 0);
    assert_eq!((pread(&fd, 3, 0), content("old")), (b"OLD".to_vec(), b"new".to_vec()));
}

fn directories_with_all_that_is_in_them() {
    for name in ["a", "a/b", "a/b/c", "other"] {
        dir(name, 0o755);
    }
    file("a/b/c/file", "deep", 0o644);
    let open_dir = open("a/b/c", OFlags::RDONLY);
    rename("a/b", "other/moved").unwrap();
    assert_eq!((content("other/moved/c/file"), names("a").len()), (b"deep".to_vec(), 0));
    assert_eq!(stat("other/moved/..").st_ino, stat("other").st_ino);
    assert_eq!(rustix::fs::statat(&open_dir, "file", AtFlags::empty()).unwrap().st_size, 4);
    fails(try_stat("a/b/c/file"), Errno::NOENT);
    assert_eq!(rustix::fs::statat(&open_dir, "../..", AtFlags::empty()).unwrap().st_ino, stat("other").st_ino);
}

fn a_directory_moves_only_if_it_is_writable() {
    for name in ["from", "to", "from/dir"] {
        dir(name, 0o777);
    }
    chmod("from/dir", 0o755);
    // Its entry `..` changes, which belongs to root here. Within a directory it stays.
    as_user(ALICE, || {
        fails(rename("from/dir", "to/dir"), Errno::ACCESS);
        rename("from/dir", "from/other").unwrap();
    });
}

fn sticky_directories_keep_what_is_anothers() {
    dir("sticky", 0o1777);
    dir("free", 0o777);
    as_user(ALICE, || file("sticky/hers", "x", 0o666));
    as_user(BOB, || {
        fails(rename("sticky/hers", "free/hers"), Errno::PERM);
        file("free/his", "x", 0o644);
        fails(rename("free/his", "sticky/hers"), Errno::PERM);
        rename("free/his", "sticky/his").unwrap();
    });
    as_user(ALICE, || rename("sticky/hers", "free/hers").unwrap());
}

fn rename_with(from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(HERE, from, HERE, to, flags)
}

fn not_over_anything() {
    let flag = RenameFlags::NOREPLACE;
    file("file", "x", 0o644);
    dir("dir", 0o755);
    symlink("nowhere", "link").unwrap();
    for name in ["dir", "link", "file"] {
        fails(rename_with("file", name, flag), Errno::EXIST);
    }
    rename_with("file", "new", flag).unwrap();
    fails(rename_with("file", "newer", flag), Errno::NOENT);
    fails(rename_with("new", "newer", flag | RenameFlags::EXCHANGE), Errno::INVAL);
    assert_eq!(names("."), ["dir", "link", "new"]);
}

fn two_names_exchanged() {
    dir("dir", 0o755);
    file("one", "1", 0o644);
    file("dir/two", "22", 0o644);
    let fd = open("one", OFlags::RDONLY);
    rename_with("one", "dir/two", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((content("one"), content("dir/two"), pread(fd, 9, 0)), (b"22".to_vec(), b"1".to_vec(), b"1".to_vec()));
    assert_eq!((stat("one").st_size, stat("dir/two").st_size), (2, 1));
    fails(rename_with("one", "none", RenameFlags::EXCHANGE), Errno::NOENT);
    rename_with("one", "one", RenameFlags::EXCHANGE).unwrap();
}

fn exchange_of_a_file_and_a_directory() {
    for name in ["dir", "place", "place/full"] {
        dir(name, 0o755);
    }
    file("dir/file", "x", 0o644);
    file("place/full/inner", "inner", 0o644);
    rename_with("dir/file", "place/full", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((kind("place/full"), content("dir/file/inner")), (FileType::RegularFile, b"inner".to_vec()));
    assert_eq!(stat("dir/file/..").st_ino, stat("dir").st_ino);
    fails(rename_with("dir", "dir/file", RenameFlags::EXCHANGE), Errno::INVAL);
    fails(rename_with("dir/file", "dir", RenameFlags::EXCHANGE), Errno::INVAL);
}

fn readers_always_find_the_name() {
    file("name", vec![b'0'; 100], 0o644);
    let writer = crate::process::fork(|| {
        for i in 1..60 {
            file("new", vec![b'0' + (i % 10) as u8; 100 + i], 0o644);
            rename("new", "name").unwrap();
        }
    });
    let mut last = 0;
    while last < 159 {
        let now = content("name");
        assert!(now.len() >= last && now.iter().all(|byte| *byte == now[0]), "{} bytes after {last}", now.len());
        last = now.len();
    }
    writer.join();
}

fn working_directories_move_along() {
    dir("a", 0o755);
    dir("b", 0o755);
    let above = std::env::current_dir().unwrap();
    rustix::process::chdir("a").unwrap();
    rename("../a", "../b/moved").unwrap();
    assert_eq!(std::env::current_dir().unwrap(), above.join("b/moved"));
    file("file", "x", 0o644);
    assert_eq!(names("../../b/moved"), ["file"]);
}
