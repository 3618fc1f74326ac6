//! The reading end of a pipe or a terminal, with bounded waits.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;

use crate::command::PATIENCE;
use crate::process;

/// Reads what somebody else writes.
pub struct Reader {
    fd: OwnedFd,
    /// What has been read and not yet been asked for.
    pending: Vec<u8>,
}

impl Reader {
    /// Takes over the reading end.
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        Self { fd: fd.into(), pending: Vec::new() }
    }

    /// Reads on until `text` has come; returns everything up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = find(&self.pending, text.as_bytes()) {
                let taken: Vec<u8> = self.pending.drain(..at + text.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let more = self.more(deadline);
            assert!(more, "{text:?} did not come; this did: {}", self.shown());
        }
    }

    /// Reads a line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.expect("\n").trim_end().to_owned()
    }

    /// Reads everything to the end.
    #[track_caller]
    pub fn rest(mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.more(deadline) {}
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    /// The descriptor, for questions about it.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether nothing has come so far.
    pub fn is_silent(&self) -> bool {
        self.pending.is_empty() && rustix::io::ioctl_fionread(&self.fd).unwrap() == 0
    }

    /// The end of what is pending, for messages.
    fn shown(&self) -> String {
        let start = self.pending.len().saturating_sub(500);
        format!("{} bytes, the last {:?}", self.pending.len(), String::from_utf8_lossy(&self.pending[start..]))
    }

    /// Reads once; false at the end.
    #[track_caller]
    fn more(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = process::poll(&self.fd, PollFlags::IN, left);
        assert!(ready, "no end after {PATIENCE:?}; this came: {}", self.shown());
        let mut buffer = [0; 65536];
        let got = match rustix::io::read(self.fd.as_fd(), &mut buffer) {
            // How a terminal's master says that nobody has the other side open.
            Err(rustix::io::Errno::IO) => 0,
            read => read.unwrap(),
        };
        self.pending.extend_from_slice(&buffer[..got]);
        got > 0
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// A pipe: the reading and the writing end, closed in programs we start.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}
