//! Disks of the host that a container is given, as open descriptors.
//!
//! The command opens them; the monitor opens nothing by a path.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, bail};
use rustix::fs::{FileType, Mode, OFlags, major, minor};
use rustix::io::Errno;

use crate::log;
use crate::plan::DiskPlan;

/// `_IO(0x12, 94)`; libc does not have it.
const BLKROGET: u32 = 0x125e;

/// An open block device.
pub struct Disk {
    /// Its descriptor.
    pub file: OwnedFd,
    /// Whether it is open for reading only.
    pub read_only: bool,
}

/// Opens each disk, for reading only where it may not or cannot be written.
///
/// # Errors
/// One that cannot be opened, or is another one by now.
pub fn open(plans: &[DiskPlan]) -> anyhow::Result<Vec<Disk>> {
    let open = |plan: &DiskPlan| open_one(plan).with_context(|| format!("linux.devices: block device {plan}"));
    plans.iter().map(open).collect()
}

fn open_one(plan: &DiskPlan) -> anyhow::Result<Disk> {
    let open = |access| rustix::fs::open(&plan.source, access | OFlags::CLOEXEC, Mode::empty());
    let writable = if plan.read_only { Err(Errno::ROFS) } else { open(OFlags::RDWR) };
    let (file, read_only) = match writable {
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => (open(OFlags::RDONLY).context("open it")?, true),
        writable => (writable.context("open it")?, false),
    };
    let found = rustix::fs::fstat(&file)?;
    let number = (major(found.st_rdev), minor(found.st_rdev));
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice || number != (plan.major, plan.minor) {
        bail!("it is another file by now");
    }
    let read_only = read_only || is_read_only(&file)?;
    if read_only && !plan.read_only {
        log::debug(&format!("block device {plan} can only be read"));
    }
    Ok(Disk { file, read_only })
}

/// Whether the kernel lets nobody write to the device, as it does only when somebody tries.
fn is_read_only(file: &OwnedFd) -> anyhow::Result<bool> {
    let mut read_only: libc::c_int = 0;
    // SAFETY: the request writes one number, which lives across the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &raw mut read_only) } {
        0 => Ok(read_only != 0),
        _ => Err(std::io::Error::last_os_error()).context("ask whether it is read-only"),
    }
}
