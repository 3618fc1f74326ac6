//! Files below an open directory, for processes that do not see the directory's path any more.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Opens a directory as a place to start from.
pub fn open(path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file of text, without the white space around it.
pub fn read(directory: &OwnedFd, file: &str) -> io::Result<String> {
    let mut text = String::new();
    open_file(directory, file, OFlags::RDONLY)?.read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Writes a file that is there.
pub fn write(directory: &OwnedFd, file: &str, value: &str) -> io::Result<()> {
    open_file(directory, file, OFlags::WRONLY)?.write_all(value.as_bytes())
}

fn open_file(directory: &OwnedFd, file: &str, access: OFlags) -> io::Result<File> {
    Ok(rustix::fs::openat(directory, file, access | OFlags::CLOEXEC, Mode::empty())?.into())
}
