//! System calls that neither std nor rustix wraps, or not in the shape needed here.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::path::Path;

/// The result of a C call that says -1 for an error.
fn check(result: i64) -> Result<i64, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a string for the kernel; one with a NUL inside is `EINVAL`.
pub fn c_string(text: impl AsRef<[u8]>) -> Result<CString, Errno> {
    CString::new(text.as_ref()).map_err(|_| Errno::INVAL)
}

/// Path by which the kernel finds an open (also `O_PATH`) descriptor of the calling process.
pub fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// mount(2) with its flags as the kernel counts them.
pub fn mount(source: &str, target: &str, kind: &str, flags: u64, data: &str) -> Result<(), Errno> {
    let (source, target, kind, data) = (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    // SAFETY: all four pointers are NUL-terminated strings that outlive the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result.into()).map(drop)
}

/// Copies the mount at this path, without those below it; the copy is mounted nowhere.
pub fn copy_mount(path: &str) -> Result<OwnedFd, Errno> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    open_tree(rustix::fs::CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Mounts a copy that [`copy_mount`] made at `place`.
pub fn place_mount(copy: impl AsFd, place: impl AsFd) -> Result<(), Errno> {
    use rustix::mount::{MoveMountFlags, move_mount};
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(copy, "", place, "", flags)
}

/// `CLONE_INTO_CGROUP`; the C library's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which child [`spawn`] makes.
pub struct SpawnArgs<'a> {
    /// `CLONE_NEW*`.
    pub flags: u64,
    /// Directory of the cgroup the child starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child of the agent.
pub struct Spawned {
    /// Pid of the child in the agent's pid namespace.
    pub pid: i32,
    /// Reference to the child that stays right when the pid is used again.
    pub pidfd: OwnedFd,
}

/// Forks by clone3(2); `child` runs in the new process, which ends when it returns.
///
/// Sound because the agent has one thread: the child's copy of the heap is whole.
pub fn spawn(args: &SpawnArgs<'_>, child: impl FnOnce()) -> Result<Spawned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, for which zero means "not asked for".
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.flags = args.flags | libc::CLONE_PIDFD as u64;
    clone.pidfd = &raw mut pidfd as u64;
    clone.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = args.cgroup {
        clone.flags |= CLONE_INTO_CGROUP;
        clone.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of memory and stack. The
    // kernel writes only to pidfd, which outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut clone, size_of::<libc::clone_args>()) };
    if check(pid)? == 0 {
        child();
        exit_now(1);
    }
    // SAFETY: the kernel put a new descriptor there, owned by nobody else.
    Ok(Spawned { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Ends the calling process without running anything of the agent's.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// execve(2); returns only its error.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in NULL and point to NUL-terminated strings that outlive the call.
    let result = unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    check(result.into()).err().unwrap_or(Errno::IO)
}

/// Makes every signal's disposition the default and unblocks all: what a new program expects.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: setting a default disposition runs no code of ours; refused ones (KILL, STOP) are fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

extern "C" fn die_of_signal(signal: libc::c_int) {
    exit_now(128 + signal);
}

/// Lets signals that end a process end this one even where it is PID 1 of its namespace, which
/// otherwise ignores them; exec makes them default again.
pub fn die_of_signals() {
    let handler = die_of_signal as extern "C" fn(libc::c_int);
    let signals = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPIPE];
    let more = [libc::SIGALRM, libc::SIGTERM, libc::SIGXCPU, libc::SIGXFSZ, libc::SIGVTALRM, libc::SIGIO];
    for signal in signals.into_iter().chain(more).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: the handler only calls _exit, which is async-signal-safe.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// A descriptor that becomes readable when a child has ended; SIGCHLD is blocked from now on.
pub fn child_signal_fd() -> Result<OwnedFd, Errno> {
    // SAFETY: the set is initialised by sigemptyset before it is used; the descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Any signal, real-time ones too, to the process behind a pidfd.
pub fn pidfd_send_signal(pidfd: impl AsFd, signal: u32) -> Result<(), Errno> {
    let signal = libc::c_int::try_from(signal).map_err(|_| Errno::INVAL)?;
    let info = std::ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo means one as kill(2) would make it; nothing else is dereferenced.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) }).map(drop)
}

/// Whether the process behind a pidfd has not ended yet.
pub fn is_alive(pidfd: impl AsFd) -> bool {
    !is_ready(pidfd, rustix::event::PollFlags::IN)
}

/// kill(2) with any signal.
pub fn kill(pid: i32, signal: u32) -> Result<(), Errno> {
    let signal = libc::c_int::try_from(signal).map_err(|_| Errno::INVAL)?;
    // SAFETY: kill takes plain numbers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// prlimit(2) on another process.
pub fn set_rlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the new limit outlives the call, the old one is not asked for.
    check(unsafe { libc::prlimit64(pid, resource, &raw const limit, std::ptr::null_mut()) }.into()).map(drop)
}

/// ioprio_set(2) for one process.
pub fn set_io_priority(pid: i32, priority: u32) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, pid, priority) }).map(drop)
}

/// sched_setaffinity(2) with the first 64 CPUs, bit n for CPU n.
pub fn set_cpus(pid: i32, cpus: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as it is told, which there are; the rest counts as zero.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of::<u64>(), &raw const cpus) }).map(drop)
}

/// sched_setattr(2).
pub fn set_scheduler(pid: i32, scheduler: &protocol::Scheduler) -> Result<(), Errno> {
    /// `struct sched_attr` in its first version (linux/sched/types.h).
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: scheduler.policy,
        flags: scheduler.flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    };
    // SAFETY: the attributes outlive the call and say their size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) }).map(drop)
}

/// personality(2), of this process and those it becomes or makes.
pub fn set_personality(personality: u32) -> Result<(), Errno> {
    // SAFETY: a plain number.
    check(unsafe { libc::personality(personality.into()) }.into()).map(drop)
}

/// Installs a seccomp filter: an array of `struct sock_filter` as bytes, and `SECCOMP_FILTER_FLAG_*`.
pub fn set_seccomp_filter(program: &[u8], flags: u32) -> Result<(), Errno> {
    let mut filter: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: the program points to `len` instructions that outlive the call; the kernel checks them.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::c_ulong::from(flags), &raw const program)
    })
    .map(drop)
}

/// Closes every descriptor from 3 on but those in `keep`, and marks those close-on-exec.
pub fn close_all_but(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut next = 3u32;
    for fd in keep.into_iter().chain(std::iter::once(u32::MAX)) {
        if fd > next {
            close_range(next, fd - 1, 0);
        }
        next = fd.saturating_add(1);
    }
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) {
    // SAFETY: only called in a child that uses none of the descriptors it closes.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// dup2(2): makes `target` another name of `fd`, not close-on-exec.
pub fn dup_to(fd: impl AsFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: only called in a child, for descriptors 0 to 2, which nothing there owns.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// Writes to a file that exists already, in one write(2) as kernel interface files want it.
pub fn write_file(path: impl AsRef<Path>, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// adjtime(3): makes the clock go a little faster or slower until so many microseconds are made good.
pub fn slew_realtime(microseconds: i64) -> Result<(), Errno> {
    // SAFETY: an all-zero timex is a valid argument, which outlives the call.
    let state = unsafe {
        let mut change: libc::timex = std::mem::zeroed();
        change.modes = libc::ADJ_OFFSET_SINGLESHOT;
        change.offset = microseconds;
        libc::adjtimex(&raw mut change)
    };
    check(state.into()).map(drop)
}

/// Sets CLOCK_REALTIME.
pub fn set_realtime(sec: i64, nsec: u32) -> Result<(), Errno> {
    let time = libc::timespec { tv_sec: sec, tv_nsec: nsec.into() };
    // SAFETY: the timespec outlives the call.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }.into()).map(drop)
}

/// Microseconds since boot.
pub fn boottime_us() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    (time.tv_sec * 1_000_000 + time.tv_nsec / 1000) as u32
}

/// `RNDADDENTROPY` with these bytes fully credited, then `RNDRESEEDCRNG`.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    /// `struct rand_pool_info` with room for the bytes.
    #[repr(C)]
    struct Pool {
        entropy_count: i32,
        buf_size: i32,
        buf: [u8; 256],
    }
    let fd = random.as_fd().as_raw_fd();
    for chunk in bytes.chunks(256) {
        let mut pool = Pool { entropy_count: chunk.len() as i32 * 8, buf_size: chunk.len() as i32, buf: [0; 256] };
        pool.buf.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        // SAFETY: the kernel reads the header and buf_size bytes, which are inside the struct.
        check(unsafe { libc::ioctl(fd, RNDADDENTROPY as _, &raw const pool) }.into())?;
    }
    // SAFETY: this request takes no argument.
    check(unsafe { libc::ioctl(fd, RNDRESEEDCRNG as _, 0) }.into()).map(drop)
}

/// Sets a network interface up (`SIOCSIFFLAGS`), in the caller's network namespace.
pub fn link_up(name: &str) -> Result<(), Errno> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data; zero is a valid value of each of its fields.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request outlives both calls; SIOCGIFFLAGS fills ifru_flags, an integer.
    unsafe {
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request).into()).map(drop)
    }
}

/// Whether the descriptor is ready for `events` (`POLLIN`, …) now.
pub fn is_ready(fd: impl AsFd, events: rustix::event::PollFlags) -> bool {
    use rustix::event::{PollFd, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), events)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_in_a_string_is_an_error() {
        assert_eq!(c_string("a\0b"), Err(Errno::INVAL));
    }
}
