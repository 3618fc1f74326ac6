//! Directories to start from, and files replaced as a whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a directory as a place to start from.
pub fn open(path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Writes a file whole: a new one, whose name nobody can know before, then renamed. So no reader sees half of it, and nothing
/// that somebody else put into the directory is followed or written to.
pub fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut number = [0; 8];
    rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
    let temporary = path.with_file_name(format!(".runvm-{:016x}", u64::from_ne_bytes(number)));
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file.write_all(content).and_then(|()| std::fs::rename(&temporary, path));
    written.inspect_err(|_| drop(std::fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_at_the_path_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("pid"));
        std::fs::write(&victim, "theirs").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        replace(&path, 0o600, b"17").unwrap();
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&path), read(&victim)), ("17".to_owned(), "theirs".to_owned()));
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pid/full")).unwrap();
        assert!(replace(&dir.path().join("pid"), 0o600, b"17").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
