//! A terminal as its user has it: the master end of a pty.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::event::PollFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::command::PATIENCE;
use crate::process;
use crate::stream::Reader;

/// The master end of a terminal, and the slave where we opened it ourselves.
pub struct Terminal {
    master: OwnedFd,
    slave: Option<OwnedFd>,
    reader: Reader,
}

impl Terminal {
    /// A new terminal of that size.
    pub fn open(rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let terminal = Self { slave: Some(slave), ..Self::adopt(master) };
        terminal.resize(rows, columns);
        terminal
    }

    /// The terminal behind a master that somebody handed us.
    pub fn adopt(master: OwnedFd) -> Self {
        let reader = Reader::new(master.try_clone().unwrap());
        Self { master, slave: None, reader }
    }

    /// Has a command run on this terminal, as the leader of its session.
    pub fn attach(&self, command: &mut Command) {
        let slave = self.slave.as_ref().expect("only a terminal of our own can be attached");
        let end = || slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end());
        let lead = || {
            rustix::process::setsid()?;
            Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
        };
        // SAFETY: two system calls, which are safe between fork and exec.
        unsafe { command.pre_exec(lead) };
    }

    /// Gives it another size, as a terminal emulator does when its window changes.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).unwrap();
    }

    /// Types something.
    pub fn write(&self, text: &str) {
        let written = rustix::io::write(&self.master, text.as_bytes()).unwrap();
        assert_eq!(written, text.len());
    }

    /// Reads on until `text` has come; returns everything up to its end.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        self.reader.expect(text)
    }

    /// Reads everything to the end.
    #[track_caller]
    pub fn rest(self) -> String {
        self.reader.rest()
    }

    /// Whether the terminal is in raw mode: no echo, no lines, no signals.
    pub fn is_raw(&self) -> bool {
        use rustix::termios::LocalModes;
        let modes = rustix::termios::tcgetattr(self.master.as_fd()).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

/// The socket on which an engine waits for the master of a container's terminal.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in a folder.
    pub fn listen(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        Self { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// What `--console-socket` gets.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the master.
    #[track_caller]
    pub fn receive(&self) -> Terminal {
        assert!(process::poll(&self.listener, PollFlags::IN, PATIENCE), "nobody came to the console socket");
        let (stream, _) = self.listener.accept().unwrap();
        assert!(process::poll(&stream, PollFlags::IN, PATIENCE), "nothing was sent to the console socket");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let buffers = &mut [IoSliceMut::new(&mut name)];
        rustix::net::recvmsg(&stream, buffers, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Terminal::adopt(rights.expect("no descriptor came over the console socket"))
    }
}
