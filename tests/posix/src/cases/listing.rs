//! Reading directories.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::RawDir;

use crate::cases::Case;
use crate::check::*;

cases! {
    many_entries_each_once
    a_position_leads_back_to_its_entry
    entries_removed_while_reading
    entries_made_while_reading
    from_the_start_again
    two_readers_at_a_time
    kinds_and_numbers
    rooms_of_any_size
    an_empty_directory
    what_is_no_directory
    a_tree_is_removed
}

/// The case of a directory of [`MANY`] files, which is the one above the case's own: they are there already, `file-00000` and so on.
pub const MANY_THERE: &[Case] =
    &[Case { module: module_path!(), name: "ten_thousand_entries_each_once", run: ten_thousand_entries_each_once }];

/// As many as a directory of packages or of mail has.
const MANY: u32 = 10_000;
/// As many as take several requests to list.
const SOME: u32 = 1_000;

/// Makes so many files, as cheaply as can be.
fn fill(directory: &str, count: u32) {
    for i in 0..count {
        let name = format!("{directory}/file-{i:05}");
        rustix::fs::mknodat(HERE, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap();
    }
}

fn directory(name: &str, count: u32) -> OwnedFd {
    dir(name, 0o755);
    fill(name, count);
    open(name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Entries from where the descriptor is: names with the position after each, until `enough` says so or the end.
fn entries(fd: &OwnedFd, room: usize, mut enough: impl FnMut(&str, u64) -> bool) -> Vec<(String, u64)> {
    let mut buffer = vec![MaybeUninit::uninit(); room];
    let mut reader = RawDir::new(fd, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry.expect("read a directory");
        let (name, next) = (entry.file_name().to_string_lossy().into_owned(), entry.next_entry_cookie());
        let stop = enough(&name, next);
        found.push((name, next));
        if stop {
            break;
        }
    }
    found
}

fn all(fd: &OwnedFd) -> Vec<(String, u64)> {
    entries(fd, 32 << 10, |_, _| false)
}

fn go(fd: &OwnedFd, position: u64) {
    rustix::fs::seek(fd, SeekFrom::Start(position)).expect("seekdir");
}

fn many_entries_each_once() {
    each_once(&directory("dir", SOME), SOME, SOME + 2);
    for i in (0..SOME).step_by(100) {
        assert_eq!(stat(&format!("dir/file-{i:05}")).st_size, 0);
    }
}

fn ten_thousand_entries_each_once() {
    // The dots, and the directory that this case runs in.
    each_once(&open("..", OFlags::RDONLY | OFlags::DIRECTORY), MANY, MANY + 3);
    for i in (0..MANY).step_by(500) {
        assert_eq!(stat(&format!("../file-{i:05}")).st_size, 0);
    }
}

/// Insists on so many files among so many entries in all.
fn each_once(fd: &OwnedFd, files: u32, entries: u32) {
    let found: Vec<String> = all(fd).into_iter().map(|(name, _)| name).collect();
    let distinct: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!((found.len(), distinct.len()), (entries as usize, entries as usize));
    assert!(distinct.contains(".") && distinct.contains(".."));
    assert!((0..files).all(|i| distinct.contains(format!("file-{i:05}").as_str())), "a file is missing");
}

fn a_position_leads_back_to_its_entry() {
    let fd = directory("dir", 300);
    let found = all(&fd);
    assert_eq!(found.len(), 302);
    let mut random = Random(5);
    for _ in 0..40 {
        let which = random.below(300) as usize;
        go(&fd, found[which].1);
        let mut left = 3;
        let next = entries(&fd, 4096, |_, _| {
            left -= 1;
            left == 0
        });
        let expected = &found[which + 1..(which + 4).min(found.len())];
        assert_eq!(next[..expected.len()], *expected, "after entry {which}");
    }
}

fn entries_removed_while_reading() {
    // As rm -r does it.
    let fd = directory("dir", 600);
    let mut removed = 0;
    entries(&fd, 1024, |name, _| {
        if !name.starts_with('.') {
            rustix::fs::unlinkat(&fd, name, AtFlags::empty()).unwrap_or_else(|error| panic!("{name}: {error}"));
            removed += 1;
        }
        false
    });
    assert_eq!((removed, names("dir")), (600, vec![]));
}

fn entries_made_while_reading() {
    let fd = directory("dir", 200);
    let mut made = 0;
    let found = entries(&fd, 1024, |_, _| {
        if made < 100 {
            file(&format!("dir/new-{made}"), "", 0o644);
            made += 1;
        }
        false
    });
    // New ones may be seen or not; old ones are, and none twice.
    let old = found.iter().filter(|(name, _)| name.starts_with("file-")).count();
    let distinct: BTreeSet<_> = found.iter().map(|(name, _)| name).collect();
    assert_eq!((old, distinct.len()), (200, found.len()));
    go(&fd, 0);
    assert_eq!(all(&fd).len(), 302);
}

fn from_the_start_again() {
    let fd = directory("dir", 3);
    assert_eq!((all(&fd).len(), all(&fd).len()), (5, 0));
    file("dir/new", "", 0o644);
    rustix::fs::unlink("dir/file-00000").unwrap();
    go(&fd, 0);
    let mut found: Vec<_> = all(&fd).into_iter().map(|(name, _)| name).collect();
    found.sort();
    assert_eq!(found, [".", "..", "file-00001", "file-00002", "new"]);
}

fn two_readers_at_a_time() {
    let (one, two) = (directory("one", 150), directory("two", 150));
    let again = open("one", OFlags::RDONLY | OFlags::DIRECTORY);
    let mut seen = [Vec::new(), Vec::new(), Vec::new()];
    // In pieces of a few entries, in turn.
    loop {
        let mut more = false;
        for (fd, seen) in [&one, &two, &again].into_iter().zip(&mut seen) {
            let mut left = 7;
            let found = entries(fd, 1024, |_, _| {
                left -= 1;
                left == 0
            });
            if let Some((_, position)) = found.last() {
                go(fd, *position);
                more = true;
            }
            seen.extend(found.into_iter().map(|(name, _)| name));
        }
        if !more {
            break;
        }
    }
    for seen in seen {
        assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (152, 152));
    }
}

fn kinds_and_numbers() {
    dir("dir", 0o755);
    file("dir/file", "", 0o644);
    dir("dir/below", 0o755);
    std::os::unix::fs::symlink("x", "dir/link").unwrap();
    rustix::fs::mknodat(HERE, "dir/fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
    let fd = open("dir", OFlags::RDONLY | OFlags::DIRECTORY);
    let mut buffer = vec![MaybeUninit::uninit(); 4096];
    let mut reader = RawDir::new(&fd, &mut buffer);
    let mut count = 0;
    while let Some(entry) = reader.next() {
        let entry = entry.unwrap();
        let name = format!("dir/{}", entry.file_name().to_str().unwrap());
        let of = stat(&name);
        let kind = FileType::from_raw_mode(of.st_mode);
        assert!(entry.file_type() == kind || entry.file_type() == FileType::Unknown, "{name}: {:?}", entry.file_type());
        if name != "dir/.." {
            assert_eq!(entry.ino(), of.st_ino, "{name}");
        }
        count += 1;
    }
    assert_eq!(count, 6);
}

fn rooms_of_any_size() {
    dir("dir", 0o755);
    let long = "n".repeat(255);
    for i in 0..30 {
        file(&format!("dir/{}", &long[i..]), "", 0o644);
    }
    let fd = open("dir", OFlags::RDONLY | OFlags::DIRECTORY);
    for room in [288, 300, 577, 1000, 5000] {
        go(&fd, 0);
        assert_eq!(entries(&fd, room, |_, _| false).len(), 32, "{room} bytes");
    }
    go(&fd, 0);
    let mut tiny = [MaybeUninit::uninit(); 16];
    let mut reader = RawDir::new(&fd, &mut tiny);
    assert!(matches!(reader.next(), Some(Err(Errno::INVAL))), "an entry in 16 bytes");
}

fn an_empty_directory() {
    let fd = directory("dir", 0);
    let mut found: Vec<_> = all(&fd).into_iter().map(|(name, _)| name).collect();
    found.sort();
    assert_eq!(found, [".", ".."]);
}

fn what_is_no_directory() {
    file("file", "x", 0o644);
    let fd = open("file", OFlags::RDONLY);
    let mut buffer = [MaybeUninit::uninit(); 512];
    assert!(matches!(RawDir::new(&fd, &mut buffer).next(), Some(Err(Errno::NOTDIR))));
    let path = open(".", OFlags::PATH);
    assert!(matches!(RawDir::new(&path, &mut buffer).next(), Some(Err(Errno::BADF))));
}

fn a_tree_is_removed() {
    for i in 0..4 {
        for j in 0..4 {
            std::fs::create_dir_all(format!("tree/{i}/{j}")).unwrap();
            fill(&format!("tree/{i}/{j}"), 5);
        }
    }
    std::fs::remove_dir_all("tree").unwrap();
    assert_eq!(names("."), [""; 0]);
}
