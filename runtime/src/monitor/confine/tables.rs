//! Which system calls each kind of thread makes, and why.
//!
//! Nobody executes programs, mounts, traces, opens by handle, makes namespaces or executable memory, and nobody but the main
//! thread makes threads. Where a call does many things, its arguments are compared: requests of ioctl(2), commands of fcntl(2),
//! flags of clone(2), protections of memory.
//!
//! All threads of a process have one memory: who owns one of them has the others do what they may. So what the kinds may call
//! together bounds what a guest gets that has taken the monitor over, and the filter of one kind how it gets that far.

use syscalls::Sysno;

use crate::confinement::{Call, Filter, Program, absent, any, one_of, unseen, without};

const EXECUTABLE: u32 = libc::PROT_EXEC as u32;

// linux/kvm.h
const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;

/// linux/if_tun.h
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
/// linux/fs.h
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
/// Those with which it forks: nothing is shared, and no namespace is new.
const FORK: u32 = (libc::CLONE_CHILD_CLEARTID | libc::CLONE_CHILD_SETTID | libc::SIGCHLD) as u32;

/// The signal that has a vCPU leave the guest.
pub const KICK: u32 = 34;

/// What every thread does: memory, locks, its log lines, its end.
const EVERY: &[Call] = &[
    any(Sysno::futex),
    // The allocator; never for code.
    without(Sysno::mmap, 2, EXECUTABLE),
    without(Sysno::mprotect, 2, EXECUTABLE),
    any(Sysno::munmap),
    any(Sysno::mremap),
    any(Sysno::brk),
    any(Sysno::madvise),
    // Seeds of hash maps.
    any(Sysno::getrandom),
    // Lines of the log, and wake-ups of other threads.
    any(Sysno::write),
    any(Sysno::close),
    // A lock that is held for a moment: the standard library's channels wait so on several processors.
    unseen(any(Sysno::sched_yield), "hosts with several processors"),
    // The time, on hosts whose clock a process cannot read by itself.
    unseen(any(Sysno::clock_gettime), "hosts whose clock a process cannot read by itself"),
    // After a signal: the kick of a vCPU.
    any(Sysno::rt_sigreturn),
    unseen(any(Sysno::restart_syscall), "a wait that the process's being stopped interrupts"),
    // The end of a thread, and of the process.
    any(Sysno::sigaltstack),
    any(Sysno::rt_sigprocmask),
    any(Sysno::exit),
    any(Sysno::exit_group),
];

/// The loop of a device's thread: its rings.
const DEVICE: &[Call] = &[any(Sysno::epoll_wait), any(Sysno::epoll_ctl), any(Sysno::epoll_create1), any(Sysno::read)];

/// Interrupts of the guest.
const INTERRUPT: Call = one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE]);

const VCPU: &[Call] = &[one_of(Sysno::ioctl, 1, &[KVM_RUN, KVM_GET_REGS, KVM_IRQ_LINE])];

const VSOCK: &[Call] = &[
    INTERRUPT,
    // Streams: to this process's other threads, and connections that the monitor has made.
    any(Sysno::socketpair),
    any(Sysno::recvfrom),
    any(Sysno::recvmsg),
    any(Sysno::sendto),
    any(Sysno::sendmsg),
    any(Sysno::readv),
    any(Sysno::writev),
    any(Sysno::shutdown),
    one_of(Sysno::fcntl, 1, &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32]),
];

const FS: &[Call] = &[
    INTERRUPT,
    // Names and attributes, below descriptors of shares.
    any(Sysno::openat),
    any(Sysno::statx),
    any(Sysno::fstatfs),
    any(Sysno::readlinkat),
    any(Sysno::getdents64),
    any(Sysno::lseek),
    any(Sysno::fchownat),
    any(Sysno::fchmod),
    any(Sysno::fchmodat),
    any(Sysno::utimensat),
    any(Sysno::getxattr),
    any(Sysno::listxattr),
    any(Sysno::setxattr),
    any(Sysno::removexattr),
    // New objects belong to the guest's caller.
    any(Sysno::umask),
    any(Sysno::setfsuid),
    any(Sysno::setfsgid),
    any(Sysno::mkdirat),
    any(Sysno::mknodat),
    any(Sysno::symlinkat),
    any(Sysno::linkat),
    any(Sysno::renameat2),
    any(Sysno::unlinkat),
    // Device nodes are made by another process.
    any(Sysno::sendmsg),
    // Data.
    any(Sysno::preadv),
    any(Sysno::pwritev2),
    any(Sysno::ftruncate),
    any(Sysno::fallocate),
    any(Sysno::copy_file_range),
    any(Sysno::fsync),
    any(Sysno::fdatasync),
    any(Sysno::syncfs),
    // Locks.
    any(Sysno::flock),
    one_of(
        Sysno::fcntl,
        1,
        &[libc::F_GETFL as u32, libc::F_DUPFD_CLOEXEC as u32, libc::F_OFD_GETLK as u32, libc::F_OFD_SETLK as u32],
    ),
];

const NET: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE, TUNSETOFFLOAD]),
    any(Sysno::readv),
    any(Sysno::writev),
    // Whether the tap has room.
    any(Sysno::ppoll),
    // The pace at which the tap's offloads change.
    any(Sysno::clock_nanosleep),
];

const BLOCK: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE, BLKDISCARD]),
    any(Sysno::preadv),
    any(Sysno::pwritev2),
    any(Sysno::fdatasync),
    any(Sysno::fallocate),
];

/// The process that makes device nodes, each as its owner.
const NODES: &[Call] =
    &[any(Sysno::recvmsg), any(Sysno::mknodat), any(Sysno::umask), any(Sysno::setfsuid), any(Sysno::setfsgid)];

/// The entropy device and the balloon.
const SMALL: &[Call] = &[INTERRUPT];

/// The main thread, whose loop takes what commands, the agent and the network helper say; threads that move standard streams and
/// frames of passt(1), wait for devices or connect to sockets of the host, which it starts; and what threads of hot-plugged NICs
/// make before they have a filter of their own, which comes on top of this one.
const MAIN: &[Call] = &[
    one_of(
        Sysno::ioctl,
        1,
        &[
            KVM_IRQ_LINE,
            // A NIC that is hot-plugged.
            KVM_IOEVENTFD,
            TUNGETIFF,
            TUNSETVNETHDRSZ,
            TUNSETOFFLOAD,
            libc::FIONBIO as u32,
            libc::TIOCGWINSZ as u32,
        ],
    ),
    any(Sysno::readv),
    any(Sysno::writev),
    any(Sysno::ppoll),
    // The pace at which a tap's offloads change, and the last resort's patience.
    any(Sysno::clock_nanosleep),
    // Connections of commands, streams of the guest, published ports.
    any(Sysno::accept4),
    any(Sysno::recvfrom),
    any(Sysno::recvmsg),
    any(Sysno::sendto),
    any(Sysno::sendmsg),
    any(Sysno::socketpair),
    any(Sysno::shutdown),
    any(Sysno::getsockopt),
    // Sockets of the host are connected to: no others can be made.
    one_of(Sysno::socket, 0, &[libc::AF_UNIX as u32]),
    any(Sysno::setsockopt),
    any(Sysno::connect),
    one_of(Sysno::fcntl, 1, &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32]),
    any(Sysno::eventfd2),
    // The guest's clock.
    any(Sysno::timerfd_create),
    any(Sysno::timerfd_settime),
    // Signals that are passed on, and the kick of a vCPU; no process of the host is in sight.
    any(Sysno::rt_sigaction),
    any(Sysno::getpid),
    one_of(Sysno::tgkill, 2, &[KICK]),
    // Threads. What clone3(2) is asked for lies in memory, so the C library is to take clone(2).
    absent(Sysno::clone3),
    one_of(Sysno::clone, 0, &[THREAD, FORK]),
    any(Sysno::set_robust_list),
    any(Sysno::rseq),
    any(Sysno::sched_getaffinity),
    any(Sysno::gettid),
    one_of(Sysno::prctl, 0, &[libc::PR_SET_NAME as u32]),
    // Threads of hot-plugged NICs give up more.
    any(Sysno::capget),
    any(Sysno::capset),
    one_of(Sysno::seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER]),
    // A process that the host's kernel kills for lack of memory, and the limits for that.
    any(Sysno::pread64),
    any(Sysno::pwrite64),
    any(Sysno::alarm),
    any(Sysno::wait4),
];

/// The process that stands for a container in another one's VM.
const PROXY: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[libc::TIOCGWINSZ as u32, libc::FIONBIO as u32]),
    any(Sysno::recvfrom),
    any(Sysno::recvmsg),
    any(Sysno::sendto),
    any(Sysno::sendmsg),
    any(Sysno::socketpair),
    any(Sysno::shutdown),
    one_of(Sysno::fcntl, 1, &[libc::F_GETFL as u32, libc::F_SETFL as u32, libc::F_DUPFD_CLOEXEC as u32]),
    any(Sysno::rt_sigaction),
    one_of(Sysno::clone, 0, &[FORK]),
    any(Sysno::set_robust_list),
    any(Sysno::pread64),
    any(Sysno::pwrite64),
    any(Sysno::alarm),
    any(Sysno::wait4),
];

/// Kinds of threads, by what they may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs a virtual CPU.
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
            Self::Vcpu => &[VCPU, EVERY],
            Self::Vsock => &[VSOCK, DEVICE, EVERY],
            Self::Fs => &[FS, DEVICE, EVERY],
            Self::Net => &[NET, DEVICE, EVERY],
            Self::Block => &[BLOCK, DEVICE, EVERY],
            Self::Small => &[SMALL, DEVICE, EVERY],
            Self::Nodes => &[NODES, EVERY],
            Self::Main => &[MAIN, DEVICE, EVERY],
            Self::Proxy => &[PROXY, DEVICE, EVERY],
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
