//! One cgroup of a container, and its removal.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Pause between two attempts to remove a busy cgroup.
const PAUSE: Duration = Duration::from_millis(10);
/// Depth below our cgroup down to which others are removed.
const MAX_DEPTH: usize = 32;

/// A cgroup of a container in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it was made for this container, so that its children are ours, too.
    pub made: bool,
    /// Whether the hierarchy is of version 2.
    pub unified: bool,
}

impl Directory {
    /// Removes the cgroup, with those below it if it was made for the container.
    ///
    /// # Errors
    /// It cannot be removed until the deadline.
    pub fn remove(&self, deadline: Instant) -> anyhow::Result<()> {
        if !self.made {
            return match fs::remove_dir(&self.path) {
                Err(error) if !is_busy(&error) && error.kind() != ErrorKind::NotFound => self.failed(error),
                _ => Ok(()),
            };
        }
        loop {
            match remove_tree(&self.path, MAX_DEPTH) {
                Ok(()) => return Ok(()),
                Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(error) => return self.failed(error),
            }
        }
    }

    fn failed(&self, error: io::Error) -> anyhow::Result<()> {
        Err(error).with_context(|| format!("unable to remove cgroup {}", self.path.display()))
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ResourceBusy | ErrorKind::DirectoryNotEmpty)
}

/// Removes a cgroup and its children: rmdir(2) needs no files removed, but no children left.
fn remove_tree(path: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if !is_busy(&error) || depth == 0 => return Err(error),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), depth - 1)?;
        }
    }
    fs::remove_dir(path)
}
