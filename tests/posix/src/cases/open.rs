//! `open`, its flags and its errors.

use rustix::fs::linkat;

use crate::check::*;
use crate::process::{ALICE, as_user, fork};

cases! {
    exclusive_creation_refuses_what_exists
    creation_opens_what_exists
    the_new_file_is_writable_whatever_its_mode
    truncating_empties
    truncating_needs_the_right_to_write
    appending_goes_to_the_end_wherever_the_offset_is
    appending_can_be_switched_on_later
    appenders_do_not_overwrite_each_other
    unbuffered_blocks_go_through
    a_file_without_a_name
    a_file_without_a_name_can_be_given_one
    an_exclusive_file_without_a_name_keeps_none
    links_are_not_followed_when_unwanted
    a_directory_is_insisted_on
    a_descriptor_of_the_path_does_no_io
    a_directory_is_not_written
    paths_that_lead_nowhere
    an_access_mode_holds
    without_access_times_is_the_owners
    a_descriptor_opens_again_by_its_number
    synchronous_writes
}

fn exclusive_creation_refuses_what_exists() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    std::os::unix::fs::symlink("nowhere", "dangling").unwrap();
    for name in ["file", "dir", "dangling"] {
        fails(try_open(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL), Errno::EXIST);
    }
    assert_eq!(content("file"), b"x");
    fails(try_stat("nowhere"), Errno::NOENT);
}

fn creation_opens_what_exists() {
    file("file", "content", 0o600);
    let fd = open("file", OFlags::RDWR | OFlags::CREATE);
    assert_eq!((pread(&fd, 10, 0), mode("file")), (b"content".to_vec(), 0o600));
    std::os::unix::fs::symlink("made", "dangling").unwrap();
    write(open("dangling", OFlags::WRONLY | OFlags::CREATE), b"x");
    assert_eq!(content("made"), b"x");
}

fn the_new_file_is_writable_whatever_its_mode() {
    as_user_in("dir", || {
        let fd = rustix::fs::open("file", OFlags::RDWR | OFlags::CREATE, Mode::from_raw_mode(0o000)).unwrap();
        write(&fd, b"text");
        assert_eq!((pread(&fd, 10, 0), mode("file")), (b"text".to_vec(), 0));
        fails(try_open("file", OFlags::RDONLY), Errno::ACCESS);
    });
}

/// Does something as [`ALICE`] in a new directory of hers.
fn as_user_in(name: &str, work: impl FnOnce()) {
    dir(name, 0o755);
    chown(name, Some(ALICE), Some(ALICE)).unwrap();
    as_user(ALICE, || {
        std::env::set_current_dir(name).unwrap();
        work();
    });
}

fn truncating_empties() {
    file("file", "long content", 0o644);
    let reader = open("file", OFlags::RDONLY);
    let fd = open("file", OFlags::WRONLY | OFlags::TRUNC);
    assert_eq!((fstat(&fd).st_size, fstat(&reader).st_size, pread(&reader, 10, 0)), (0, 0, vec![]));
    write(fd, b"new");
    assert_eq!(content("file"), b"new");
}

fn truncating_needs_the_right_to_write() {
    file("file", "content", 0o644);
    as_user(ALICE, || fails(try_open("file", OFlags::WRONLY | OFlags::TRUNC), Errno::ACCESS));
    assert_eq!(content("file"), b"content");
}

fn appending_goes_to_the_end_wherever_the_offset_is() {
    file("file", "0123", 0o644);
    let (fd, other) = (open("file", OFlags::RDWR | OFlags::APPEND), open("file", OFlags::WRONLY));
    write(&fd, b"45");
    pwrite(&other, b"6", 6);
    rustix::fs::seek(&fd, SeekFrom::Start(0)).unwrap();
    write(&fd, b"7");
    assert_eq!(rustix::fs::seek(&fd, SeekFrom::Current(0)), Ok(8));
    assert_eq!(content("file"), b"01234567");
}

fn appending_can_be_switched_on_later() {
    file("file", "0123", 0o644);
    let fd = open("file", OFlags::RDWR);
    rustix::fs::fcntl_setfl(&fd, OFlags::APPEND).unwrap();
    write(&fd, b"4");
    rustix::fs::fcntl_setfl(&fd, OFlags::empty()).unwrap();
    pwrite(&fd, b"x", 0);
    assert_eq!(content("file"), b"x1234");
}

fn appenders_do_not_overwrite_each_other() {
    const WRITERS: u8 = 4;
    const LINES: usize = 50;
    file("log", "", 0o644);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            fork(move || {
                let fd = open("log", OFlags::WRONLY | OFlags::APPEND);
                (0..LINES).for_each(|_| write(&fd, &[&[b'a' + writer; 30][..], b"\n"].concat()));
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join());
    let log = content("log");
    for writer in 0..WRITERS {
        let line = [b'a' + writer; 30];
        assert_eq!(log.split(|byte| *byte == b'\n').filter(|found| *found == line).count(), LINES);
    }
    assert_eq!(log.len(), usize::from(WRITERS) * LINES * 31);
}

/// A buffer whose address is a multiple of the size of a block.
#[repr(align(4096))]
struct Block([u8; 4096]);

fn unbuffered_blocks_go_through() {
    let cached = create("file");
    write(&cached, &noise(1, 8192));
    let fd = open("file", OFlags::RDWR | OFlags::DIRECT);
    let mut block = Box::new(Block([0; 4096]));
    assert_eq!(rustix::io::pread(&fd, &mut block.0, 4096), Ok(4096));
    assert_eq!(block.0[..], noise(1, 8192)[4096..]);
    block.0.fill(7);
    assert_eq!(rustix::io::pwrite(&fd, &block.0, 8192), Ok(4096));
    assert_eq!(rustix::io::pwrite(&fd, &block.0, 0), Ok(4096));
    assert_eq!(pread(&cached, 20000, 0), [&[7; 4096], &noise(1, 8192)[4096..], &[7; 4096]].concat());
    assert_eq!(rustix::io::pread(&fd, &mut block.0, 12288), Ok(0));
}

fn a_file_without_a_name() {
    let fd = open(".", OFlags::RDWR | OFlags::TMPFILE);
    write(&fd, b"secret");
    assert_eq!((pread(&fd, 10, 0), fstat(&fd).st_nlink, fstat(&fd).st_size), (b"secret".to_vec(), 0, 6));
    assert_eq!(names("."), [""; 0]);
    fails(try_open(".", OFlags::RDONLY | OFlags::TMPFILE), Errno::INVAL);
}

/// Gives an open file a name.
fn name_it(fd: &impl std::os::fd::AsRawFd, name: &str) -> Result<(), Errno> {
    linkat(HERE, format!("/proc/self/fd/{}", fd.as_raw_fd()), HERE, name, AtFlags::SYMLINK_FOLLOW)
}

fn a_file_without_a_name_can_be_given_one() {
    let fd = open(".", OFlags::WRONLY | OFlags::TMPFILE);
    write(&fd, b"now public");
    name_it(&fd, "name").unwrap();
    assert_eq!((content("name"), stat("name").st_nlink), (b"now public".to_vec(), 1));
    assert_eq!((fstat(&fd).st_ino, fstat(&fd).st_nlink), (stat("name").st_ino, 1));
    file("taken", "", 0o644);
    fails(name_it(&fd, "taken"), Errno::EXIST);
}

fn an_exclusive_file_without_a_name_keeps_none() {
    let fd = open(".", OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL);
    fails(name_it(&fd, "name"), Errno::NOENT);
    assert_eq!(names("."), [""; 0]);
}

fn links_are_not_followed_when_unwanted() {
    file("file", "x", 0o644);
    std::os::unix::fs::symlink("file", "link").unwrap();
    fails(try_open("link", OFlags::RDONLY | OFlags::NOFOLLOW), Errno::LOOP);
    let fd = open("link", OFlags::PATH | OFlags::NOFOLLOW);
    assert_eq!(FileType::from_raw_mode(fstat(&fd).st_mode), FileType::Symlink);
    assert_eq!(rustix::fs::readlinkat(&fd, "", Vec::new()).unwrap().as_bytes(), b"file");
}

fn a_directory_is_insisted_on() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    fails(try_open("file", OFlags::RDONLY | OFlags::DIRECTORY), Errno::NOTDIR);
    fails(try_open("none", OFlags::RDONLY | OFlags::DIRECTORY), Errno::NOENT);
    open("dir", OFlags::RDONLY | OFlags::DIRECTORY);
}

fn a_descriptor_of_the_path_does_no_io() {
    file("file", "x", 0o000);
    dir("dir", 0o755);
    let fd = open("file", OFlags::PATH);
    fails(rustix::io::read(&fd, &mut [0; 1]), Errno::BADF);
    fails(rustix::io::write(&fd, b"x"), Errno::BADF);
    fails(rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o777)), Errno::BADF);
    assert_eq!(fstat(&fd).st_size, 1);
    let dir = open("dir", OFlags::PATH);
    rustix::process::fchdir(dir).unwrap();
    create("inside");
    assert_eq!(names("../dir"), ["inside"]);
}

fn a_directory_is_not_written() {
    dir("dir", 0o755);
    for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDONLY | OFlags::CREATE, OFlags::WRONLY | OFlags::TRUNC] {
        fails(try_open("dir", flags), Errno::ISDIR);
    }
    let fd = open("dir", OFlags::RDONLY);
    fails(rustix::io::read(&fd, &mut [0; 1]), Errno::ISDIR);
    fails(rustix::io::write(&fd, b"x"), Errno::BADF);
}

fn paths_that_lead_nowhere() {
    file("file", "x", 0o644);
    std::os::unix::fs::symlink("nowhere", "dangling").unwrap();
    let read = |path| try_open(path, OFlags::RDONLY);
    for path in ["", "none", "none/file", "dangling", "dangling/file"] {
        fails(read(path), Errno::NOENT);
    }
    for path in ["file/", "file/x", "file/..", "file/."] {
        fails(read(path), Errno::NOTDIR);
    }
    fails(try_open("new/", OFlags::WRONLY | OFlags::CREATE), Errno::ISDIR);
    fails(try_open("none/new", OFlags::WRONLY | OFlags::CREATE), Errno::NOENT);
    assert_eq!(names("."), ["dangling", "file"]);
}

fn an_access_mode_holds() {
    file("file", "content", 0o644);
    fails(rustix::io::write(open("file", OFlags::RDONLY), b"x"), Errno::BADF);
    fails(rustix::io::read(open("file", OFlags::WRONLY), &mut [0; 1]), Errno::BADF);
    fails(rustix::fs::ftruncate(open("file", OFlags::RDONLY), 0), Errno::INVAL);
    assert_eq!(content("file"), b"content");
}

fn without_access_times_is_the_owners() {
    file("file", "content", 0o644);
    assert_eq!(pread(open("file", OFlags::RDONLY | OFlags::NOATIME), 10, 0), b"content");
    as_user(ALICE, || fails(try_open("file", OFlags::RDONLY | OFlags::NOATIME), Errno::PERM));
}

fn a_descriptor_opens_again_by_its_number() {
    use std::os::fd::AsRawFd;
    let fd = create("file");
    write(&fd, b"text");
    rustix::fs::rename("file", "moved").unwrap();
    let again = open(&format!("/proc/self/fd/{}", fd.as_raw_fd()), OFlags::RDWR);
    assert_eq!(pread(&again, 10, 0), b"text");
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert_eq!(link, std::env::current_dir().unwrap().join("moved"));
}

fn synchronous_writes() {
    for (name, flags) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let fd = open(name, OFlags::RDWR | OFlags::CREATE | flags);
        write(&fd, b"on the disk");
        assert_eq!(content(name), b"on the disk");
        assert!(rustix::fs::fcntl_getfl(&fd).unwrap().contains(flags));
    }
}
