//! Hard and symbolic links.

use std::os::unix::fs::symlink;

use crate::check::*;
use crate::process::{ALICE, as_user};

cases! {
    a_second_name_is_the_same_file
    link_counts_follow_every_change
    what_cannot_be_linked
    a_link_to_a_link
    a_file_without_names_gets_none_back
    symbolic_links_keep_their_target
    symbolic_links_are_followed_40_deep
    loops_of_links
    links_belong_to_their_maker
    links_in_the_middle_of_a_path
}

fn a_second_name_is_the_same_file() {
    dir("dir", 0o755);
    file("one", "text", 0o640);
    rustix::fs::link("one", "dir/two").unwrap();
    let (one, two) = (stat("one"), stat("dir/two"));
    assert_eq!((one.st_ino, one.st_dev, one.st_nlink), (two.st_ino, two.st_dev, 2));
    std::fs::write("dir/two", "longer text").unwrap();
    chmod("one", 0o604);
    assert_eq!((content("one"), stat("one").st_size, mode("dir/two")), (b"longer text".to_vec(), 11, 0o604));
    rustix::fs::unlink("one").unwrap();
    assert_eq!((content("dir/two"), stat("dir/two").st_nlink), (b"longer text".to_vec(), 1));
}

fn link_counts_follow_every_change() {
    let fd = create("0");
    for i in 1..40 {
        rustix::fs::link("0", format!("{i}")).unwrap();
        assert_eq!((fstat(&fd).st_nlink, stat("0").st_nlink), (i + 1, i + 1));
    }
    file("other", "x", 0o644);
    rustix::fs::rename("other", "1").unwrap();
    assert_eq!((fstat(&fd).st_nlink, stat("2").st_nlink), (39, 39));
    rustix::fs::rename("0", "moved").unwrap();
    assert_eq!(stat("moved").st_nlink, 39);
    for i in 2..40 {
        rustix::fs::unlink(format!("{i}")).unwrap();
    }
    assert_eq!(fstat(&fd).st_nlink, 1);
    rustix::fs::unlink("moved").unwrap();
    assert_eq!(fstat(&fd).st_nlink, 0);
}

fn what_cannot_be_linked() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    fails(rustix::fs::link("dir", "second"), Errno::PERM);
    fails(rustix::fs::link("file", "file"), Errno::EXIST);
    fails(rustix::fs::link("file", "dir"), Errno::EXIST);
    fails(rustix::fs::link("none", "second"), Errno::NOENT);
    fails(rustix::fs::link("file", "none/second"), Errno::NOENT);
    fails(rustix::fs::link("file", "file/second"), Errno::NOTDIR);
    fails(rustix::fs::link("file", "/dev/second"), Errno::XDEV);
    // Linux lets others link only what they may write (fs.protected_hardlinks).
    chown("file", Some(ALICE), None).unwrap();
    as_user(ALICE, || fails(rustix::fs::link("file", "dir/second"), Errno::ACCESS));
    assert_eq!(stat("file").st_nlink, 1);
}

fn a_link_to_a_link() {
    file("file", "x", 0o644);
    symlink("file", "soft").unwrap();
    rustix::fs::link("soft", "hard").unwrap();
    assert_eq!((kind("hard"), stat("hard").st_ino, stat("soft").st_nlink), (FileType::Symlink, stat("soft").st_ino, 2));
    rustix::fs::linkat(HERE, "soft", HERE, "followed", AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!((kind("followed"), stat("file").st_nlink), (FileType::RegularFile, 2));
}

fn a_file_without_names_gets_none_back() {
    use std::os::fd::AsRawFd;
    let fd = create("file");
    rustix::fs::unlink("file").unwrap();
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    fails(rustix::fs::linkat(HERE, path, HERE, "again", AtFlags::SYMLINK_FOLLOW), Errno::NOENT);
    fails(try_stat("again"), Errno::NOENT);
}

fn symbolic_links_keep_their_target() {
    let targets =
        ["x".to_owned(), "/abs/../olute".to_owned(), " \n".to_owned(), "t".repeat(255), "d/".repeat(2047) + "x"];
    for (i, target) in targets.iter().enumerate() {
        let name = i.to_string();
        rustix::fs::symlink(&target[..], &name[..]).unwrap_or_else(|error| panic!("{} bytes: {error}", target.len()));
        assert_eq!(std::fs::read_link(&name).unwrap().as_os_str(), &target[..]);
        let attributes = stat(&name);
        assert_eq!((attributes.st_size as usize, attributes.st_mode & 0o7777), (target.len(), 0o777));
    }
    fails(rustix::fs::symlink("", "empty"), Errno::NOENT);
    fails(rustix::fs::symlink("t".repeat(4096), "too-long"), Errno::NAMETOOLONG);
    fails(rustix::fs::symlink("x", "0"), Errno::EXIST);
    file("file", "x", 0o644);
    fails(rustix::fs::readlink("file", Vec::new()), Errno::INVAL);
    let mut short = [0u8; 3];
    assert_eq!(rustix::fs::readlinkat_raw(HERE, "1", &mut short), Ok(3));
    assert_eq!(&short, b"/ab");
}

fn symbolic_links_are_followed_40_deep() {
    file("0", "x", 0o644);
    for i in 1..=41 {
        symlink((i - 1).to_string(), i.to_string()).unwrap();
    }
    assert_eq!(content("40"), b"x");
    fails(try_open("41", OFlags::RDONLY), Errno::LOOP);
}

fn loops_of_links() {
    symlink("self", "self").unwrap();
    symlink("two", "one").unwrap();
    symlink("one", "two").unwrap();
    for name in ["self", "one", "two", "one/x", "self/x"] {
        fails(try_open(name, OFlags::RDONLY), Errno::LOOP);
        fails(rustix::fs::stat(name), Errno::LOOP);
        fails(try_open(name, OFlags::WRONLY | OFlags::CREATE), Errno::LOOP);
    }
    fails(try_chmod("self", 0o600), Errno::LOOP);
    fails(rustix::fs::mkdir("self/dir", Mode::RWXU), Errno::LOOP);
    rustix::fs::rename("one", "three").unwrap();
    rustix::fs::unlink("self").unwrap();
}

fn links_belong_to_their_maker() {
    dir("dir", 0o777);
    as_user(ALICE, || symlink("target", "dir/link").unwrap());
    assert_eq!((stat("dir/link").st_uid, stat("dir/link").st_gid), (ALICE, ALICE));
    file("file", "x", 0o644);
    symlink("file", "link").unwrap();
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(HERE, "link", Some(Uid::from_raw(7)), Some(Gid::from_raw(8)), no_follow).unwrap();
    assert_eq!((stat("link").st_uid, stat("link").st_gid, stat("file").st_uid), (7, 8, 0));
    chown("link", Some(9), None).unwrap();
    assert_eq!((stat("link").st_uid, stat("file").st_uid), (7, 9));
}

fn links_in_the_middle_of_a_path() {
    dir("real", 0o755);
    dir("real/below", 0o755);
    symlink("real", "link").unwrap();
    symlink("../link/below", "real/up").unwrap();
    file("link/file", "x", 0o644);
    assert_eq!(content("link/up/../../link/file"), b"x");
    // Where it leads is looked up each time.
    dir("other", 0o755);
    symlink("other", "new").unwrap();
    rustix::fs::rename("new", "link").unwrap();
    assert_eq!((std::fs::read_link("link").unwrap().to_str(), names("link").len()), (Some("other"), 0));
    fails(try_stat("link/file"), Errno::NOENT);
}
