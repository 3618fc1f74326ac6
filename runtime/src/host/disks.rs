//! Disks of the host that a container is given, as open descriptors.
//!
//! The command opens them; the monitor opens nothing by a path.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, bail};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, major, minor};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vmm::virtio::block;

use super::file_id;
use crate::ipc::Descriptor;
use crate::log;
use crate::plan::{DiskPlan, MAX_DISKS, NICS, OWN_DEVICES};

// What the plan takes a VM for, the VMM can make.
const _: () = assert!(OWN_DEVICES + NICS + MAX_DISKS <= vmm::MAX_DEVICES);

/// `_IO(0x12, 94)`; libc does not have it.
const BLKROGET: u32 = 0x125e;

/// An open block device or image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Disk {
    /// Its serial number in the guest.
    pub serial: String,
    /// Its descriptor.
    pub file: Descriptor,
    /// Whether it is open for reading only.
    pub read_only: bool,
}

impl Disk {
    /// As the virtual machine has it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn into_device(self) -> std::io::Result<block::Disk> {
        Ok(block::Disk { file: self.file.into_owned()?, serial: self.serial, read_only: self.read_only })
    }
}

/// Opens each disk, for reading only where it may not or cannot be written.
///
/// # Errors
/// One that cannot be opened, or is another one by now.
pub fn open(plans: &[DiskPlan]) -> anyhow::Result<Vec<Disk>> {
    let open = |plan: &DiskPlan| open_one(plan).with_context(|| plan.to_string());
    plans.iter().map(open).collect()
}

fn open_one(plan: &DiskPlan) -> anyhow::Result<Disk> {
    let place = rustix::fs::open(&plan.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("open it")?;
    check(&place, plan)?;
    let path = file_id::path(&place);
    let open = |access| rustix::fs::open(&path, access | OFlags::CLOEXEC, Mode::empty());
    let writable = if plan.read_only { Err(Errno::ROFS) } else { open(OFlags::RDWR) };
    let (file, read_only) = match writable {
        Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => (open(OFlags::RDONLY).context("open it")?, true),
        writable => (writable.context("open it")?, false),
    };
    let read_only = match plan.device {
        Some(_) => read_only || is_read_only(&file)?,
        None => lock(&file, read_only).map(|()| read_only)?,
    };
    if read_only && !plan.read_only {
        log::debug(&format!("{plan} can only be read"));
    }
    Ok(Disk { serial: plan.serial.clone(), file: file.into(), read_only })
}

/// Refuses what is not the node or image of the plan, before anything is done with it.
fn check(place: &OwnedFd, plan: &DiskPlan) -> anyhow::Result<()> {
    if let Some(image) = plan.image {
        return file_id::check(place, image, &plan.source);
    }
    let found = rustix::fs::fstat(place)?;
    let number = (major(found.st_rdev), minor(found.st_rdev));
    match FileType::from_raw_mode(found.st_mode) {
        FileType::BlockDevice if plan.device == Some(number) => Ok(()),
        _ => bail!("{} has been replaced by another file meanwhile: try again", plan.source.display()),
    }
}

/// Two kernels that write to one image destroy what is on it. The lock is held as long as somebody has the descriptor.
fn lock(image: &OwnedFd, read_only: bool) -> anyhow::Result<()> {
    let how = if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match rustix::fs::flock(image, how) {
        Err(Errno::WOULDBLOCK) => {
            bail!("it is in use (locked by another process); it can be shared only if all users open it read-only")
        }
        locked => locked.context("lock it"),
    }
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
