//! Starting the monitor, the network helper and what makes device nodes for an exec: a fork that is born in its cgroup, and for the monitor this binary again.
//!
//! Moving a process that lives into a cgroup waits for the kernel's readers, some ten milliseconds; being
//! born there waits for nobody, and nothing is ever accounted elsewhere. `std::process` cannot do that.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::Context;
use nix::sched::CloneFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::control::Reply;
use crate::{ipc, streams};

/// A child of ours.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    status: Option<ExitStatus>,
    /// Whether the child was born in the cgroup that was asked for.
    pub placed: bool,
}

impl Process {
    /// Pid of the child.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Kills the child, unless it has been waited for.
    pub fn kill(&self) -> io::Result<()> {
        match self.status {
            Some(_) => Ok(()),
            None => Ok(rustix::process::kill_process(self.pid, Signal::KILL)?),
        }
    }

    /// Waits for the child's end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            match self.reap(WaitOptions::empty()) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Exit status of the child, if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitOptions::NOHANG)
    }

    fn reap(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none()
            && let Some((_, status)) = rustix::process::waitpid(Some(self.pid), options)?
        {
            self.status = Some(ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

/// First argument of the monitor; its second is the number of the socket to the command.
const MONITOR: &str = "monitor";

/// The number of the socket to the command, if this process is the monitor.
pub fn is_monitor() -> Option<RawFd> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next()?;
    (first == MONITOR).then(|| arguments.next()?.to_str()?.parse().ok()).flatten()
}

/// Where a process of the container is started, and what it has of the command; everything else comes by its socket.
pub struct Place<'a> {
    /// The socket to the command.
    pub socket: &'a UnixStream,
    /// Its network namespace.
    pub network: BorrowedFd<'a>,
    /// Its mount namespace, if that is another one than the command's.
    pub mounts: Option<BorrowedFd<'a>>,
    /// The cgroup v2 to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it has the command's standard error output.
    pub stderr: bool,
}

impl Place<'_> {
    /// In the child: takes its place.
    fn enter(&self, null: &OwnedFd) -> io::Result<()> {
        crate::signals::unblock()?;
        nix::sched::setns(self.network, CloneFlags::CLONE_NEWNET)?;
        self.mounts.map_or(Ok(()), |mounts| nix::sched::setns(mounts, CloneFlags::CLONE_NEWNS))?;
        rustix::stdio::dup2_stdin(null)?;
        rustix::stdio::dup2_stdout(null)?;
        if !self.stderr {
            rustix::stdio::dup2_stderr(null)?;
        }
        Ok(rustix::process::chdir("/")?)
    }
}

/// Starts this binary again, as the monitor. What fails in the child is its answer at the socket.
///
/// # Errors
/// There can be no more processes.
pub fn monitor(place: &Place<'_>) -> anyhow::Result<Process> {
    let null = streams::open_null()?;
    let number = CString::new(place.socket.as_raw_fd().to_string())?;
    let arguments = [c"runvm".to_owned(), CString::new(MONITOR)?, number];
    // SAFETY: a command has no other threads before it starts its monitor.
    if let Some(process) = unsafe { fork(place.cgroup) }.context("start the monitor: fork")? {
        return Ok(process);
    }
    let become_monitor = || -> io::Result<()> {
        place.enter(&null)?;
        rustix::io::fcntl_setfd(place.socket, rustix::io::FdFlags::empty())?;
        nix::unistd::execve(c"/proc/self/exe", &arguments, &[] as &[CString; 0])?;
        Ok(())
    };
    let why = become_monitor().err().map_or_else(String::new, |error| format!("start the monitor: {error}"));
    // Without an answer the parent reports our end.
    let _ = ipc::send(place.socket, &Reply::Failed(why));
    // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
    unsafe { libc::_exit(1) }
}

/// Forks a process that does this work and ends. Of what this one has open it keeps the place's socket and the log, which the
/// number is that of; its memory is a copy.
///
/// # Errors
/// There can be no more processes.
pub fn fork_of_this(
    name: &CStr,
    place: &Place<'_>,
    log: Option<RawFd>,
    work: impl FnOnce(&UnixStream),
) -> anyhow::Result<Process> {
    let null = streams::open_null()?;
    // SAFETY: a command has no other threads before it starts a process of the container.
    if let Some(process) = unsafe { fork(place.cgroup) }.context("fork")? {
        return Ok(process);
    }
    let leave_command = || -> io::Result<()> {
        place.enter(&null)?;
        // SAFETY: nobody uses what this closes: the process works with what it keeps, and never returns.
        unsafe { close_all_but(&[Some(place.socket.as_raw_fd()), log]) }?;
        Ok(rustix::thread::set_name(name)?)
    };
    match leave_command() {
        Ok(()) => work(place.socket),
        Err(error) => drop(ipc::send(place.socket, &Reply::Failed(format!("leave the command: {error}")))),
    }
    // SAFETY: ends this process at once; nothing of the parent's is to be undone here.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor of this process above the standard ones but these.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// Nobody uses the others any more.
pub unsafe fn close_all_but(kept: &[Option<RawFd>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().flatten().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for last in kept.into_iter().map(|fd| fd.checked_sub(1)).chain([Some(u32::MAX)]).flatten() {
        // SAFETY: takes no pointer; by this function's contract nobody uses what it closes.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        first = first.max(last.saturating_add(2));
    }
    Ok(())
}

/// Forks, into a pid namespace of its own, and into the cgroup v2 of this directory if there is one and the kernel can. `None`
/// in the child.
///
/// Monitors have the same uid, and whoever has it may send signals: only a pid namespace keeps them from each other. What a
/// monitor starts ends with it.
///
/// # Safety
/// The process has no other threads; so the child may do what it likes.
unsafe fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Process>> {
    // SAFETY: a structure of numbers, for which zeros are good.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_NEWPID as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the structure lives across the call and its size is right; without CLONE_VM this is a fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    let (pid, placed) = match pid {
        // Before Linux 5.7, or where a sandbox forbids it: the older call, which knows no cgroups.
        // SAFETY: this call, too, is a fork without CLONE_VM, and takes no pointers then.
        -1 => (unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWPID | libc::SIGCHLD, 0, 0, 0, 0) }, false),
        pid => (pid, cgroup.is_some()),
    };
    match pid {
        0 => Ok(None),
        1.. => Ok(Pid::from_raw(pid as i32).map(|pid| Process { pid, status: None, placed })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Of <linux/sched.h>; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
