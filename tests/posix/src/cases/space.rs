//! Sizes, holes, space set aside, and what the file system says of itself.

use rustix::fs::{copy_file_range, fallocate, ftruncate, seek, statvfs};

use crate::check::*;
use crate::process::{ALICE, End, as_user, fork};

cases! {
    files_shrink_and_grow
    truncating_by_name
    nothing_old_appears_after_the_end
    beyond_four_gigabytes
    a_terabyte_of_nothing
    holes_take_no_space_and_read_as_zeros
    data_and_holes_are_found
    space_set_aside
    space_set_aside_beyond_the_end
    a_hole_is_punched
    a_range_becomes_zeros
    a_range_is_cut_out
    set_aside_wrongly
    a_file_is_copied_by_the_kernel
    ranges_are_copied
    copies_that_make_no_sense
    the_file_systems_figures
    figures_follow_what_is_written
    the_limit_of_a_file_size
    inode_flags
}

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;

fn size(fd: impl std::os::fd::AsFd) -> i64 {
    fstat(fd).st_size
}

fn files_shrink_and_grow() {
    let fd = create("file");
    write(&fd, &noise(1, 10_000));
    for length in [10_000, 4096, 4095, 1, 0, 9, 20_000] {
        ftruncate(&fd, length).unwrap();
        assert_eq!((size(&fd), stat("file").st_size), (length as i64, length as i64));
    }
    assert_eq!(content("file"), vec![0; 20_000]);
}

fn truncating_by_name() {
    file("file", "content", 0o644);
    dir("dir", 0o755);
    let truncate = |name: &str, length: i64| {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: the name lives across the call.
        let result = unsafe { libc::truncate(name.as_ptr(), length) };
        if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) }
    };
    truncate("file", 3).unwrap();
    assert_eq!((content("file"), stat("file").st_size), (b"con".to_vec(), 3));
    fails(truncate("file", -1), Errno::INVAL);
    fails(truncate("dir", 0), Errno::ISDIR);
    fails(truncate("none", 0), Errno::NOENT);
    fails(truncate("file/x", 0), Errno::NOTDIR);
    as_user(ALICE, || fails(truncate("file", 0), Errno::ACCESS));
}

fn nothing_old_appears_after_the_end() {
    let fd = create("file");
    write(&fd, &[0xff; 9000]);
    assert_eq!(pread(&fd, 9000, 0), [0xff; 9000]);
    ftruncate(&fd, 5000).unwrap();
    pwrite(&fd, b"x", 8000);
    let expected = [&[0xff; 5000][..], &[0; 3000], b"x"].concat();
    assert_eq!((pread(&fd, 9999, 0), content("file")), (expected.clone(), expected));
}

fn beyond_four_gigabytes() {
    const FAR: u64 = (5 << 30) + 123;
    let fd = create("file");
    pwrite(&fd, b"far away", FAR);
    pwrite(&fd, b"begin", 0);
    assert_eq!((size(&fd), stat("file").st_size), (FAR as i64 + 8, FAR as i64 + 8));
    assert_eq!((pread(&fd, 9, FAR), pread(&fd, 10, FAR - 5)), (b"far away".to_vec(), b"\0\0\0\0\0far a".to_vec()));
    assert_eq!(seek(&fd, SeekFrom::End(-4)), Ok(FAR + 4));
    let mut bytes = [0; 9];
    assert_eq!((rustix::io::read(&fd, &mut bytes), &bytes[..4]), (Ok(4), &b"away"[..]));
    assert_eq!(pread(&fd, 4096, (4 << 30) - 2048), [0; 4096]);
    ftruncate(&fd, FAR + 3).unwrap();
    assert_eq!(pread(open("file", OFlags::RDONLY), 9, FAR), b"far");
}

fn a_terabyte_of_nothing() {
    let fd = create("file");
    ftruncate(&fd, 1 << 40).unwrap();
    assert_eq!((size(&fd), pread(&fd, 100, (1 << 40) - 10)), (1 << 40, vec![0; 10]));
    assert!(fstat(&fd).st_blocks < 100);
    assert_eq!(seek(&fd, SeekFrom::End(0)), Ok(1 << 40));
}

fn holes_take_no_space_and_read_as_zeros() {
    let fd = create("file");
    pwrite(&fd, &noise(1, 4096), 1 << 20);
    rustix::fs::fsync(&fd).unwrap();
    let blocks = fstat(&fd).st_blocks;
    assert!((8..64).contains(&blocks), "{blocks} blocks");
    assert_eq!(pread(&fd, 1 << 20, 0), vec![0; 1 << 20]);
}

fn data_and_holes_are_found() {
    let fd = create("file");
    pwrite(&fd, &noise(1, 65536), 1 << 20);
    ftruncate(&fd, 4 << 20).unwrap();
    rustix::fs::fsync(&fd).unwrap();
    let find = |whence| seek(&fd, whence);
    let (data, end) = (1 << 20, (1 << 20) + 65536);
    assert_eq!((find(SeekFrom::Data(0)), find(SeekFrom::Data(data + 5))), (Ok(data), Ok(data + 5)));
    assert_eq!((find(SeekFrom::Hole(0)), find(SeekFrom::Hole(data))), (Ok(0), Ok(end)));
    fails(find(SeekFrom::Data(end)), Errno::NXIO);
    fails(find(SeekFrom::Data(4 << 20)), Errno::NXIO);
    fails(find(SeekFrom::Hole(5 << 20)), Errno::NXIO);
    file("dense", noise(2, 5000), 0o644);
    let dense = open("dense", OFlags::RDONLY);
    assert_eq!((seek(&dense, SeekFrom::Hole(0)), seek(&dense, SeekFrom::Data(4999))), (Ok(5000), Ok(4999)));
}

fn space_set_aside() {
    let fd = create("file");
    write(&fd, b"text");
    fallocate(&fd, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!((size(&fd), stat("file").st_size), (1 << 20, 1 << 20));
    assert!(fstat(&fd).st_blocks >= 2048, "{} blocks", fstat(&fd).st_blocks);
    assert_eq!(pread(&fd, 5000, 0), [&b"text"[..], &[0; 4996]].concat());
    fallocate(&fd, FallocateFlags::empty(), 100, 100).unwrap();
    assert_eq!(size(&fd), 1 << 20);
}

fn space_set_aside_beyond_the_end() {
    let fd = create("file");
    write(&fd, b"text");
    fallocate(&fd, KEEP, 0, 1 << 20).unwrap();
    assert_eq!((size(&fd), content("file")), (4, b"text".to_vec()));
    assert!(fstat(&fd).st_blocks >= 2048, "{} blocks", fstat(&fd).st_blocks);
}

fn a_hole_is_punched() {
    let fd = create("file");
    write(&fd, &[1; 1 << 18]);
    rustix::fs::fsync(&fd).unwrap();
    let before = fstat(&fd).st_blocks;
    assert_eq!(pread(&fd, 1 << 18, 0), vec![1; 1 << 18]);
    fallocate(&fd, FallocateFlags::PUNCH_HOLE | KEEP, 4096 + 7, 1 << 17).unwrap();
    let expected = [vec![1; 4096 + 7], vec![0; 1 << 17], vec![1; (1 << 17) - 4096 - 7]].concat();
    assert_eq!((pread(&fd, 1 << 18, 0), content("file")), (expected.clone(), expected));
    assert!(fstat(&fd).st_blocks < before, "{} blocks of {before}", fstat(&fd).st_blocks);
    fails(fallocate(&fd, FallocateFlags::PUNCH_HOLE, 0, 4096), Errno::OPNOTSUPP);
}

fn a_range_becomes_zeros() {
    let fd = create("file");
    write(&fd, &[1; 20_000]);
    assert_eq!(pread(&fd, 20_000, 0), [1; 20_000]);
    fallocate(&fd, FallocateFlags::ZERO_RANGE | KEEP, 100, 10_000).unwrap();
    assert_eq!(pread(&fd, 30_000, 0), [&[1; 100][..], &[0; 10_000], &[1; 9_900]].concat());
    fallocate(&fd, FallocateFlags::ZERO_RANGE, 19_000, 11_000).unwrap();
    assert_eq!((size(&fd), pread(&fd, 2000, 18_000)), (30_000, [[1; 1000], [0; 1000]].concat()));
}

fn a_range_is_cut_out() {
    let fd = create("file");
    write(&fd, &[[1; 4096], [2; 4096], [3; 4096]].concat());
    fallocate(&fd, FallocateFlags::COLLAPSE_RANGE, 4096, 4096).unwrap();
    assert_eq!(content("file"), [[1; 4096], [3; 4096]].concat());
    fallocate(&fd, FallocateFlags::INSERT_RANGE, 4096, 4096).unwrap();
    assert_eq!(content("file"), [[1; 4096], [0; 4096], [3; 4096]].concat());
}

fn set_aside_wrongly() {
    let fd = create("file");
    fails(fallocate(&fd, FallocateFlags::empty(), 0, 0), Errno::INVAL);
    fails(fallocate(&fd, FallocateFlags::empty(), 0, 1 << 62), Errno::FBIG);
    fails(fallocate(open("file", OFlags::RDONLY), FallocateFlags::empty(), 0, 1), Errno::BADF);
    fails(fallocate(open(".", OFlags::RDONLY), FallocateFlags::empty(), 0, 1), Errno::BADF);
    assert_eq!(size(&fd), 0);
}

fn a_file_is_copied_by_the_kernel() {
    file("from", noise(1, 300_001), 0o644);
    let (from, to) = (open("from", OFlags::RDONLY), create("to"));
    let mut copied = 0;
    loop {
        match copy_file_range(&from, None, &to, None, 1 << 20).unwrap() {
            0 => break,
            more => copied += more,
        }
    }
    assert_eq!((copied, content("to"), size(&to)), (300_001, noise(1, 300_001), 300_001));
    assert_eq!(seek(&to, SeekFrom::Current(0)), Ok(300_001));
}

fn ranges_are_copied() {
    let (from, to) = (create("from"), create("to"));
    // Not flushed, and what the target's pages held is in the cache.
    write(&from, &noise(1, 20_000));
    write(&to, &[7; 20_000]);
    assert_eq!(pread(&to, 20_000, 0), [7; 20_000]);
    let (mut at_from, mut at_to) = (3, 5000);
    assert_eq!(copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), 9000), Ok(9000));
    assert_eq!((at_from, at_to, seek(&to, SeekFrom::Current(0))), (9003, 14_000, Ok(20_000)));
    assert_eq!(pread(&to, 30_000, 0), [&[7; 5000][..], &noise(1, 20_000)[3..9003], &[7; 6000]].concat());
    let (mut at_from, mut at_to) = (0, 10_000);
    assert_eq!(copy_file_range(&from, Some(&mut at_from), &from, Some(&mut at_to), 10_000), Ok(10_000));
    assert_eq!(content("from"), [&noise(1, 10_000)[..], &noise(1, 10_000)[..]].concat());
    assert_eq!(copy_file_range(&from, Some(&mut 30_000), &to, None, 10), Ok(0));
}

fn copies_that_make_no_sense() {
    file("file", "content", 0o644);
    let (reader, both) = (open("file", OFlags::RDONLY), open("file", OFlags::RDWR));
    let appender = open("file", OFlags::WRONLY | OFlags::APPEND);
    fails(copy_file_range(&both, None, &reader, None, 1), Errno::BADF);
    fails(copy_file_range(&reader, None, &appender, None, 1), Errno::BADF);
    fails(copy_file_range(&both, Some(&mut 0), &both, Some(&mut 2), 4), Errno::INVAL);
    fails(copy_file_range(open(".", OFlags::RDONLY), None, &both, None, 1), Errno::ISDIR);
    assert_eq!(content("file"), b"content");
}

fn the_file_systems_figures() {
    let of = statvfs(".").unwrap();
    assert!(of.f_bsize >= 512 && of.f_frsize >= 512 && of.f_bsize.is_power_of_two());
    assert!(of.f_blocks > 0 && of.f_bfree <= of.f_blocks && of.f_bavail <= of.f_bfree);
    assert!(of.f_ffree <= of.f_files);
    assert_eq!(of.f_namemax, 255);
    let of_file = rustix::fs::fstatvfs(create("file")).unwrap();
    assert_eq!((of_file.f_blocks, of_file.f_bsize), (of.f_blocks, of.f_bsize));
}

fn figures_follow_what_is_written() {
    const SIZE: u64 = 4 << 20;
    let free = || statvfs(".").map(|of| of.f_bfree * of.f_frsize).unwrap();
    let before = free();
    let fd = create("file");
    fallocate(&fd, FallocateFlags::empty(), 0, SIZE).unwrap();
    rustix::fs::fsync(&fd).unwrap();
    let taken = before.saturating_sub(free());
    assert!((SIZE..SIZE + (1 << 20)).contains(&taken), "{taken} bytes taken");
    rustix::fs::unlink("file").unwrap();
    drop(fd);
    assert!(before.abs_diff(free()) < 1 << 20, "{before} {}", free());
}

fn the_limit_of_a_file_size() {
    let limited = |work: fn()| {
        fork(move || {
            let limit = rustix::process::Rlimit { current: Some(10_000), maximum: Some(10_000) };
            rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
            work();
        })
    };
    let end = limited(|| pwrite(create("killed"), b"x", 10_000)).end();
    assert_eq!(end, End::Signal(libc::SIGXFSZ));
    limited(|| {
        // SAFETY: no handler of ours, just none of the kernel's.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let fd = create("file");
        assert_eq!(rustix::io::write(&fd, &[1; 12_000]), Ok(10_000));
        fails(rustix::io::write(&fd, b"x"), Errno::FBIG);
        fails(ftruncate(&fd, 10_001), Errno::FBIG);
    })
    .join();
    assert_eq!(stat("file").st_size, 10_000);
}

fn inode_flags() {
    let fd = create("file");
    let flags = rustix::fs::ioctl_getflags(&fd).unwrap();
    rustix::fs::ioctl_setflags(&fd, flags | rustix::fs::IFlags::NODUMP).unwrap();
    assert!(rustix::fs::ioctl_getflags(&fd).unwrap().contains(rustix::fs::IFlags::NODUMP));
}
