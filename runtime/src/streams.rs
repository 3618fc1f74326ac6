//! Files of the host behind stdin, stdout and stderr of a process in the guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::ipc::Descriptor;

/// The open files behind a process's standard streams.
#[derive(Debug, Serialize, Deserialize)]
pub enum Streams {
    /// The slave of a pseudo-terminal is all three.
    Terminal(Descriptor),
    /// One for each of stdin, stdout, stderr that is attached.
    Files([Option<Descriptor>; 3]),
}

impl Streams {
    /// Copies of this process's own.
    pub fn standard() -> Self {
        // A caller may have closed one of them.
        let copy = |fd: BorrowedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).ok().map(Descriptor::from);
        let (input, output, error) = (rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr());
        Self::Files([copy(input), copy(output), copy(error)])
    }

    /// The terminal, if there is one.
    pub fn terminal(&self) -> Option<&Descriptor> {
        match self {
            Self::Terminal(slave) => Some(slave),
            Self::Files(_) => None,
        }
    }

    /// What each stream reads or writes.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn into_files(self) -> std::io::Result<[Option<OwnedFd>; 3]> {
        let [input, output, error] = match self {
            // The guest's own terminal is both its output and its error output.
            Self::Terminal(slave) => [Some(slave.clone()), Some(slave), None],
            Self::Files(files) => files,
        };
        let owned = |file: Option<Descriptor>| file.map(Descriptor::into_owned).transpose();
        Ok([owned(input)?, owned(output)?, owned(error)?])
    }
}

/// Opens /dev/null for reading and writing.
///
/// # Errors
/// There is none.
pub fn open_null() -> anyhow::Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("open /dev/null")
}

/// Makes a file this process's stdin, stdout and stderr.
///
/// # Errors
/// The kernel's.
pub fn replace_standard(file: impl AsFd) -> std::io::Result<()> {
    rustix::stdio::dup2_stdin(&file)?;
    rustix::stdio::dup2_stdout(&file)?;
    Ok(rustix::stdio::dup2_stderr(&file)?)
}
