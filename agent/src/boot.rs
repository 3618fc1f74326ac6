//! The first things PID 1 does: mounts, limits, the loopback interface.

use crate::guest_paths::GuestPaths;
use crate::log;
use crate::sys;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::PathBuf;

const DEV_NULL_FLAGS: u64 = libc::MS_NOSUID | libc::MS_NOEXEC;
const PSEUDO: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Mounts, in order: source and type, target, flags, options.
const MOUNTS: [(&str, &str, u64, &str); 7] = [
    ("proc", "/proc", PSEUDO, ""),
    ("sysfs", "/sys", PSEUDO, ""),
    ("devtmpfs", "/dev", DEV_NULL_FLAGS, "mode=0755"),
    ("devpts", "/dev/pts", DEV_NULL_FLAGS, "newinstance,ptmxmode=0666,mode=0620"),
    ("tmpfs", "/run", libc::MS_NOSUID | libc::MS_NODEV, "mode=0755"),
    ("tmpfs", "/tmp", libc::MS_NOSUID | libc::MS_NODEV, ""),
    ("cgroup2", "/sys/fs/cgroup", PSEUDO, ""),
];

/// How many descriptors the agent may have, streams and processes need some each; and how far a
/// process of a container may raise its own limit.
const MAX_DESCRIPTORS: (u64, u64) = (1 << 16, 1 << 20);

/// Directories of a guest that this module has prepared.
pub fn paths() -> GuestPaths {
    GuestPaths {
        shares: PathBuf::from("/run/shares"),
        more_shares: PathBuf::from("/run/more-shares"),
        shares_tag: Some("shares".into()),
        rootfs: PathBuf::from("/run/rootfs"),
        cgroup_root: PathBuf::from("/sys/fs/cgroup"),
        sockets: PathBuf::from("/run/sockets"),
    }
}

/// Makes a usable system of a bare kernel. What fails is logged and missed later by those who need it.
pub fn prepare() {
    let root = leave_initramfs();
    for (kind, target, flags, data) in MOUNTS {
        // Some targets are in the initrd, some in what was just mounted.
        let _ = rustix::fs::mkdir(target, Mode::from_raw_mode(0o755));
        report(target, sys::mount(kind, target, kind, flags, data));
    }
    log::init();
    report("leave initramfs", root);
    let paths = paths();
    for directory in [&paths.shares, &paths.rootfs, &paths.sockets] {
        report("mkdir", rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)));
    }
    // The kernel's threads have the same root and working directory otherwise, and setns(2) would change theirs.
    // SAFETY: nothing of a file-system context has to do with memory or descriptors.
    report("unshare", unsafe { unshare_unsafe(UnshareFlags::FS) });
    protect();
    report("lo", sys::link_up("lo"));
}

/// pivot_root refuses the initramfs itself as the old root, so the agent moves onto a mount above it:
/// a second view of the same files.
fn leave_initramfs() -> Result<(), Errno> {
    sys::mount("/", "/run", "", libc::MS_BIND, "")?;
    rustix::process::chdir("/run")?;
    sys::mount(".", "/", "", libc::MS_MOVE, "")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

/// Makes the agent the last process to go when memory runs out, and keeps processes of containers from looking into it
/// or into a child of it that has not executed its program yet.
fn protect() {
    let score = sys::write_file("/proc/self/oom_score_adj", "-1000");
    report("oom_score_adj", score.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)));
    let behavior = rustix::process::DumpableBehavior::NotDumpable;
    let (soft, hard) = MAX_DESCRIPTORS;
    report("rlimit", sys::set_rlimit(0, libc::RLIMIT_NOFILE, soft, hard));
    report("dumpable", rustix::process::set_dumpable_behavior(behavior));
}

fn report(what: &str, result: Result<(), Errno>) {
    if let Err(errno) = result {
        log::error(&format!("{what}: {errno}"));
    }
}
