//! Which system calls each kind of thread makes, and why.
//!
//! Nobody executes programs, mounts, traces, opens by handle, makes threads, namespaces or executable memory. Where a call does
//! many things, its arguments are compared: requests of ioctl(2), commands of fcntl(2), protections of memory.

use syscalls::Sysno;

/// A system call that a thread may make.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The call.
    pub number: Sysno,
    /// With which arguments.
    pub when: When,
}

/// Arguments with which a call is allowed.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// All.
    Always,
    /// Those whose argument of this index is one of these.
    OneOf(u32, &'static [u64]),
    /// Those whose argument of this index has none of these bits.
    Without(u32, u64),
}

const fn any(number: Sysno) -> Call {
    Call { number, when: When::Always }
}

const fn one_of(number: Sysno, argument: u32, values: &'static [u64]) -> Call {
    Call { number, when: When::OneOf(argument, values) }
}

const fn without(number: Sysno, argument: u32, bits: u64) -> Call {
    Call { number, when: When::Without(argument, bits) }
}

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

// linux/kvm.h
const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_IRQ_LINE: u64 = 0x4008_ae61;

/// linux/if_tun.h
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// linux/fs.h
const BLKDISCARD: u64 = 0x1277;

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
    any(Sysno::sched_yield),
    // The time, on hosts whose clock a process cannot read by itself.
    any(Sysno::clock_gettime),
    // After a signal: the kick of a vCPU.
    any(Sysno::rt_sigreturn),
    any(Sysno::restart_syscall),
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
    one_of(Sysno::fcntl, 1, &[libc::F_GETFL as u64, libc::F_SETFL as u64, libc::F_DUPFD_CLOEXEC as u64]),
];

const FS: &[Call] = &[
    INTERRUPT,
    // Names and attributes, below descriptors of shares.
    any(Sysno::openat),
    any(Sysno::statx),
    any(Sysno::fstat),
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
        &[libc::F_GETFL as u64, libc::F_DUPFD_CLOEXEC as u64, libc::F_OFD_GETLK as u64, libc::F_OFD_SETLK as u64],
    ),
];

const NET: &[Call] = &[
    one_of(Sysno::ioctl, 1, &[KVM_IRQ_LINE, TUNSETOFFLOAD]),
    any(Sysno::readv),
    any(Sysno::writev),
    // Whether the tap has room, as C libraries and rustix ask.
    any(Sysno::poll),
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
}

impl Kind {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 7] = [Self::Vcpu, Self::Vsock, Self::Fs, Self::Net, Self::Block, Self::Small, Self::Nodes];

    /// Name of the kind, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Net => "net",
            Self::Block => "block",
            Self::Small => "device",
            Self::Nodes => "nodes",
        }
    }

    /// What threads of the kind may call.
    pub fn calls(self) -> impl Iterator<Item = &'static Call> {
        let (own, device) = match self {
            Self::Vcpu => (VCPU, &[][..]),
            Self::Vsock => (VSOCK, DEVICE),
            Self::Fs => (FS, DEVICE),
            Self::Net => (NET, DEVICE),
            Self::Block => (BLOCK, DEVICE),
            Self::Small => (SMALL, DEVICE),
            Self::Nodes => (NODES, &[][..]),
        };
        own.iter().chain(device).chain(EVERY)
    }
}
