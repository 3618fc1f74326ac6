//! Files of the host: which one was looked at, and whether what was opened is that one.
//!
//! Planning looks at paths, and what it finds decides what a container gets. Somebody else may own a directory on the way, and
//! have another file there when the path is opened.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{FileType, Stat};

use crate::plan::facts::FileId;

/// Which file this is about.
pub fn of(stat: &Stat) -> FileId {
    let kind = FileType::from_raw_mode(stat.st_mode).as_raw_mode();
    FileId { device: stat.st_dev, inode: stat.st_ino, kind, node: stat.st_rdev }
}

/// Refuses an open file that is not the one that was looked at.
///
/// # Errors
/// It is another one.
pub fn check(opened: impl AsFd, wanted: FileId, path: &Path) -> anyhow::Result<()> {
    let found = rustix::fs::fstat(opened).with_context(|| format!("look at {}", path.display()))?;
    if of(&found) != wanted {
        bail!("{} has been replaced by another file meanwhile: try again", path.display());
    }
    Ok(())
}

/// A path to an open file, which leads to it whatever its own path leads to.
pub fn path(opened: impl AsFd) -> String {
    format!("/proc/self/fd/{}", opened.as_fd().as_raw_fd())
}
