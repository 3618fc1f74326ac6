//! Names inside the container's root file system, which may hold any symlink its image's author liked.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::path::Path;

/// How many symlinks one name may go through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Kind of file to make when a name is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
}

/// An open root directory: every name is resolved below it and no symlink leads out.
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory as a root.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path.as_ref(), flags, Mode::empty()).map(|fd| Self { fd })
    }

    /// The directory itself.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Opens a name below the root; `flags` beside `O_CLOEXEC`.
    pub fn open_with(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "/" } else { path };
        let mut tries = 0;
        loop {
            // EAGAIN: a rename happened meanwhile and the kernel could not be sure.
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
                Err(Errno::AGAIN) if tries < 100 => tries += 1,
                result => return result,
            }
        }
    }

    /// Opens a name as a place (`O_PATH`), following symlinks.
    pub fn open_path(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.open_with(path, OFlags::PATH)
    }

    /// Opens a name as a place; what is missing of it is made, directories with mode 0755.
    pub fn ensure(&self, path: &str, leaf: Leaf) -> Result<OwnedFd, Errno> {
        match self.open_path(path) {
            Err(Errno::NOENT) => self.open_path(&self.make(path, leaf)?),
            result => result,
        }
    }

    /// Opens the directory that a name is in (made if missing) and gives the last component.
    pub fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str), Errno> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() || name == "." || name == ".." {
            return Err(Errno::INVAL);
        }
        Ok((self.ensure(parent, Leaf::Directory)?, name))
    }

    /// Makes the missing parts of `path`; returns it free of symlinks.
    fn make(&self, path: &str, leaf: Leaf) -> Result<String, Errno> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next() {
            let parent = self.open_path(&walk.done())?;
            match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&parent, &name, Vec::new())?;
                    walk.follow(target.to_str().map_err(|_| Errno::ILSEQ)?)?;
                    continue;
                }
                Ok(_) => {}
                Err(Errno::NOENT) if walk.is_empty() && leaf == Leaf::File => make_file(&parent, &name)?,
                Err(Errno::NOENT) => make_directory(&parent, &name)?,
                Err(errno) => return Err(errno),
            }
            walk.enter(name);
        }
        Ok(walk.done())
    }
}

fn make_directory(parent: impl AsFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn make_file(parent: impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o755)).map(drop)
}

/// The parts of a name still to be walked, and those already walked, in which no symlink is left.
struct Walk {
    todo: VecDeque<String>,
    done: Vec<String>,
    links: usize,
}

impl Walk {
    fn new(path: &str) -> Self {
        Self { todo: parts(path).collect(), done: Vec::new(), links: 0 }
    }

    /// The next component that is a name; `..` never goes above the root.
    fn next(&mut self) -> Option<String> {
        loop {
            match self.todo.pop_front()? {
                up if up == ".." => drop(self.done.pop()),
                name => return Some(name),
            }
        }
    }

    fn enter(&mut self, name: String) {
        self.done.push(name);
    }

    fn follow(&mut self, target: &str) -> Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        if target.starts_with('/') {
            self.done.clear();
        }
        parts(target).rev().for_each(|part| self.todo.push_front(part));
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.todo.is_empty()
    }

    fn done(&self) -> String {
        format!("/{}", self.done.join("/"))
    }
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn missing_directories_and_files_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.ensure("/a/b/../c", Leaf::Directory).unwrap();
        root.ensure("etc/hosts", Leaf::File).unwrap();
        assert!(dir.path().join("a/c").is_dir());
        assert!(dir.path().join("etc/hosts").is_file());
    }

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../up", dir.path().join("rel")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        root.ensure("/abs/x", Leaf::Directory).unwrap();
        root.ensure("/rel/y", Leaf::File).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(dir.path().join(outside.path().strip_prefix("/").unwrap()).join("x").is_dir());
        assert!(dir.path().join("up/y").is_file());
    }

    #[test]
    fn a_ring_of_links_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(root.ensure("/a/x", Leaf::Directory).err(), Some(Errno::LOOP));
        assert_eq!(root.make("/a", Leaf::Directory).err(), Some(Errno::LOOP));
    }

    #[test]
    fn parent_splits_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(root.parent("/dev/net/tun").unwrap().1, "tun");
        assert!(dir.path().join("dev/net").is_dir());
        assert_eq!(root.parent("/").err(), Some(Errno::INVAL));
        assert_eq!(root.parent("/dev/..").err(), Some(Errno::INVAL));
    }
}
