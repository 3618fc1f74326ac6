//! Errors as the user sees them: one sentence, in runc's words where runc has some, and a kind.

use rustix::io::Errno;
use std::ffi::CStr;
use std::fmt::Display;

/// Kind of a failure, beside its sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such container or process.
    NotFound,
    /// The container or process is in the wrong state for the call.
    Precondition,
    /// The request itself makes no sense.
    Invalid,
    /// Everything else: a system call that failed.
    Internal,
}

impl Kind {
    /// Encodes the kind as a byte, for the way from a child process to the agent.
    pub fn to_byte(self) -> u8 {
        match self {
            Kind::NotFound => 1,
            Kind::Precondition => 2,
            Kind::Invalid => 3,
            Kind::Internal => 4,
        }
    }

    /// Decodes what [`Kind::to_byte`] gave; an unknown byte is internal.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Kind::NotFound,
            2 => Kind::Precondition,
            3 => Kind::Invalid,
            _ => Kind::Internal,
        }
    }
}

/// Failure of a call, as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Kind of the failure, which decides on the status code that the caller gets.
    pub kind: Kind,
    /// Sentence for the user.
    pub message: String,
}

/// Result of everything that can fail with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// No such container or process.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFound, message: message.into() }
    }

    /// Wrong state for the call.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self { kind: Kind::Precondition, message: message.into() }
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, message: message.into() }
    }

    /// A failure of another kind.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { kind: Kind::Internal, message: message.into() }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::NotFound => ttrpc::Code::NOT_FOUND,
            Kind::Precondition => ttrpc::Code::FAILED_PRECONDITION,
            Kind::Invalid => ttrpc::Code::INVALID_ARGUMENT,
            Kind::Internal => ttrpc::Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
    }
}

/// The kernel's word for an error as Go (hence runc) prints it: the C library's, in lower case.
pub fn errno_text(errno: Errno) -> String {
    // SAFETY: strerror returns a NUL-terminated string; there is one thread, so nobody rewrites it meanwhile.
    let text = unsafe { CStr::from_ptr(libc::strerror(errno.raw_os_error())) };
    let mut text = text.to_string_lossy().into_owned();
    if let Some(first) = text.get_mut(0..1) {
        first.make_ascii_lowercase();
    }
    text
}

/// Turns an error number into a sentence that says what was being done.
pub trait Context<T> {
    /// Gives an error that reads `what: text of the error number`.
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::internal(format!("{}: {}", what(), errno_text(errno))))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| match Errno::from_io_error(&error) {
            Some(errno) => Error::internal(format!("{}: {}", what(), errno_text(errno))),
            None => Error::internal(format!("{}: {error}", what())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_reads_like_go() {
        assert_eq!(errno_text(Errno::NOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::ACCESS), "permission denied");
        assert_eq!(errno_text(Errno::NOEXEC), "exec format error");
    }

    #[test]
    fn kinds_survive_the_byte() {
        for kind in [Kind::NotFound, Kind::Precondition, Kind::Invalid, Kind::Internal] {
            assert_eq!(Kind::from_byte(kind.to_byte()), kind);
        }
    }
}
