//! Fills a fresh tmpfs with what it covers (`tmpcopyup`).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::ffi::CStr;

/// Deeper trees than this are refused rather than let overflow the stack.
const MAX_DEPTH: usize = 128;

/// Copies everything below directory `from` into directory `to`: directories, files and symlinks
/// with owner and mode. Other kinds of file are left out.
pub fn copy_tree(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    copy_directory(from, to, MAX_DEPTH)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<(), Errno> {
    if depth == 0 {
        return Err(Errno::LOOP);
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let source = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let target = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            copy_directory(&source, &target, depth - 1)?;
        }
        FileType::RegularFile => copy_file(from, to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        _ => return Ok(()),
    }
    copy_owner(to, name, &stat)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    let mut source = std::fs::File::from(open(from, name, OFlags::RDONLY)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut target = std::fs::File::from(open(to, name, flags)?);
    let copied = std::io::copy(&mut source, &mut target);
    copied.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn copy_owner(to: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())
}

fn open(directory: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RWXU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_tree_is_copied_with_its_modes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("d")).unwrap();
        std::fs::write(from.path().join("d/f"), "text").unwrap();
        std::fs::set_permissions(from.path().join("d"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("d/f", from.path().join("l")).unwrap();
        let open = |path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        copy_tree(&open(from.path()), &open(to.path())).unwrap();
        assert_eq!(std::fs::read_to_string(to.path().join("l")).unwrap(), "text");
        assert_eq!(std::fs::metadata(to.path().join("d")).unwrap().permissions().mode() & 0o7777, 0o1777);
    }
}
