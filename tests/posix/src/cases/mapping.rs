//! Files in memory.

use std::fs::File;

use rustix::mm::{MapFlags, ProtFlags};

use crate::check::*;
use crate::process::{End, fork};

cases! {
    a_shared_mapping_and_the_file_are_one
    two_mappings_are_one
    processes_share_a_mapping
    a_private_mapping_stays_private
    a_private_mapping_sees_what_was_written_before
    rights_of_a_mapping
    beyond_the_end_is_a_bus_error
    the_last_page_is_filled_with_zeros
    it_outlives_descriptor_and_name
    what_grows_by_write_is_mapped
    a_hole_is_filled
    appending_to_a_mapped_file
    truncating_a_mapped_file
    a_punched_hole_in_a_mapped_file
}

const PAGE: usize = 4096;

/// A file of so many pages of `a`.
fn pages(count: usize) -> File {
    file("file", vec![b'a'; count * PAGE], 0o644);
    File::options().read(true).write(true).open("file").unwrap()
}

fn a_shared_mapping_and_the_file_are_one() {
    let file = pages(3);
    let map = Map::shared(&file, 3 * PAGE);
    for round in 0..20u8 {
        let at = usize::from(round) * 600;
        map.set(at, b"mapped");
        assert_eq!(
            (pread(&file, 6, at as u64), content("file")[at..at + 6].to_vec()),
            (b"mapped".to_vec(), b"mapped".to_vec())
        );
        pwrite(&file, b"written", at as u64 + 3);
        assert_eq!(map.get(at, 10), b"mapwritten");
        pwrite(open("file", OFlags::WRONLY), b"W", at as u64 + 3);
        assert_eq!(map.get(at, 10), b"mapWritten");
    }
    map.sync();
    drop(map);
    assert_eq!(&content("file")[600..610], b"mapWritten");
}

fn two_mappings_are_one() {
    let file = pages(1);
    let (one, two) =
        (Map::shared(&file, PAGE), Map::shared(&File::options().read(true).write(true).open("file").unwrap(), PAGE));
    one.set(10, b"one");
    two.set(13, b"two");
    assert_eq!((one.get(10, 6), two.get(10, 6)), (b"onetwo".to_vec(), b"onetwo".to_vec()));
}

fn processes_share_a_mapping() {
    let file = pages(1);
    let map = Map::shared(&file, PAGE);
    let (go, done) = (Gate::new(), Gate::new());
    let child = fork(|| {
        go.pass();
        assert_eq!(map.get(0, 6), b"parent");
        map.set(0, b"child ");
        done.open();
    });
    let stranger = fork(|| {
        let map = Map::shared(&File::options().read(true).write(true).open("file").unwrap(), PAGE);
        done.pass();
        assert_eq!(map.get(0, 6), b"child ");
        map.set(100, b"stranger");
    });
    map.set(0, b"parent");
    go.open();
    child.join();
    stranger.join();
    assert_eq!((map.get(100, 8), pread(&file, 8, 100)), (b"stranger".to_vec(), b"stranger".to_vec()));
}

fn a_private_mapping_stays_private() {
    let file = pages(2);
    let map = Map::new(&file, 2 * PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE).unwrap();
    map.set(0, b"mine");
    assert_eq!((pread(&file, 4, 0), map.get(0, 6)), (b"aaaa".to_vec(), b"mineaa".to_vec()));
    pwrite(&file, b"theirs", 0);
    assert_eq!((map.get(0, 4), content("file")[..6].to_vec()), (b"mine".to_vec(), b"theirs".to_vec()));
    drop(map);
    assert_eq!(pread(&file, 6, 0), b"theirs");
}

fn a_private_mapping_sees_what_was_written_before() {
    let file = pages(2);
    pwrite(&file, b"before", PAGE as u64);
    // A file that may only be read can be mapped like this.
    let map = Map::new(open("file", OFlags::RDONLY), 2 * PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        .unwrap();
    assert_eq!(map.get(PAGE, 7), b"beforea");
    map.set(PAGE, b"B");
    assert_eq!(pread(&file, 6, PAGE as u64), b"before");
}

fn rights_of_a_mapping() {
    pages(1);
    let map = |flags, rights| Map::new(open("file", flags), PAGE, rights, MapFlags::SHARED).map(drop);
    fails(map(OFlags::RDONLY, ProtFlags::READ | ProtFlags::WRITE), Errno::ACCESS);
    fails(map(OFlags::WRONLY, ProtFlags::READ), Errno::ACCESS);
    fails(map(OFlags::WRONLY, ProtFlags::WRITE), Errno::ACCESS);
    map(OFlags::RDONLY, ProtFlags::READ).unwrap();
    fails(Map::new(open(".", OFlags::RDONLY), PAGE, ProtFlags::READ, MapFlags::SHARED).map(drop), Errno::NODEV);
    fails(Map::new(open("file", OFlags::RDONLY), 0, ProtFlags::READ, MapFlags::SHARED).map(drop), Errno::INVAL);
}

fn beyond_the_end_is_a_bus_error() {
    let file = pages(1);
    let map = Map::shared(&file, 2 * PAGE);
    map.get(0, PAGE);
    assert_eq!(fork(|| drop(map.get(PAGE, 1))).end(), End::Signal(libc::SIGBUS));
    assert_eq!(fork(|| map.set(PAGE, b"x")).end(), End::Signal(libc::SIGBUS));
    rustix::fs::ftruncate(&file, 2 * PAGE as u64).unwrap();
    assert_eq!(map.get(PAGE, 1), [0]);
}

fn the_last_page_is_filled_with_zeros() {
    let file = pages(1);
    rustix::fs::ftruncate(&file, 100).unwrap();
    let map = Map::shared(&file, PAGE);
    assert_eq!(map.get(98, 4), b"aa\0\0");
    // What is written there is in no file.
    map.set(100, b"lost");
    map.sync();
    drop(map);
    assert_eq!(stat("file").st_size, 100);
    rustix::fs::ftruncate(&file, 200).unwrap();
    assert_eq!(pread(&file, 200, 98), [&b"aa"[..], &[0; 100]].concat());
}

fn it_outlives_descriptor_and_name() {
    let file = pages(2);
    let map = Map::shared(&file, 2 * PAGE);
    rustix::fs::link("file", "link").unwrap();
    rustix::fs::unlink("file").unwrap();
    drop(file);
    assert_eq!(map.get(PAGE, 2), b"aa");
    map.set(PAGE, b"still");
    map.sync();
    assert_eq!(&content("link")[PAGE..PAGE + 5], b"still");
    rustix::fs::unlink("link").unwrap();
    map.set(0, b"gone");
    map.sync();
    assert_eq!(map.get(0, 5), b"gonea");
}

fn what_grows_by_write_is_mapped() {
    let file = pages(1);
    let map = Map::shared(&file, 4 * PAGE);
    for page in 1..4 {
        pwrite(&file, &[b'0' + page as u8; PAGE], (page * PAGE) as u64);
        assert_eq!(map.get(page * PAGE + 5, 2), [b'0' + page as u8; 2]);
    }
}

fn a_hole_is_filled() {
    let file = File::from(create("file"));
    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
    let map = Map::shared(&file, 1 << 20);
    assert_eq!(map.get(500_000, 3), [0; 3]);
    map.set(500_000, b"in the hole");
    map.set((1 << 20) - 3, b"end");
    map.sync();
    assert_eq!((pread(&file, 11, 500_000), pread(&file, 9, (1 << 20) - 3)), (b"in the hole".to_vec(), b"end".to_vec()));
    assert!(fstat(&file).st_blocks < 512, "{} blocks", fstat(&file).st_blocks);
}

fn appending_to_a_mapped_file() {
    pages(1);
    let file = File::options().read(true).append(true).open("file").unwrap();
    let map = Map::shared(&file, 2 * PAGE);
    map.set(10, b"mapped");
    write(&file, b"appended");
    // The page goes where it belongs, though the descriptor appends.
    map.sync();
    drop(map);
    assert_eq!(stat("file").st_size as usize, PAGE + 8);
    assert_eq!((pread(&file, 8, 9), pread(&file, 9, PAGE as u64)), (b"amappeda".to_vec(), b"appended".to_vec()));
}

fn truncating_a_mapped_file() {
    let file = pages(3);
    let map = Map::shared(&file, 3 * PAGE);
    map.set(2 * PAGE, b"dirty");
    map.set(100, b"dirty");
    rustix::fs::ftruncate(&file, 150).unwrap();
    assert_eq!(fork(|| drop(map.get(2 * PAGE, 1))).end(), End::Signal(libc::SIGBUS));
    rustix::fs::ftruncate(&file, 3 * PAGE as u64).unwrap();
    assert_eq!((map.get(2 * PAGE, 5), map.get(148, 4)), (vec![0; 5], b"aa\0\0".to_vec()));
    map.sync();
    assert_eq!(content("file"), [&[b'a'; 100][..], b"dirty", &[b'a'; 45], &[0; 3 * PAGE - 150]].concat());
}

fn a_punched_hole_in_a_mapped_file() {
    let file = pages(4);
    let map = Map::shared(&file, 4 * PAGE);
    map.set(PAGE, b"dirty");
    map.set(3 * PAGE, b"stays");
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, PAGE as u64, PAGE as u64)
        .unwrap();
    assert_eq!(
        (map.get(PAGE, 5), map.get(3 * PAGE, 5), map.get(PAGE - 1, 1)),
        (vec![0; 5], b"stays".to_vec(), b"a".to_vec())
    );
    map.set(PAGE + 1, b"new");
    map.sync();
    assert_eq!(pread(&file, 5, PAGE as u64), b"\0new\0");
}
