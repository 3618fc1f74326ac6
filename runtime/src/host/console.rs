//! Terminals on the host: a pty pair whose master goes to the engine and whose slave to the monitor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// A pty pair of the host.
pub struct Pty {
    /// The end for the engine or the user's terminal.
    pub master: OwnedFd,
    /// The end that stands for the container.
    pub slave: OwnedFd,
    /// Path of the slave.
    pub name: String,
}

/// Opens a pty pair; the slave is raw: line discipline is the business of the guest's own pty.
pub fn open() -> anyhow::Result<Pty> {
    let open = || -> std::io::Result<Pty> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        make_raw(&slave)?;
        Ok(Pty { master, slave, name })
    };
    open().context("open a pseudo-terminal")
}

/// Sends the master to a console socket, with the slave's name as runc does.
pub fn send_master(socket: &Path, pty: &Pty) -> anyhow::Result<()> {
    let connected = UnixStream::connect(socket);
    let stream = connected.with_context(|| format!("connect to console socket {}", socket.display()))?;
    let sent = crate::ipc::send_fds(&stream, pty.name.as_bytes(), &[pty.master.as_fd()]);
    sent.with_context(|| format!("send the terminal to console socket {}", socket.display()))?;
    Ok(())
}

/// Makes `slave` the controlling terminal of this process, which becomes a session leader: so
/// SIGWINCH arrives here when the master is resized.
pub fn become_controlling(slave: BorrowedFd) -> anyhow::Result<()> {
    // Fails only for a process-group leader, which then may be the session leader already.
    let _ = rustix::process::setsid();
    rustix::process::ioctl_tiocsctty(slave).context("take the terminal as controlling terminal")
}

/// Turns a terminal raw; returns what it was before.
pub fn make_raw(terminal: impl AsFd) -> std::io::Result<Termios> {
    let before = rustix::termios::tcgetattr(&terminal)?;
    let mut raw = before.clone();
    raw.make_raw();
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &raw)?;
    Ok(before)
}

/// The terminal's size as (rows, columns); zeros when it has none.
pub fn size(terminal: impl AsFd) -> (u16, u16) {
    rustix::termios::tcgetwinsize(terminal).map_or((0, 0), |size| (size.ws_row, size.ws_col))
}

/// Gives a process that is to have a terminal the size of this one, if it is known.
pub fn note_size(terminal: impl AsFd, process: &mut protocol::Process) {
    let (rows, columns) = size(terminal);
    if rows > 0 && columns > 0 {
        (process.rows, process.columns) = (u32::from(rows), u32::from(columns));
    }
}

/// Gives a pty the size of another terminal.
pub fn copy_size(from: impl AsFd, to: impl AsFd) {
    let (ws_row, ws_col) = size(from);
    if ws_row > 0 && ws_col > 0 {
        // A size that cannot be set is no reason to lose the session.
        let _ = rustix::termios::tcsetwinsize(to, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 });
    }
}

/// The user's terminal, raw until this is dropped.
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal on stdin raw; `None` when stdin is none.
    pub fn stdin() -> Option<Self> {
        let terminal = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).ok()?;
        let before = make_raw(&terminal).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_goes_through_the_pair() {
        let (a, b) = (open().unwrap(), open().unwrap());
        rustix::termios::tcsetwinsize(&a.master, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        copy_size(&a.slave, &b.master);
        assert_eq!(size(&b.slave), (33, 99));
        assert!(a.name.starts_with("/dev/pts/"));
    }
}
