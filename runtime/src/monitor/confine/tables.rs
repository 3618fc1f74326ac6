//! Which system calls each kind of thread makes, and why.
//!
//! Nobody executes programs, mounts, traces, opens by handle, makes namespaces or executable memory, and nobody but the main
//! thread makes threads. Where a call does many things, its arguments are compared: requests of ioctl(2), commands of fcntl(2),
//! flags of clone(2), protections of memory.
//!
//! All threads of a process have one memory: who owns one of them has the others do what they may. So what the kinds may call
//! together bounds what a guest gets that has taken the monitor over, and the filter of one kind how it gets that far.

use syscalls::Sysno;

use crate::confinement::groups::{BASE, HANDOVER, MEMORY, MESSAGES, STREAMS};
use crate::confinement::{Call, Filter, Program, absent, any, one_of, unseen, without};

// linux/kvm.h
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;

// linux/if_tun.h
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
// linux/fs.h
const BLKDISCARD: u32 = 0x1277;

/// Flags with which the C library makes a thread: all that can be shared is.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u32;
/// Flags with which the C library forks: nothing is shared, and no namespace is new.
const FORK: u32 = (libc::CLONE_CHILD_CLEARTID | libc::CLONE_CHILD_SETTID | libc::SIGCHLD) as u32;

/// Signal that has a vCPU leave the guest.
pub const KICK: u32 = 34;

/// Calls of every thread of a machine, be it a vCPU's or a device's. None of them ends before the process does.
const MACHINE: &[Call] = &[unseen(any(Sysno::rt_sigreturn), "a signal that comes while the main thread has one")];

/// Calls of the loop in which a device's thread, the main thread or a join proxy waits for events.
const LOOP: &[Call] = &[any(Sysno::epoll_wait), any(Sysno::epoll_ctl), any(Sysno::read)];

/// Call that interrupts the guest.
const INTERRUPT: Call = one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE]);

/// Call by which a wait that is bounded in time goes on after the process was stopped.
const RESUMED: Call = unseen(any(Sysno::restart_syscall), "a wait that is interrupted as the process is stopped");

/// Calls of a vCPU's thread, which also carries out writes to devices' registers, and serves requests for files that end at once.
const VCPU: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[KVM_RUN, KVM_GET_REGS, KVM_IRQ_LINE]),
    RESUMED,
    // The first says whether what is read is in memory.
    any(Sysno::preadv2),
    any(Sysno::preadv),
    any(Sysno::pwritev2),
];

/// Calls of the socket device's thread: streams to other threads, and connections that the monitor has made.
const VSOCK: &[Call] = &[
    INTERRUPT,
    any(Sysno::socketpair),
    any(Sysno::recvmsg),
    any(Sysno::sendmsg),
    any(Sysno::shutdown),
    any(Sysno::close),
];

/// Calls that read and write what a disk has.
const DATA: &[Call] = &[any(Sysno::preadv), any(Sysno::pwritev2), any(Sysno::fallocate), any(Sysno::fdatasync)];

/// Calls by which a new object belongs to the guest's caller from its beginning.
const AS_OWNER: [Call; 3] = [any(Sysno::umask), any(Sysno::setfsuid), any(Sysno::setfsgid)];

/// Calls of the thread that serves files, besides those that vCPUs make for files as well.
const FS: &[Call] = &[
    INTERRUPT,
    // Device nodes are made by another process.
    any(Sysno::mknodat),
    any(Sysno::sendmsg),
    any(Sysno::ftruncate),
    any(Sysno::copy_file_range),
    any(Sysno::fsync),
    any(Sysno::syncfs),
    // Events of what the guest watches. The group has no rights over more than the objects that are marked in it.
    any(Sysno::fanotify_init),
    any(Sysno::fanotify_mark),
    any(Sysno::name_to_handle_at),
];

/// Calls by which files are served.
const FILES: [Call; 21] = [
    // Names and attributes, below descriptors of shares.
    any(Sysno::openat),
    any(Sysno::statx),
    any(Sysno::fstatfs),
    any(Sysno::readlinkat),
    any(Sysno::getdents64),
    any(Sysno::lseek),
    any(Sysno::fchownat),
    any(Sysno::fchmodat),
    any(Sysno::utimensat),
    any(Sysno::getxattr),
    any(Sysno::listxattr),
    any(Sysno::setxattr),
    any(Sysno::removexattr),
    any(Sysno::mkdirat),
    any(Sysno::symlinkat),
    any(Sysno::linkat),
    any(Sysno::renameat2),
    any(Sysno::unlinkat),
    any(Sysno::close),
    // Locks.
    any(Sysno::flock),
    one_of(
        Sysno::fcntl,
        1,
        &[libc::F_GETFL as u32, libc::F_DUPFD_CLOEXEC as u32, libc::F_OFD_GETLK as u32, libc::F_OFD_SETLK as u32],
    ),
];

/// Calls of [`FILES`] as the device's own thread makes them.
const FILES_LEFT: &[Call] = &all_unseen(FILES, LEFT);
/// Calls of [`AS_OWNER`] as the device's own thread makes them.
const AS_OWNER_LEFT: &[Call] = &all_unseen(AS_OWNER, LEFT);

/// Calls of the device's own thread that read and write what a file has.
const FILE_DATA: &[Call] =
    &[any(Sysno::preadv), unseen(any(Sysno::pwritev2), LEFT), any(Sysno::fallocate), any(Sysno::fdatasync)];

/// Reason why no test sees these calls of the device's own thread: mostly vCPUs make them.
const LEFT: &str = "shares on network file systems, and requests of vCPUs that find the device busy";

/// These calls, which no test sees for this reason.
const fn all_unseen<const COUNT: usize>(mut calls: [Call; COUNT], why: &'static str) -> [Call; COUNT] {
    let mut index = 0;
    while index < COUNT {
        calls[index] = unseen(calls[index], why);
        index += 1;
    }
    calls
}

/// Calls that move frames from and to a tap.
const FRAMES: &[Call] = &[any(Sysno::readv), any(Sysno::writev)];

/// Calls of a network device's thread.
const NET: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE, TUNSETOFFLOAD]),
    any(Sysno::close),
    unseen(any(Sysno::ppoll), "a tap that is gone, and a guest that changes its offloads all the time"),
];

/// Calls of a disk's thread.
const BLOCK: &[Call] = &[one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE, BLKDISCARD])];

/// Calls of the threads of the entropy device, and of the balloon.
const SMALL: &[Call] = &[INTERRUPT, any(Sysno::getrandom), any(Sysno::madvise)];

/// Calls of the process that makes device nodes.
const NODES: &[Call] = &[
    any(Sysno::mknodat),
    any(Sysno::recvmsg),
    any(Sysno::close),
    // The end of an attack that a test makes.
    #[cfg(feature = "owned")]
    any(Sysno::rt_sigreturn),
];

/// Calls by which a process is made that the host's kernel kills for lack of memory, and its limits for that.
const OUT_OF_MEMORY: &[Call] = &[any(Sysno::pread64), any(Sysno::pwrite64), any(Sysno::alarm), any(Sysno::wait4)];

/// Calls of the C library's at the beginning of a thread or a process that it does without: this process has no robust locks, and
/// no threads that are bound to processors.
const NEEDLESS: &[Call] = &[absent(Sysno::set_robust_list), absent(Sysno::sched_getaffinity)];

/// Calls for signals that are passed on to the guest.
const SIGNALS: &[Call] = &[any(Sysno::rt_sigaction), any(Sysno::rt_sigreturn)];

/// Calls of threads that the main thread starts, at their beginning and their end.
const THREADS: &[Call] = &[
    // What clone3(2) is asked for lies in memory, so the C library is to take clone(2).
    absent(Sysno::clone3),
    one_of(Sysno::clone, 0, &[THREAD, FORK]),
    without(Sysno::mprotect, 2, libc::PROT_EXEC as u32),
    any(Sysno::rseq),
    any(Sysno::rt_sigprocmask),
    any(Sysno::gettid),
    one_of(Sysno::prctl, 0, &[libc::PR_SET_NAME as u32]),
    any(Sysno::sigaltstack),
    any(Sysno::madvise),
    any(Sysno::exit),
];

/// Calls of the main thread, whose loop takes what commands, the agent and the network helper say; of threads that move standard
/// streams and frames of passt(1), wait for devices or connect to sockets of the host, which it starts; and of threads of
/// hot-plugged NICs before they have a filter of their own, which comes on top of this one.
const MAIN: &[Call] = &[
    one_of(
        Sysno::ioctl,
        1,
        &[
            KVM_IRQ_LINE,
            // A NIC or a file-system device that is hot-plugged.
            KVM_IOEVENTFD,
            TUNGETIFF,
            TUNSETVNETHDRSZ,
            TUNSETOFFLOAD,
            libc::FIONBIO as u32,
            libc::TIOCGWINSZ as u32,
        ],
    ),
    RESUMED,
    any(Sysno::close),
    any(Sysno::ppoll),
    // Connections of commands, streams of the guest, published ports.
    any(Sysno::accept4),
    any(Sysno::getsockopt),
    // Sockets of the host are connected to: no others can be made.
    one_of(Sysno::socket, 0, &[libc::AF_UNIX as u32]),
    any(Sysno::setsockopt),
    any(Sysno::connect),
    // The guest's clock.
    any(Sysno::timerfd_settime),
    // The kick of a vCPU; no process of the host is in sight.
    one_of(Sysno::tgkill, 2, &[KICK]),
    // Threads of hot-plugged NICs wait for events of their own, and give up more.
    any(Sysno::eventfd2),
    any(Sysno::epoll_create1),
    any(Sysno::capset),
    one_of(Sysno::seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER]),
    any(Sysno::getrandom),
];

/// Calls of the process that stands for a container in another one's VM.
const PROXY: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[libc::TIOCGWINSZ as u32, libc::FIONBIO as u32]),
    one_of(Sysno::clone, 0, &[FORK]),
    any(Sysno::close),
    any(Sysno::sigaltstack),
];

/// Kinds of threads, by what they may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs a virtual CPU, and serves files.
    Vcpu,
    /// Serves the socket device.
    Vsock,
    /// Serves files.
    Fs,
    /// Serves a network device.
    Net,
    /// Serves a disk.
    Block,
    /// Serves another device.
    Small,
    /// Makes device nodes, in a process of its own.
    Nodes,
    /// Everything else of the monitor.
    Main,
    /// Stands for a joined container.
    Proxy,
}

impl Kind {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 9] =
        [Self::Vcpu, Self::Vsock, Self::Fs, Self::Net, Self::Block, Self::Small, Self::Nodes, Self::Main, Self::Proxy];

    /// What threads of the kind may call.
    pub const fn calls(self) -> &'static [&'static [Call]] {
        match self {
            Self::Vcpu => &[VCPU, &FILES, &AS_OWNER, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Vsock => &[VSOCK, LOOP, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Fs => &[FS, FILES_LEFT, AS_OWNER_LEFT, FILE_DATA, LOOP, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Net => &[NET, FRAMES, LOOP, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Block => &[BLOCK, DATA, LOOP, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Small => &[SMALL, LOOP, MACHINE, HANDOVER, BASE, MEMORY],
            Self::Nodes => &[NODES, &AS_OWNER, BASE, MEMORY],
            Self::Main => &[
                MAIN,
                FRAMES,
                THREADS,
                NEEDLESS,
                SIGNALS,
                OUT_OF_MEMORY,
                MESSAGES,
                STREAMS,
                LOOP,
                HANDOVER,
                BASE,
                MEMORY,
            ],
            Self::Proxy => &[PROXY, NEEDLESS, SIGNALS, OUT_OF_MEMORY, MESSAGES, LOOP, BASE, MEMORY],
        }
    }

    /// The filter for threads of the kind.
    pub fn filter(self) -> Filter {
        let (name, program) = match self {
            Self::Vcpu => ("vcpu", const { &Program::new(Self::Vcpu.calls()) }),
            Self::Vsock => ("vsock", const { &Program::new(Self::Vsock.calls()) }),
            Self::Fs => ("fs", const { &Program::new(Self::Fs.calls()) }),
            Self::Net => ("net", const { &Program::new(Self::Net.calls()) }),
            Self::Block => ("block", const { &Program::new(Self::Block.calls()) }),
            Self::Small => ("device", const { &Program::new(Self::Small.calls()) }),
            Self::Nodes => ("nodes", const { &Program::new(Self::Nodes.calls()) }),
            Self::Main => ("main", const { &Program::new(Self::Main.calls()) }),
            Self::Proxy => ("proxy", const { &Program::new(Self::Proxy.calls()) }),
        };
        Filter { name, program }
    }
}
