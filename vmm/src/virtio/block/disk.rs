//! The disk behind the device: a descriptor of the host's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, SeekFrom};
use rustix::io::Errno;

/// Bytes of a sector, the unit of all addresses, whatever the size of the disk's blocks.
pub(super) const SECTOR: u64 = 512;
/// Largest block that Linux takes from a virtio disk: a page.
const MAX_BLOCK: u32 = 4096;
/// `_IO(0x12, 119)`; libc does not have it.
const BLKDISCARD: u32 = 0x1277;

/// A disk to be handed to a guest.
#[derive(Debug)]
pub struct Disk {
    /// A block device or a regular file, open for reading and, unless it is read-only, for writing.
    pub file: OwnedFd,
    /// Serial number by which the guest knows the disk: 1 to 20 printable characters.
    pub serial: String,
    /// Whether the guest may change nothing.
    pub read_only: bool,
}

impl Disk {
    /// Size of the disk and of its logical blocks, in bytes.
    pub(super) fn size(&self) -> io::Result<(u64, u32)> {
        let size = rustix::fs::seek(&self.file, SeekFrom::End(0))?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&self.file)?.st_mode);
        let block = match kind {
            FileType::BlockDevice => rustix::fs::ioctl_blksszget(&self.file)?,
            _ => SECTOR as u32,
        };
        if !block.is_power_of_two() || !(SECTOR as u32..=MAX_BLOCK).contains(&block) {
            return Err(io::Error::other(format!("its blocks have {block} bytes; a guest takes 512 to {MAX_BLOCK}")));
        }
        Ok((size, block))
    }

    /// Has the host store everything that was written.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    /// Tells the disk that these bytes are of no more use; a file has holes there then.
    pub(super) fn discard(&self, at: u64, bytes: u64) -> io::Result<()> {
        let range = [at, bytes];
        // SAFETY: the request reads two numbers, which live across the call.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOTTY) => self.clear(at, bytes, true),
            error => Err(error),
        }
    }

    /// Makes these bytes zeroes; with `unmap` they take no room any more, if the disk can do that.
    pub(super) fn clear(&self, at: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let by = |how| rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, at, bytes);
        match by(if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE }) {
            Err(Errno::OPNOTSUPP) if unmap => Ok(by(FallocateFlags::ZERO_RANGE)?),
            done => Ok(done?),
        }
    }
}
