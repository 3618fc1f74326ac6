//! What a name may be, and paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use crate::check::*;

cases! {
    names_of_any_byte
    names_that_are_no_text
    names_differ_by_case_and_by_form
    names_of_255_bytes_and_not_of_256
    paths_of_4095_bytes_and_not_of_4096
    deep_directories
    names_with_slashes_at_the_end
    directories_that_exist
    the_dots
    names_that_come_and_go
    a_name_known_to_be_absent_can_be_made
}

fn names_of_any_byte() {
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    for byte in &bytes {
        // A dot alone is the directory itself.
        let name = if *byte == b'.' { b"...".to_vec() } else { vec![*byte] };
        rustix::fs::mknodat(HERE, &name[..], FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap();
    }
    let mut found: Vec<_> = std::fs::read_dir(".").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    let mut expected: Vec<_> = bytes.iter().map(|byte| OsStr::from_bytes(&[*byte]).to_owned()).collect();
    expected[usize::from(b'.' - 1)] = "...".into();
    expected.sort();
    assert_eq!(found, expected);
    for name in &expected {
        std::fs::write(name, name.as_bytes()).unwrap();
        assert_eq!(std::fs::read(name).unwrap(), name.as_bytes());
    }
    // All of them in one.
    let (one, two) = bytes.split_at(130);
    for name in [one, two] {
        let name = OsStr::from_bytes(name);
        std::fs::write(name, "x").unwrap();
        std::fs::remove_file(name).unwrap();
    }
}

fn names_that_are_no_text() {
    for name in [&b"\xff\xfe"[..], b"\xc3", b"\xed\xa0\x80", b"line\nbreak", b" ", b"-rf", b"\x7f\x1b[31m"] {
        let name = OsStr::from_bytes(name);
        std::fs::create_dir(name).unwrap();
        let inner = std::path::Path::new(name).join(name);
        symlink(name, &inner).unwrap();
        assert_eq!(std::fs::read_link(&inner).unwrap(), name);
        let list: Vec<_> = std::fs::read_dir(name).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(list, [name]);
    }
}

fn names_differ_by_case_and_by_form() {
    // A capital, a composed letter, the same in two.
    for name in ["a", "A", "\u{e4}", "a\u{308}"] {
        file(name, name, 0o644);
    }
    for name in ["a", "A", "\u{e4}", "a\u{308}"] {
        assert_eq!(content(name), name.as_bytes());
    }
    assert_eq!(names(".").len(), 4);
}

fn names_of_255_bytes_and_not_of_256() {
    let (long, too_long) = ("n".repeat(255), "n".repeat(256));
    file("file", "x", 0o644);
    fails(try_open(&too_long, OFlags::WRONLY | OFlags::CREATE), Errno::NAMETOOLONG);
    fails(rustix::fs::mkdir(&too_long[..], Mode::RWXU), Errno::NAMETOOLONG);
    fails(rustix::fs::symlink("file", &too_long[..]), Errno::NAMETOOLONG);
    fails(rustix::fs::link("file", &too_long[..]), Errno::NAMETOOLONG);
    fails(rustix::fs::rename("file", &too_long[..]), Errno::NAMETOOLONG);
    fails(rustix::fs::unlink(&too_long[..]), Errno::NAMETOOLONG);
    fails(try_stat(&too_long), Errno::NAMETOOLONG);
    fails(try_stat(&format!("{too_long}/file")), Errno::NAMETOOLONG);
    rustix::fs::mkdir(&long[..], Mode::RWXU).unwrap();
    rustix::fs::rmdir(&long[..]).unwrap();
    rustix::fs::rename("file", &long[..]).unwrap();
    assert_eq!(content(&long), b"x");
    assert_eq!(names("."), [long]);
}

fn paths_of_4095_bytes_and_not_of_4096() {
    file("file", "x", 0o644);
    let path = |length: usize| format!("{}file", "./".repeat((length - 4) / 2) + &"/".repeat(length % 2));
    assert_eq!((path(4095).len(), path(4096).len()), (4095, 4096));
    assert_eq!(content(&path(4095)), b"x");
    fails(try_stat(&path(4096)), Errno::NAMETOOLONG);
}

fn deep_directories() {
    const DEPTH: usize = 120;
    let name = "directory-with-a-rather-long-name-of-fifty-letters";
    for _ in 0..DEPTH {
        rustix::fs::mkdir(name, Mode::RWXU).unwrap();
        rustix::process::chdir(name).unwrap();
    }
    file("file", "deep", 0o644);
    for _ in 0..DEPTH {
        rustix::process::chdir("..").unwrap();
    }
    assert_eq!(names("."), [name]);
    let below = [name; 40].join("/");
    assert_eq!(names(&below), [name]);
}

fn names_with_slashes_at_the_end() {
    rustix::fs::mkdir("dir/", Mode::RWXU).unwrap();
    assert_eq!(kind("dir///"), FileType::Directory);
    rustix::fs::rename("dir/", "moved/").unwrap();
    file("file", "x", 0o644);
    fails(rustix::fs::unlink("file/"), Errno::NOTDIR);
    fails(rustix::fs::rename("file/", "other"), Errno::NOTDIR);
    fails(rustix::fs::rename("file", "other/"), Errno::NOTDIR);
    symlink("moved", "link").unwrap();
    assert_eq!((kind("link"), kind("link/")), (FileType::Symlink, FileType::Directory));
    fails(rustix::fs::rmdir("link/"), Errno::NOTDIR);
    rustix::fs::rmdir("moved/").unwrap();
}

fn directories_that_exist() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    symlink("nowhere", "dangling").unwrap();
    for name in ["file", "dir", "dangling", "."] {
        fails(rustix::fs::mkdir(name, Mode::RWXU), Errno::EXIST);
    }
    fails(rustix::fs::mkdir("none/dir", Mode::RWXU), Errno::NOENT);
    fails(rustix::fs::mkdir("file/dir", Mode::RWXU), Errno::NOTDIR);
}

fn the_dots() {
    dir("dir", 0o755);
    dir("dir/below", 0o755);
    let here = stat(".").st_ino;
    assert_eq!((stat("dir/..").st_ino, stat("dir/below/../..").st_ino), (here, here));
    rustix::fs::rename("dir/below", "below").unwrap();
    assert_eq!(stat("below/..").st_ino, here);
    fails(rustix::fs::rmdir("dir/."), Errno::INVAL);
    fails(rustix::fs::rmdir("below/.."), Errno::NOTEMPTY);
    fails(rustix::fs::unlink("."), Errno::ISDIR);
}

fn names_that_come_and_go() {
    // What was looked up before must not be remembered.
    for round in 0..20 {
        fails(try_stat("name"), Errno::NOENT);
        match round % 3 {
            0 => file("name", "x", 0o644),
            1 => dir("name", 0o755),
            _ => symlink("nowhere", "name").unwrap(),
        }
        let expected = [FileType::RegularFile, FileType::Directory, FileType::Symlink][round % 3];
        assert_eq!(kind("name"), expected);
        if round % 3 == 1 { rustix::fs::rmdir("name") } else { rustix::fs::unlink("name") }.unwrap();
    }
}

fn a_name_known_to_be_absent_can_be_made() {
    dir("dir", 0o755);
    fails(try_stat("dir/new"), Errno::NOENT);
    fails(try_open("dir/new", OFlags::RDONLY), Errno::NOENT);
    file("made", "x", 0o644);
    rustix::fs::rename("made", "dir/new").unwrap();
    assert_eq!(content("dir/new"), b"x");
    fails(try_stat("made"), Errno::NOENT);
}
