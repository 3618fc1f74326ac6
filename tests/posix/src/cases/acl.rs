//! POSIX access control lists, as extended attributes (`linux/posix_acl_xattr.h`).

use rustix::fs::{getxattr, removexattr, setxattr};

use crate::check::*;
use crate::process::{ALICE, BOB, as_member, as_user};

cases! {
    a_list_reads_back
    a_named_user_gets_in
    a_named_group_gets_in
    the_mask_limits_all_but_owner_and_others
    the_mode_shows_the_mask
    a_list_of_three_is_a_mode
    lists_that_make_no_sense
    lists_are_the_owners
    defaults_are_handed_down
    a_default_stands_in_for_the_umask
    only_directories_have_defaults
    a_removed_list_is_gone
    setting_one_drops_a_foreign_setgid
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const ANY: XattrFlags = XattrFlags::empty();
/// Tags of entries.
const OWNER: u16 = 1;
const USER: u16 = 2;
const OWNING_GROUP: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

type Entry = (u16, u16, u32);

/// Owner rw, one user with rights, group none, mask, others none.
fn for_user(user: u32, rights: u16, mask: u16) -> [Entry; 5] {
    [(OWNER, 6, NOBODY), (USER, rights, user), (OWNING_GROUP, 0, NOBODY), (MASK, mask, NOBODY), (OTHERS, 0, NOBODY)]
}

fn bytes(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        bytes.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn set(name: &str, key: &str, entries: &[Entry]) -> Result<(), Errno> {
    setxattr(name, key, &bytes(entries), ANY)
}

fn get(name: &str, key: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 4096];
    let length = getxattr(name, key, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn rights(name: &str) -> (bool, bool) {
    (try_open(name, OFlags::RDONLY).is_ok(), try_open(name, OFlags::WRONLY).is_ok())
}

fn a_list_reads_back() {
    file("file", "x", 0o600);
    dir("dir", 0o700);
    let list = for_user(ALICE, 6, 7);
    for (name, key) in [("file", ACCESS), ("dir", ACCESS), ("dir", DEFAULT)] {
        fails(get(name, key), Errno::NODATA);
        set(name, key, &list).unwrap();
        assert_eq!(get(name, key).unwrap(), bytes(&list), "{name} {key}");
    }
    let mut keys = vec![0u8; 4096];
    let length = rustix::fs::listxattr("dir", &mut keys).unwrap();
    let keys = String::from_utf8_lossy(&keys[..length]).into_owned();
    assert!(keys.contains(ACCESS) && keys.contains(DEFAULT), "{keys:?}");
}

fn a_named_user_gets_in() {
    file("file", "x", 0o600);
    dir("dir", 0o700);
    file("dir/file", "inner", 0o644);
    as_user(ALICE, || assert_eq!(rights("file"), (false, false)));
    set("file", ACCESS, &for_user(ALICE, 4, 7)).unwrap();
    set("dir", ACCESS, &for_user(ALICE, 1, 7)).unwrap();
    as_user(ALICE, || {
        assert_eq!(rights("file"), (true, false));
        assert_eq!(content("dir/file"), b"inner");
        fails(try_open("dir", OFlags::RDONLY), Errno::ACCESS);
    });
    as_user(BOB, || assert_eq!((rights("file"), try_stat("dir/file").err()), ((false, false), Some(Errno::ACCESS))));
    // Another list holds at once.
    set("file", ACCESS, &for_user(ALICE, 6, 7)).unwrap();
    as_user(ALICE, || assert_eq!(rights("file"), (true, true)));
    set("file", ACCESS, &for_user(BOB, 6, 7)).unwrap();
    as_user(ALICE, || assert_eq!(rights("file"), (false, false)));
}

fn a_named_group_gets_in() {
    file("file", "x", 0o600);
    let list = [(OWNER, 6, NOBODY), (OWNING_GROUP, 0, NOBODY), (GROUP, 6, 77), (MASK, 6, NOBODY), (OTHERS, 0, NOBODY)];
    set("file", ACCESS, &list).unwrap();
    as_member(ALICE, ALICE, &[77], || assert_eq!(rights("file"), (true, true)));
    as_member(ALICE, ALICE, &[78], || assert_eq!(rights("file"), (false, false)));
}

fn the_mask_limits_all_but_owner_and_others() {
    file("file", "x", 0o600);
    set("file", ACCESS, &for_user(ALICE, 7, 4)).unwrap();
    as_user(ALICE, || assert_eq!(rights("file"), (true, false)));
    chmod("file", 0o620);
    as_user(ALICE, || assert_eq!(rights("file"), (false, true)));
    assert_eq!(get("file", ACCESS).unwrap(), bytes(&for_user(ALICE, 7, 2)));
}

fn the_mode_shows_the_mask() {
    file("file", "x", 0o604);
    set("file", ACCESS, &for_user(ALICE, 7, 5)).unwrap();
    assert_eq!(mode("file"), 0o650);
    chmod("file", 0o777);
    let list = get("file", ACCESS).unwrap();
    let expected =
        [(OWNER, 7, NOBODY), (USER, 7, ALICE), (OWNING_GROUP, 0, NOBODY), (MASK, 7, NOBODY), (OTHERS, 7, NOBODY)];
    assert_eq!(list, bytes(&expected));
    nap(1100);
    assert_eq!(mode("file"), 0o777);
}

fn a_list_of_three_is_a_mode() {
    file("file", "x", 0o600);
    set("file", ACCESS, &for_user(ALICE, 7, 5)).unwrap();
    set("file", ACCESS, &[(OWNER, 7, NOBODY), (OWNING_GROUP, 5, NOBODY), (OTHERS, 1, NOBODY)]).unwrap();
    assert_eq!(mode("file"), 0o751);
    fails(get("file", ACCESS), Errno::NODATA);
}

fn lists_that_make_no_sense() {
    file("file", "x", 0o644);
    let lists: [&[Entry]; 4] = [
        &[(OWNER, 6, NOBODY)],
        &[(OWNER, 6, NOBODY), (USER, 6, ALICE), (OWNING_GROUP, 0, NOBODY), (OTHERS, 0, NOBODY)],
        &[(OWNER, 9, NOBODY), (OWNING_GROUP, 0, NOBODY), (OTHERS, 0, NOBODY)],
        &[(OTHERS, 0, NOBODY), (OWNING_GROUP, 0, NOBODY), (OWNER, 6, NOBODY)],
    ];
    for list in lists {
        fails(set("file", ACCESS, list), Errno::INVAL);
    }
    fails(setxattr("file", ACCESS, b"\x02\0\0\0x", ANY), Errno::INVAL);
    assert_eq!(mode("file"), 0o644);
}

fn lists_are_the_owners() {
    file("file", "x", 0o666);
    as_user(ALICE, || fails(set("file", ACCESS, &for_user(ALICE, 7, 7)), Errno::PERM));
    chown("file", Some(ALICE), None).unwrap();
    as_user(ALICE, || set("file", ACCESS, &for_user(BOB, 4, 7)).unwrap());
    as_user(BOB, || assert_eq!(rights("file"), (true, false)));
    as_user(BOB, || fails(removexattr("file", ACCESS), Errno::PERM));
}

fn defaults_are_handed_down() {
    dir("dir", 0o777);
    let list = [(OWNER, 7, NOBODY), (USER, 6, BOB), (OWNING_GROUP, 5, NOBODY), (MASK, 7, NOBODY), (OTHERS, 0, NOBODY)];
    set("dir", DEFAULT, &list).unwrap();
    as_user(ALICE, || {
        file("dir/file", "x", 0o660);
        rustix::fs::mkdir("dir/below", Mode::from_raw_mode(0o777)).unwrap();
        std::fs::write("dir/below/file", "x").unwrap();
    });
    assert_eq!((get("dir/below", DEFAULT).unwrap(), get("dir/below", ACCESS).unwrap()), (bytes(&list), bytes(&list)));
    fails(get("dir/file", DEFAULT), Errno::NODATA);
    as_user(BOB, || assert_eq!(rights("dir/file"), (true, true)));
    assert_eq!((mode("dir/below"), mode("dir/below/file")), (0o770, 0o660));
}

fn a_default_stands_in_for_the_umask() {
    dir("dir", 0o777);
    let list = [(OWNER, 7, NOBODY), (USER, 7, BOB), (OWNING_GROUP, 7, NOBODY), (MASK, 7, NOBODY), (OTHERS, 7, NOBODY)];
    set("dir", DEFAULT, &list).unwrap();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    std::fs::write("dir/file", "x").unwrap();
    std::fs::create_dir("dir/below").unwrap();
    rustix::fs::mknodat(HERE, "dir/fifo", FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    assert_eq!((mode("dir/file"), mode("dir/below"), mode("dir/fifo")), (0o666, 0o777, 0o622));
    std::fs::write("plain", "x").unwrap();
    assert_eq!(mode("plain"), 0o600);
}

fn only_directories_have_defaults() {
    file("file", "x", 0o644);
    fails(set("file", DEFAULT, &for_user(ALICE, 7, 7)), Errno::ACCESS);
    fails(get("file", DEFAULT), Errno::NODATA);
}

fn a_removed_list_is_gone() {
    dir("dir", 0o700);
    for key in [ACCESS, DEFAULT] {
        set("dir", key, &for_user(ALICE, 5, 5)).unwrap();
    }
    as_user(ALICE, || assert_eq!(names("dir"), [""; 0]));
    for key in [ACCESS, DEFAULT] {
        removexattr("dir", key).unwrap();
        fails(get("dir", key), Errno::NODATA);
    }
    file("dir/file", "x", 0o644);
    fails(get("dir/file", ACCESS), Errno::NODATA);
    chmod("dir", 0o700);
    as_user(ALICE, || fails(try_open("dir", OFlags::RDONLY), Errno::ACCESS));
}

fn setting_one_drops_a_foreign_setgid() {
    file("file", "x", 0o2755);
    chown("file", Some(ALICE), Some(77)).unwrap();
    chmod("file", 0o2755);
    as_user(ALICE, || set("file", ACCESS, &for_user(BOB, 5, 5)).unwrap());
    assert_eq!(mode("file") & 0o2000, 0);
    chmod("file", 0o2755);
    as_member(ALICE, 77, &[], || set("file", ACCESS, &for_user(BOB, 5, 5)).unwrap());
    assert_eq!(mode("file") & 0o2000, 0o2000);
}
