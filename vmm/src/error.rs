//! Errors of building, starting and saving a machine.

use std::io;
use std::path::{Path, PathBuf};

/// A failure to build, start or save a machine. The cause, where there is one, is the error's source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification asks for something impossible.
    #[error("{0}")]
    Spec(String),
    /// A kernel or initrd is missing or not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A KVM call failed.
    #[error("KVM (/dev/kvm) cannot {0}")]
    Kvm(&'static str, #[source] io::Error),
    /// Another system call failed.
    #[error("cannot {0}")]
    Host(&'static str, #[source] io::Error),
    /// A thread of the machine could not be spawned, or may not serve.
    #[error("cannot start the thread {0}")]
    Thread(String, #[source] io::Error),
    /// The monitor's own data does not fit the guest memory it laid out.
    #[error("cannot write guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A device could not be saved or restored.
    #[error("device {0}")]
    Device(String, #[source] crate::virtio::Error),
}

impl Error {
    /// An error about a file.
    pub(crate) fn file(path: &Path, what: impl ToString) -> Self {
        Self::File { path: path.to_owned(), what: what.to_string() }
    }
}

/// Gives a failed KVM call the name of what it was to do.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm(what, io::Error::from_raw_os_error(error.errno()))
}
