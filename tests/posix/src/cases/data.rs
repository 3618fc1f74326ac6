//! Reading and writing.

use std::io::{IoSlice, IoSliceMut};

use rustix::fs::seek;
use rustix::io::{pwritev, read, readv, writev};

use crate::check::*;
use crate::process::fork;

cases! {
    what_one_writes_another_reads
    positions_are_each_descriptors_own
    positions_given_leave_the_offset_alone
    the_end_of_a_file
    vectors
    large_pieces_at_odd_places
    single_bytes
    a_vector_that_appends
    memory_that_is_none
    flushing
    flushing_a_directory
    what_is_flushed_is_in_the_file
    the_kernel_moves_bytes
    changes_are_announced
    advice_is_taken
}

fn what_one_writes_another_reads() {
    let (one, two) = (create("file"), open("file", OFlags::RDWR));
    for round in 0..50u8 {
        let text = vec![round; 100 + usize::from(round) * 100];
        pwrite(&one, &text, u64::from(round));
        assert_eq!(pread(&two, text.len(), u64::from(round)), text);
        pwrite(&two, b"back", 3);
        assert_eq!(pread(&one, 4, 3), b"back");
        assert_eq!(fstat(&one).st_size, fstat(&two).st_size);
    }
    let child = fork(|| pwrite(open("file", OFlags::WRONLY), b"child", 0));
    child.join();
    assert_eq!((pread(&one, 5, 0), pread(&two, 5, 0)), (b"child".to_vec(), b"child".to_vec()));
}

fn positions_are_each_descriptors_own() {
    file("file", "0123456789", 0o644);
    let fd = open("file", OFlags::RDONLY);
    let (copy, other) = (rustix::io::dup(&fd).unwrap(), open("file", OFlags::RDONLY));
    let mut bytes = [0; 2];
    read(&fd, &mut bytes).unwrap();
    read(&copy, &mut bytes).unwrap();
    assert_eq!(&bytes, b"23");
    fork(|| assert_eq!(seek(&fd, SeekFrom::Current(1)), Ok(5))).join();
    read(&fd, &mut bytes).unwrap();
    assert_eq!(&bytes, b"56");
    read(&other, &mut bytes).unwrap();
    assert_eq!(&bytes, b"01");
    assert_eq!(seek(&fd, SeekFrom::End(5)), Ok(15));
    fails(seek(&fd, SeekFrom::End(-11)), Errno::INVAL);
    assert_eq!(read(&fd, &mut bytes), Ok(0));
}

fn positions_given_leave_the_offset_alone() {
    let fd = create("file");
    write(&fd, b"0123456789");
    pwrite(&fd, b"xy", 4);
    assert_eq!(pread(&fd, 4, 3), b"3xy6");
    assert_eq!(seek(&fd, SeekFrom::Current(0)), Ok(10));
    fails(rustix::io::pread(&fd, &mut [0; 1], u64::MAX), Errno::INVAL);
}

fn the_end_of_a_file() {
    file("file", "12345", 0o644);
    let fd = open("file", OFlags::RDWR);
    let mut bytes = [0; 10];
    assert_eq!((read(&fd, &mut bytes), read(&fd, &mut bytes)), (Ok(5), Ok(0)));
    assert_eq!((pread(&fd, 9, 5), pread(&fd, 9, 1 << 50)), (vec![], vec![]));
    pwrite(&fd, b"x", 7);
    assert_eq!(read(&fd, &mut bytes), Ok(3));
    assert_eq!(&bytes[..3], b"\0\0x");
}

fn vectors() {
    let fd = create("file");
    let parts = [&b"one"[..], b"", b"three", &[7; 5000]].map(IoSlice::new);
    assert_eq!(writev(&fd, &parts), Ok(5008));
    assert_eq!(pwritev(&fd, &[IoSlice::new(b"O"), IoSlice::new(b"N")], 0), Ok(2));
    seek(&fd, SeekFrom::Start(0)).unwrap();
    let (mut a, mut b, mut c) = ([0; 2], [0; 5], [0; 6000]);
    let mut parts = [&mut a[..], &mut b, &mut c].map(IoSliceMut::new);
    assert_eq!(readv(&fd, &mut parts), Ok(5008));
    assert_eq!((&a, &b, &c[..3]), (b"ON", b"ethre", &b"e\x07\x07"[..]));
}

fn large_pieces_at_odd_places() {
    const SIZE: usize = (3 << 20) + 17;
    let fd = create("file");
    pwrite(&fd, &noise(1, SIZE), 4095);
    assert_eq!(fstat(&fd).st_size as usize, SIZE + 4095);
    let again = open("file", OFlags::RDONLY);
    assert!(pread(&again, SIZE + 1, 4095) == noise(1, SIZE), "3 MiB differ");
    assert!(pread(&again, 1 << 20, 4095 + 777_777) == noise(1, SIZE)[777_777..777_777 + (1 << 20)], "1 MiB differs");
}

fn single_bytes() {
    let fd = create("file");
    for byte in noise(1, 300) {
        write(&fd, &[byte]);
    }
    assert_eq!(content("file"), noise(1, 300));
}

fn a_vector_that_appends() {
    use rustix::io::{ReadWriteFlags, pwritev2};
    file("file", "0123", 0o644);
    let fd = open("file", OFlags::WRONLY);
    assert_eq!(pwritev2(&fd, &[IoSlice::new(b"45")], 0, ReadWriteFlags::APPEND), Ok(2));
    assert_eq!(pwritev2(&fd, &[IoSlice::new(b"x")], 0, ReadWriteFlags::DSYNC), Ok(1));
    assert_eq!(content("file"), b"x12345");
}

fn memory_that_is_none() {
    use std::os::fd::AsRawFd;
    let fd = create("file");
    write(&fd, b"content");
    let nowhere = 16 as *mut libc::c_void;
    // SAFETY: the kernel checks the address and refuses it: that is what is tested.
    let results = unsafe { (libc::pwrite(fd.as_raw_fd(), nowhere, 9, 0), libc::pread(fd.as_raw_fd(), nowhere, 7, 0)) };
    assert_eq!((results, std::io::Error::last_os_error().raw_os_error()), ((-1, -1), Some(libc::EFAULT)));
    assert_eq!(content("file"), b"content");
}

fn flushing() {
    let fd = create("file");
    write(&fd, b"text");
    rustix::fs::fsync(&fd).unwrap();
    rustix::fs::fdatasync(&fd).unwrap();
    rustix::fs::syncfs(&fd).unwrap();
    rustix::fs::sync();
    let reader = open("file", OFlags::RDONLY);
    rustix::fs::fsync(&reader).unwrap();
    rustix::fs::unlink("file").unwrap();
    rustix::fs::fsync(&fd).unwrap();
    fails(rustix::fs::fsync(open(".", OFlags::PATH)), Errno::BADF);
}

fn flushing_a_directory() {
    dir("dir", 0o755);
    let fd = open("dir", OFlags::RDONLY | OFlags::DIRECTORY);
    file("dir/new", "x", 0o644);
    rustix::fs::fsync(&fd).unwrap();
    rustix::fs::rename("dir/new", "dir/name").unwrap();
    rustix::fs::fdatasync(&fd).unwrap();
    rustix::fs::syncfs(&fd).unwrap();
}

fn what_is_flushed_is_in_the_file() {
    // As a database writes its log: append, flush, read back by another process.
    let fd = open("log", OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND);
    for i in 0..30u32 {
        write(&fd, &i.to_le_bytes());
        rustix::fs::fdatasync(&fd).unwrap();
        fork(|| assert_eq!(content("log")[i as usize * 4..], i.to_le_bytes())).join();
    }
}

fn the_kernel_moves_bytes() {
    file("from", noise(1, 200_000), 0o644);
    let (from, to) = (open("from", OFlags::RDONLY), create("to"));
    let mut at = 1;
    while at < 200_000 {
        assert!(rustix::fs::sendfile(&to, &from, Some(&mut at), 1 << 20).unwrap() > 0);
    }
    assert_eq!(content("to"), noise(1, 200_000)[1..]);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let flags = rustix::pipe::SpliceFlags::empty();
    let moved = rustix::pipe::splice(&from, Some(&mut 10), &writer, None, 5000, flags).unwrap();
    let back = rustix::pipe::splice(&reader, None, &to, Some(&mut 0), moved, flags).unwrap();
    assert!(moved == back && moved > 0);
    assert_eq!(pread(&to, moved, 0), noise(1, 200_000)[10..10 + moved]);
}

fn changes_are_announced() {
    use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
    dir("dir", 0o755);
    let watch = init(CreateFlags::NONBLOCK).unwrap();
    let wanted = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::DELETE | WatchFlags::MOVED_TO;
    add_watch(&watch, "dir", wanted).unwrap();
    write(create("dir/file"), b"x");
    rustix::fs::rename("dir/file", "dir/moved").unwrap();
    rustix::fs::unlink("dir/moved").unwrap();
    let mut room = [std::mem::MaybeUninit::uninit(); 2048];
    let mut events = Reader::new(&watch, &mut room);
    let mut seen = Vec::new();
    while let Ok(event) = events.next() {
        seen.push((event.events().bits(), event.file_name().unwrap().to_str().unwrap().to_owned()));
    }
    let event = |flag: WatchFlags, name: &str| (flag.bits(), name.to_owned());
    let expected = [
        event(WatchFlags::CREATE, "file"),
        event(WatchFlags::MODIFY, "file"),
        event(WatchFlags::MOVED_TO, "moved"),
        event(WatchFlags::DELETE, "moved"),
    ];
    assert_eq!(seen, expected);
}

fn advice_is_taken() {
    use rustix::fs::{Advice, fadvise};
    file("file", noise(1, 100_000), 0o644);
    let fd = open("file", OFlags::RDONLY);
    for advice in [Advice::Sequential, Advice::WillNeed, Advice::DontNeed, Advice::Random, Advice::NoReuse] {
        fadvise(&fd, 0, None, advice).unwrap();
        assert_eq!(pread(&fd, 100_000, 0), noise(1, 100_000));
    }
}
