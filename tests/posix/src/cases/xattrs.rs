//! Extended attributes.

use rustix::fs::{getxattr, lgetxattr, listxattr, lsetxattr, removexattr, setxattr};

use crate::check::*;
use crate::process::{ALICE, as_user};

cases! {
    set_get_list_remove
    values_of_any_bytes_and_sizes
    made_or_replaced_only_if_so_wished
    rooms_that_are_too_small
    names_and_values_that_are_too_long
    prefixes_that_do_not_exist
    rights_of_the_file_hold
    only_files_and_directories_have_a_users
    a_sticky_directorys_are_the_owners
    trusted_ones_are_roots
    trusted_ones_of_links_and_nodes
    a_security_modules_own
    they_follow_the_file
    many_of_them
}

const ANY: XattrFlags = XattrFlags::empty();

fn get(name: &str, key: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 1 << 16];
    let length = getxattr(name, key, &mut value)?;
    value.truncate(length);
    Ok(value)
}

fn list(name: &str) -> Vec<String> {
    let mut bytes = vec![0; 1 << 16];
    let length = listxattr(name, &mut bytes).expect("list attributes");
    let keys = bytes[..length].split(|byte| *byte == 0).map(|key| String::from_utf8_lossy(key).into_owned());
    // A host may have labels of its security module on everything.
    let mut keys: Vec<_> = keys.filter(|key| !key.is_empty() && !key.starts_with("security.")).collect();
    keys.sort();
    keys
}

fn set_get_list_remove() {
    file("file", "x", 0o644);
    dir("dir", 0o755);
    for name in ["file", "dir"] {
        assert_eq!(list(name), [""; 0]);
        setxattr(name, "user.one", b"1", ANY).unwrap();
        setxattr(name, "user.two", b"22", ANY).unwrap();
        setxattr(name, "user.one", b"111", ANY).unwrap();
        assert_eq!((get(name, "user.one"), get(name, "user.two")), (Ok(b"111".to_vec()), Ok(b"22".to_vec())));
        assert_eq!(list(name), ["user.one", "user.two"]);
        removexattr(name, "user.one").unwrap();
        fails(get(name, "user.one"), Errno::NODATA);
        fails(removexattr(name, "user.one"), Errno::NODATA);
        assert_eq!(list(name), ["user.two"]);
    }
    fails(setxattr("none", "user.one", b"1", ANY), Errno::NOENT);
}

fn values_of_any_bytes_and_sizes() {
    file("file", "x", 0o644);
    for value in [&b""[..], b"\0", b"a\0b\xff\n", &noise(1, 1000), &noise(2, 3000)] {
        setxattr("file", "user.key", value, ANY).unwrap();
        assert_eq!(get("file", "user.key").unwrap(), value);
    }
    setxattr("file", "user.\u{e4} \n=", b"odd name", ANY).unwrap();
    assert_eq!(list("file"), ["user.key", "user.\u{e4} \n="]);
}

fn made_or_replaced_only_if_so_wished() {
    file("file", "x", 0o644);
    fails(setxattr("file", "user.key", b"1", XattrFlags::REPLACE), Errno::NODATA);
    setxattr("file", "user.key", b"1", XattrFlags::CREATE).unwrap();
    fails(setxattr("file", "user.key", b"2", XattrFlags::CREATE), Errno::EXIST);
    setxattr("file", "user.key", b"3", XattrFlags::REPLACE).unwrap();
    fails(setxattr("file", "user.key", b"3", XattrFlags::from_bits_retain(4)), Errno::INVAL);
    assert_eq!(get("file", "user.key").unwrap(), b"3");
}

fn rooms_that_are_too_small() {
    file("file", "x", 0o644);
    setxattr("file", "user.key", b"value", ANY).unwrap();
    assert_eq!(rustix::fs::getxattr_query("file", "user.key"), Ok(5));
    fails(getxattr("file", "user.key", &mut [0u8; 4]), Errno::RANGE);
    assert_eq!(getxattr("file", "user.key", &mut [0u8; 5]), Ok(5));
    let length = rustix::fs::listxattr_query("file").unwrap();
    assert!(length >= 9);
    fails(listxattr("file", &mut vec![0u8; length - 1]), Errno::RANGE);
    assert_eq!(listxattr("file", &mut vec![0u8; length]), Ok(length));
}

fn names_and_values_that_are_too_long() {
    file("file", "x", 0o644);
    let long = format!("user.{}", "k".repeat(250));
    setxattr("file", &long[..], b"v", ANY).unwrap();
    assert_eq!((get("file", &long), list("file")), (Ok(b"v".to_vec()), vec![long.clone()]));
    fails(setxattr("file", format!("{long}k"), b"v", ANY), Errno::RANGE);
    fails(getxattr("file", format!("{long}k"), &mut [0u8; 9]), Errno::RANGE);
    fails(setxattr("file", "user.big", &vec![0; (64 << 10) + 1], ANY), Errno::TOOBIG);
    fails(setxattr("file", "", b"v", ANY), Errno::RANGE);
}

fn prefixes_that_do_not_exist() {
    file("file", "x", 0o644);
    for key in ["bogus.key", "nodot"] {
        fails(setxattr("file", key, b"v", ANY), Errno::OPNOTSUPP);
        fails(getxattr("file", key, &mut [0u8; 9]), Errno::OPNOTSUPP);
    }
    let error = setxattr("file", "user.", b"v", ANY).unwrap_err();
    assert_eq!(error, Errno::INVAL);
}

fn rights_of_the_file_hold() {
    file("closed", "x", 0o600);
    file("readable", "x", 0o644);
    for name in ["closed", "readable"] {
        setxattr(name, "user.key", b"v", ANY).unwrap();
    }
    as_user(ALICE, || {
        fails(get("closed", "user.key"), Errno::ACCESS);
        assert_eq!((get("readable", "user.key"), list("closed")), (Ok(b"v".to_vec()), vec!["user.key".to_owned()]));
        for name in ["closed", "readable"] {
            fails(setxattr(name, "user.key", b"w", ANY), Errno::ACCESS);
            fails(removexattr(name, "user.key"), Errno::ACCESS);
        }
    });
}

fn only_files_and_directories_have_a_users() {
    rustix::fs::mknodat(HERE, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
    std::os::unix::fs::symlink("fifo", "link").unwrap();
    for name in ["fifo", "link"] {
        fails(lsetxattr(name, "user.key", b"v", ANY), Errno::PERM);
        assert!(lgetxattr(name, "user.key", &mut [0u8; 9]).is_err());
    }
}

fn a_sticky_directorys_are_the_owners() {
    dir("sticky", 0o1777);
    as_user(ALICE, || fails(setxattr("sticky", "user.key", b"v", ANY), Errno::PERM));
    dir("free", 0o777);
    as_user(ALICE, || setxattr("free", "user.key", b"v", ANY).unwrap());
}

fn trusted_ones_are_roots() {
    file("file", "x", 0o666);
    setxattr("file", "trusted.key", b"secret", ANY).unwrap();
    setxattr("file", "user.key", b"open", ANY).unwrap();
    assert_eq!((get("file", "trusted.key"), list("file").len()), (Ok(b"secret".to_vec()), 2));
    as_user(ALICE, || {
        fails(setxattr("file", "trusted.key", b"w", ANY), Errno::PERM);
        fails(get("file", "trusted.key"), Errno::NODATA);
        assert_eq!(list("file"), ["user.key"]);
    });
    removexattr("file", "trusted.key").unwrap();
    fails(get("file", "trusted.key"), Errno::NODATA);
}

fn trusted_ones_of_links_and_nodes() {
    rustix::fs::mknodat(HERE, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
    std::os::unix::fs::symlink("fifo", "link").unwrap();
    for name in ["fifo", "link"] {
        lsetxattr(name, "trusted.key", b"v", ANY).unwrap();
        assert_eq!(lgetxattr(name, "trusted.key", &mut [0u8; 9]), Ok(1));
    }
}

fn a_security_modules_own() {
    file("file", "x", 0o644);
    setxattr("file", "security.nobodys", b"label", ANY).unwrap();
    assert_eq!(get("file", "security.nobodys").unwrap(), b"label");
}

fn they_follow_the_file() {
    let fd = create("file");
    setxattr("file", "user.key", b"v", ANY).unwrap();
    rustix::fs::rename("file", "moved").unwrap();
    rustix::fs::link("moved", "link").unwrap();
    setxattr("link", "user.key", b"w", ANY).unwrap();
    assert_eq!(get("moved", "user.key").unwrap(), b"w");
    std::fs::copy("moved", "copy").unwrap();
    assert_eq!(list("copy"), [""; 0]);
    rustix::fs::unlink("moved").unwrap();
    rustix::fs::unlink("link").unwrap();
    let mut value = [0u8; 1];
    assert_eq!((rustix::fs::fgetxattr(&fd, "user.key", &mut value), value), (Ok(1), *b"w"));
}

fn many_of_them() {
    file("file", "x", 0o644);
    for i in 10..40 {
        setxattr("file", format!("user.key{i}"), format!("value {i}").as_bytes(), ANY).unwrap();
    }
    assert_eq!(list("file"), (10..40).map(|i| format!("user.key{i}")).collect::<Vec<_>>());
    for i in (10..40).step_by(2) {
        removexattr("file", format!("user.key{i}")).unwrap();
    }
    assert_eq!(list("file"), (11..40).step_by(2).map(|i| format!("user.key{i}")).collect::<Vec<_>>());
    assert_eq!(get("file", "user.key31").unwrap(), b"value 31");
}
