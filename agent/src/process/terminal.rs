//! A pseudo terminal of the container's own devpts.

use crate::error::{Context, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Uid;
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::CString;

/// Both ends of a pty, in the child that is going to use it.
pub struct Pty {
    /// Taken over by the agent.
    pub master: OwnedFd,
    /// Standard input, output and error of the process.
    pub slave: OwnedFd,
}

impl Pty {
    /// Opens a new one; `open` finds a name in the container.
    pub fn open(open: impl Fn(&str, OFlags) -> std::result::Result<OwnedFd, Errno>, size: Winsize) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = match open("/dev/pts/ptmx", flags) {
            Err(Errno::NOENT) => open("/dev/ptmx", flags),
            result => result,
        };
        let master = master.context(|| "open /dev/ptmx")?;
        rustix::pty::unlockpt(&master).context(|| "unlock terminal")?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).context(|| "open terminal")?;
        set_size(&master, size)?;
        Ok(Self { master, slave })
    }

    /// Path of the slave below the container's root.
    pub fn name(&self) -> Result<CString> {
        rustix::pty::ptsname(&self.master, Vec::new()).context(|| "name of terminal")
    }

    /// Gives it to the user and makes it the controlling terminal of the caller's new session.
    pub fn take(&self, uid: u32) -> Result<()> {
        rustix::fs::fchown(&self.slave, Some(Uid::from_raw(uid)), None).context(|| "chown terminal")?;
        rustix::process::ioctl_tiocsctty(&self.slave).context(|| "set controlling terminal")
    }
}

/// Size in the kernel's terms; numbers that do not fit are cut.
pub fn size(rows: u32, columns: u32) -> Winsize {
    let cut = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize { ws_row: cut(rows), ws_col: cut(columns), ws_xpixel: 0, ws_ypixel: 0 }
}

/// Sets the size of the terminal behind a master; 0 by 0 leaves it.
pub fn set_size(master: impl AsFd, size: Winsize) -> Result<()> {
    if size.ws_row == 0 && size.ws_col == 0 {
        return Ok(());
    }
    tcsetwinsize(master, size).context(|| "resize terminal")
}

/// Opens a name in the container, for a process that has entered it already.
pub fn open_here(path: &str, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}
