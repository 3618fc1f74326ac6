//! Calls that several kinds of threads make for the same reason.

use syscalls::Sysno;

use super::calls::{Call, any, one_of, unseen, without};

/// Why the allocator's calls need not be seen: any thread may be the one for which the one heap of the process grows.
const HEAP: &str = "the moments at which the heap of the process grows or shrinks";

/// Calls of the allocator, which gives no memory for code.
pub const MEMORY: &[Call] = &[
    unseen(without(Sysno::mmap, 2, libc::PROT_EXEC as u32), HEAP),
    unseen(any(Sysno::munmap), HEAP),
    unseen(any(Sysno::mremap), HEAP),
    unseen(any(Sysno::brk), HEAP),
];

/// Calls for lines of the log, wake-ups and answers, and for the end of the process.
pub const BASE: &[Call] = &[
    unseen(any(Sysno::write), "lines of the log, which few threads have anything for"),
    unseen(any(Sysno::clock_gettime), "hosts whose clock a process cannot read by itself"),
    unseen(any(Sysno::exit_group), "the end after a call that is none of the thread's"),
];

/// Calls by which threads of one process hand each other work.
pub const HANDOVER: &[Call] = &[
    any(Sysno::futex),
    // The standard library's channels wait so for a moment.
    unseen(any(Sysno::sched_yield), "hosts with several processors"),
];

/// Calls that pass messages on between processes.
pub const MESSAGES: &[Call] =
    &[any(Sysno::socketpair), any(Sysno::recvfrom), any(Sysno::recvmsg), any(Sysno::sendto), any(Sysno::sendmsg)];

/// Calls besides messages on streams between the guest and processes of the host, and on connections of commands.
pub const STREAMS: &[Call] = &[
    any(Sysno::shutdown),
    one_of(Sysno::fcntl, 1, &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32]),
];
