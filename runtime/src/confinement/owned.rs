//! A thread that an attacker owns, in builds for tests alone (feature `owned`): told by a signal, it makes system calls that no
//! guest should get a monitor to make, and the log says what became of them.
//!
//! ```text
//!  test ──signal: number of the attack, a pid──▶ thread ──calls──▶ kernel: refused, or caught by the thread's filter
//!                                                   └──▶ log: "owned: fs: open a file of the host: -2"
//! ```
//!
//! A call that the filter catches does not end the process here, as long as an attack is under way.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;

use super::line::Line;

/// Signal that has a thread make an attack.
const SIGNAL: libc::c_int = 43;
/// Bit of the attack's number that has a call which is caught end the process as always.
const FOR_GOOD: usize = 0x80;
/// Argument of the binary that makes the attack whose number follows, and a pid, in a process that is not confined.
const CONTROL: &str = "owned-control";

/// File that the test prepares, as are the next ones.
const FILE: &CStr = c"/run/runvm-owned/secret";
const FROM_BELOW: &CStr = c"../../../../../../../../run/runvm-owned/secret";
const MOUNT_POINT: &CStr = c"/run/runvm-owned/mount";
const MODULE: &CStr = c"/run/runvm-owned/module.ko";
const NODE: &CStr = c"/run/runvm-owned/node";
const NAMESPACE: &CStr = c"/proc/1/ns/net";
const PROGRAM: &CStr = c"/bin/sh";
/// Node that the guest makes in the root of its container; the next one is a link to it on the host.
const DISK: &CStr = c"/owned-disk";
const DISK_ON_HOST: &CStr = c"/run/runvm-owned/disk";

/// Result of a call that the filter caught.
const CAUGHT: i64 = -(libc::EPERM as i64);
/// Number of descriptors that are tried as places to go up from.
const DESCRIPTORS: i64 = 64;

thread_local! {
    static ATTACKS: Cell<bool> = const { Cell::new(false) };
    /// The call of this attack that the filter caught last.
    static CALL: Cell<Option<u32>> = const { Cell::new(None) };
}

/// An attack on what a pid names, or on what the test prepares; gives what the kernel gave.
type Attack = fn(i64) -> i64;

const LIST: [(&str, Attack); 20] = [
    ("open a file of the host", |_| open(libc::AT_FDCWD.into(), FILE)),
    ("open a file of the host from below", |_| {
        (libc::AT_FDCWD.into()..DESCRIPTORS).map(|fd| open(fd, FROM_BELOW)).max().unwrap_or_default()
    }),
    ("mount", |_| call(libc::SYS_mount, [at(c"none"), at(MOUNT_POINT), at(c"tmpfs"), 0, 0])),
    ("enter a namespace", |_| call(libc::SYS_setns, [open(libc::AT_FDCWD.into(), NAMESPACE).max(0), 0, 0, 0, 0])),
    ("make a namespace", |_| call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0, 0])),
    ("trace another process", |pid| call(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), pid, 0, 0, 0])),
    ("kill another process", |pid| call(libc::SYS_kill, [pid, libc::SIGUSR1.into(), 0, 0, 0])),
    ("kill a thread of another process", |pid| call(libc::SYS_tgkill, [pid, pid, libc::SIGUSR1.into(), 0, 0])),
    ("take a descriptor of another process", |pid| call(libc::SYS_pidfd_open, [pid, 0, 0, 0, 0])),
    ("make a raw socket", |_| {
        call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_RAW.into(), libc::IPPROTO_ICMP.into(), 0, 0])
    }),
    ("load a module", |_| call(libc::SYS_finit_module, [open(libc::AT_FDCWD.into(), MODULE).max(0), at(c""), 0, 0, 0])),
    ("open a disk by a node of the guest's", |_| {
        open(libc::AT_FDCWD.into(), DISK).max(open(libc::AT_FDCWD.into(), DISK_ON_HOST))
    }),
    ("make a node of a disk", |_| {
        let mode = i64::from(libc::S_IFBLK | 0o600);
        call(libc::SYS_mknodat, [libc::AT_FDCWD.into(), at(NODE), mode, libc::makedev(7, 0) as i64, 0])
    }),
    ("change the owner of a file of the host", |_| {
        call(libc::SYS_fchownat, [libc::AT_FDCWD.into(), at(FILE), 1000, 1000, 0])
    }),
    ("execute a program", |_| {
        let arguments = [PROGRAM.as_ptr(), c"-c".as_ptr(), c"exit 0".as_ptr(), std::ptr::null()];
        call(libc::SYS_execve, [at(PROGRAM), arguments.as_ptr() as i64, 0, 0, 0])
    }),
    ("make memory executable", |_| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        call(libc::SYS_mmap, [0, 4096, protection.into(), flags.into(), -1])
    }),
    ("load a program into the kernel", |_| {
        // A map of one element.
        let attributes = [2u32, 4, 4, 1, 0, 0, 0, 0];
        call(libc::SYS_bpf, [0, attributes.as_ptr() as i64, size_of_val(&attributes) as i64, 0, 0])
    }),
    ("make a ring of calls", |_| {
        let mut parameters = [0u64; 15];
        call(libc::SYS_io_uring_setup, [1, parameters.as_mut_ptr() as i64, 0, 0, 0])
    }),
    ("handle page faults", |_| call(libc::SYS_userfaultfd, [0, 0, 0, 0, 0])),
    ("change the root directory", |_| call(libc::SYS_chroot, [at(c"/"), 0, 0, 0, 0])),
];

fn at(text: &CStr) -> i64 {
    text.as_ptr() as i64
}

fn open(directory: i64, path: &CStr) -> i64 {
    call(libc::SYS_openat, [directory, at(path), libc::O_RDONLY.into(), 0, 0])
}

/// Makes a call; gives its result, or the negative number of an error.
fn call(number: libc::c_long, arguments: [i64; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: pointers among the arguments are to what lives across the call.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, 0) };
    if result >= 0 { result } else { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or_default()) }
}

/// Has this process listen to the signal.
///
/// # Errors
/// The kernel's.
pub fn listen() -> io::Result<()> {
    // SAFETY: a structure of numbers and pointers, for which zeros are good.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = attack as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler makes nothing but system calls, and keeps errno.
    let set = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Handler of the signal. Nothing in here allocates or locks.
extern "C" fn attack(_: libc::c_int, information: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO its information; errno is this thread's.
    let (value, errno) = unsafe { ((*information).si_value().sival_ptr as usize, libc::__errno_location()) };
    let Some((name, attack)) = LIST.get(value & 0x7f) else { return };
    // SAFETY: errno is there as long as the thread.
    let before = unsafe { *errno };
    ATTACKS.set(value & FOR_GOOD == 0);
    CALL.set(None);
    let result = attack((value >> 8) as i64);
    ATTACKS.set(false);
    let caught = CALL.get().filter(|_| result == CAUGHT);
    tell(name, result, caught);
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Says what became of an attack.
fn tell(attack: &str, result: i64, caught: Option<u32>) {
    let mut line = Line::begin("info");
    line.push("owned: ");
    line.push_thread();
    line.push(": ");
    line.push(attack);
    line.push(": ");
    match caught {
        Some(number) => {
            line.push("caught ");
            line.push_call(number);
        }
        None => {
            line.push(if result < 0 { "refused " } else { "done " });
            line.push_number(result.unsigned_abs() as u32);
        }
    }
    line.write();
}

/// Tells whether a call that the filter has caught is part of an attack. If so, the call gives an error.
pub fn is_attack(number: u32, context: *mut libc::c_void) -> bool {
    if !ATTACKS.get() {
        return false;
    }
    CALL.set(Some(number));
    // SAFETY: the kernel gives a handler with SA_SIGINFO the registers that it returns to.
    unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] = CAUGHT };
    true
}

/// Makes an attack in this process, if the command line wants that, and says what became of it.
pub fn control() -> Option<std::process::ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != CONTROL {
        return None;
    }
    let mut number = || arguments.next()?.parse::<i64>().ok();
    let (index, pid) = (number()?, number()?);
    let Some((name, attack)) = LIST.get(index as usize) else {
        println!("that is all");
        return Some(std::process::ExitCode::SUCCESS);
    };
    println!("{name}: {}", attack(pid));
    Some(std::process::ExitCode::SUCCESS)
}
