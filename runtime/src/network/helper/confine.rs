//! What the network helper is: CAP_NET_ADMIN, the folder of the tun device and some thirty system calls, and nothing else of the
//! host's.

use std::os::fd::OwnedFd;

use anyhow::{Context, anyhow};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Argument,
    SeccompFilter, SeccompRule,
};

/// Directory without anything of use, for a host without a tun device.
const NOTHING: &str = "/proc/self/fdinfo";

/// Gives up everything but what the helper needs. `devices` becomes the root directory; without
/// `seccomp` the kernel has no filters of system calls.
///
/// # Errors
/// Names what could not be given up.
pub fn enter(devices: Option<&OwnedFd>, seccomp: bool) -> anyhow::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).context("forbid core files")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("forbid to be traced")?;
    match devices {
        Some(devices) => rustix::process::fchdir(devices),
        None => rustix::process::chdir(NOTHING),
    }
    .and_then(|()| rustix::process::chroot("."))
    .context("leave the host's files")?;
    drop_capabilities().context("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).context("forbid new privileges")?;
    if seccomp {
        seccompiler::apply_filter(&filter()?).context("filter system calls")?;
    }
    Ok(())
}

fn drop_capabilities() -> anyhow::Result<()> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in all {
        // The first number that the kernel has no capability for ends it; without CAP_SETPCAP the set stays, and matters to
        // nobody who cannot execute a program.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    // A kernel without ambient capabilities gives none.
    let _ = rustix::thread::clear_ambient_capability_set();
    let own = CapabilitySet::NET_ADMIN;
    let sets = CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// A system call, and one value or more of one argument that it may have.
struct Only {
    call: libc::c_long,
    argument: u8,
    values: &'static [u64],
}

const fn only(call: libc::c_long, argument: u8, values: &'static [u64]) -> Only {
    Only { call, argument, values }
}

/// System calls with any arguments.
const ANY: [libc::c_long; 27] = [
    // Requests and replies, with descriptors.
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    // Netlink, and sockets to the resolver.
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    // Taps; the root directory is that of the tun device.
    libc::SYS_openat,
    // The list of UDP sockets, the port range, the log.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_write,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_getrandom,
    // Where the clock is no matter of user space alone.
    libc::SYS_clock_gettime,
    // Signals, which end it.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // The end.
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// System calls with some arguments.
const SOME: [Only; 3] = [
    only(libc::SYS_socket, 0, &[libc::AF_NETLINK as u64, libc::AF_INET as u64]),
    only(libc::SYS_ioctl, 1, &[libc::TUNSETIFF, libc::SIOCGIFINDEX, libc::FIONBIO]),
    only(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC as u64]),
];

/// The filter; a call that it does not know ends the process.
fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ANY.into_iter().map(|call| (call, Vec::new())).collect();
    for Only { call, argument, values } in SOME {
        let rule = |value: &u64| {
            let argument = Argument::new(argument, Length::Dword, Is::Eq, *value)?;
            SeccompRule::new(vec![argument])
        };
        rules.insert(call, values.iter().map(rule).collect::<Result<_, _>>()?);
    }
    let here = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, here)?;
    filter.try_into().map_err(|error| anyhow!("compile the filter: {error}"))
}
