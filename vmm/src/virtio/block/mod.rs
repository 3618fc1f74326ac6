//! Block device (virtio 1.2, section 5.2): a disk of the host's is a disk of the guest's.
//!
//! The device's thread serves one ring in order: bytes go between the host's page cache and guest memory, with no
//! copy of ours. The cache is written back when the guest flushes; a driver that cannot flush gets each write on the
//! disk before its answer. Nothing is assumed of what the guest asks: sectors are checked against the capacity that
//! the disk had at the start, and no request makes the host allocate anything.
//!
//! The guest tells disks apart by their serial numbers (`/sys/block/vdX/serial`).
//!
//! # System calls
//!
//! The worker makes these: `preadv`, `pwritev2`, `fdatasync`, `fallocate`, `ioctl(BLKDISCARD)`.

mod disk;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::io::{read, write};
use super::queue::{Chain, Outcome};
use super::{Context, Device, Error, Event};
pub use disk::Disk;
use disk::SECTOR;

/// A request has two descriptors besides its data: 126 pages at least, half a MiB.
const QUEUE_SIZES: [u16; 1] = [128];
/// Most segments of data of one request.
const SEGMENTS: u32 = QUEUE_SIZES[0] as u32 - 2;
/// `struct virtio_blk_req` before its data: type, reserved, first sector.
const HEADER: usize = 16;
/// Bytes of a serial number (`VIRTIO_BLK_ID_BYTES`).
const SERIAL: usize = 20;
/// `struct virtio_blk_discard_write_zeroes`: first sector, sectors, flags.
const RANGE: usize = 16;
/// Most sectors to be discarded or zeroed at once: 128 MiB, so that one request does not keep the others waiting for long.
const RANGE_SECTORS: u32 = 1 << 18;
/// Flag of a range: the sectors need not stay allocated.
const UNMAP: u32 = 1;
/// Version of what [`Block::save`] writes.
const VERSION: u32 = 1;

/// The block device.
pub struct Block {
    disk: Disk,
    /// Size in sectors, as it was at the start.
    capacity: u64,
    block_size: u32,
    /// Whether each write must be on the disk before its answer, since the driver will not flush.
    write_through: bool,
}

/// Why a request failed: the status that the guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// `VIRTIO_BLK_S_IOERR`.
    Io = 1,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported = 2,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOTTY) => Self::Unsupported,
            _ => Self::Io,
        }
    }
}

impl Block {
    /// A device for this disk.
    ///
    /// # Errors
    /// The serial number has no or too many bytes, or the disk does not tell its size.
    pub fn new(disk: Disk) -> Result<Self, Error> {
        if !(1..=SERIAL).contains(&disk.serial.len()) || !disk.serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Protocol("the serial number of a disk is 1 to 20 printable characters"));
        }
        let (size, block_size) = disk.size().map_err(|error| Error::Host("ask a disk for its size", error))?;
        Ok(Self { disk, capacity: size / SECTOR, block_size, write_through: true })
    }

    /// Serves one request; a failure is the request's status.
    fn serve(&self, chain: &mut Chain) -> Result<Outcome, Error> {
        let mut header = [0; HEADER];
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return Err(Error::Protocol("a block request without room for its status"));
        };
        if chain.readable.read(&mut header) < HEADER {
            return Err(Error::Protocol("a block request without its header"));
        }
        let mut status = chain.writable.split_off(room);
        let result = self.execute(header, chain);
        status.write(&[result.map_or_else(|failure| failure as u8, |()| 0)]);
        // The status is behind the data: where that was not all written, it does not count.
        let left = chain.writable.len();
        let written = if left == 0 { room.saturating_add(1) } else { room.saturating_sub(left) };
        Ok(Outcome::Used(u32::try_from(written).unwrap_or(u32::MAX)))
    }

    fn execute(&self, header: [u8; HEADER], chain: &mut Chain) -> Result<(), Failure> {
        let (kind, sector) = (word(&header, 0), double(&header, 8));
        match kind {
            VIRTIO_BLK_T_IN => self.read(sector, chain),
            VIRTIO_BLK_T_OUT => self.write(sector, chain),
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => {
                let mut serial = self.disk.serial.clone().into_bytes();
                serial.resize(SERIAL, 0);
                chain.writable.write(&serial);
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD => self.discard(chain),
            VIRTIO_BLK_T_WRITE_ZEROES => self.write_zeroes(chain),
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&self, sector: u64, chain: &mut Chain) -> Result<(), Failure> {
        let wanted = chain.writable.len();
        let at = self.place(sector, wanted as u64)?;
        let got = read(self.disk.file.as_fd(), &mut chain.writable, at)?;
        if got == wanted { Ok(()) } else { Err(Failure::Io) }
    }

    fn write(&self, sector: u64, chain: &mut Chain) -> Result<(), Failure> {
        self.check_writable()?;
        let wanted = chain.readable.len();
        let at = self.place(sector, wanted as u64)?;
        let flags = if self.write_through { libc::RWF_DSYNC } else { 0 };
        let done = write(self.disk.file.as_fd(), &mut chain.readable, at, flags)?;
        if done == wanted { Ok(()) } else { Err(Failure::Io) }
    }

    fn flush(&self) -> Result<(), Failure> {
        Ok(self.disk.flush()?)
    }

    fn discard(&self, chain: &mut Chain) -> Result<(), Failure> {
        let (at, bytes, flags) = self.range(chain)?;
        if flags != 0 {
            return Err(Failure::Unsupported);
        }
        self.disk.discard(at, bytes)?;
        if self.write_through { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, chain: &mut Chain) -> Result<(), Failure> {
        let (at, bytes, flags) = self.range(chain)?;
        if flags & !UNMAP != 0 {
            return Err(Failure::Unsupported);
        }
        self.disk.clear(at, bytes, flags & UNMAP != 0)?;
        if self.write_through { self.flush() } else { Ok(()) }
    }

    /// The range of a discard or write-zeroes request: first byte, bytes, flags.
    fn range(&self, chain: &mut Chain) -> Result<(u64, u64, u32), Failure> {
        self.check_writable()?;
        let mut range = [0; RANGE];
        if chain.readable.read(&mut range) < RANGE || !chain.readable.is_empty() {
            return Err(Failure::Io);
        }
        let (sector, sectors, flags) = (double(&range, 0), word(&range, 8), word(&range, 12));
        if sectors > RANGE_SECTORS {
            return Err(Failure::Io);
        }
        let bytes = u64::from(sectors) * SECTOR;
        Ok((self.place(sector, bytes)?, bytes, flags))
    }

    /// The first byte of a range of whole sectors that the disk has.
    fn place(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let end = sector.checked_add(bytes / SECTOR).filter(|&end| end <= self.capacity);
        match end {
            Some(_) if bytes.is_multiple_of(SECTOR) => sector.checked_mul(SECTOR).ok_or(Failure::Io),
            _ => Err(Failure::Io),
        }
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.disk.read_only { Err(Failure::Io) } else { Ok(()) }
    }
}

/// A little-endian number of four bytes at this place; 0 where there is none.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}

/// A little-endian number of eight bytes at this place; 0 where there is none.
fn double(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |double| u64::from_le_bytes(*double))
}

impl Device for Block {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        let more: &[u32] =
            if self.disk.read_only { &[VIRTIO_BLK_F_RO] } else { &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] };
        always.iter().chain(more).fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_blk_config`, up to `write_zeroes_may_unmap`.
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend(self.capacity.to_le_bytes());
        // Without a meaning here: size_max, then, behind seg_max, the geometry.
        config.extend([0, SEGMENTS, 0, self.block_size].iter().flat_map(|word| word.to_le_bytes()));
        // No topology, no choice of caches, one queue.
        config.extend([0; 12]);
        let alignment = self.block_size / SECTOR as u32;
        config.extend([RANGE_SECTORS, 1, alignment].iter().flat_map(|word| word.to_le_bytes()));
        config.extend([RANGE_SECTORS, 1, 1].iter().flat_map(|word| word.to_le_bytes()));
        config
    }

    fn activate(&mut self, features: u64, _context: &mut Context) -> Result<(), Error> {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        Ok(())
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        let Event::Queue(index) = event else { return Ok(()) };
        let Some(ring) = context.rings.get_mut(index) else { return Ok(()) };
        ring.serve(context.memory, |chain| self.serve(chain))
    }

    /// Twelve bytes, little-endian: version, capacity. The disk's content stays where it is.
    fn save(&self) -> Result<Vec<u8>, Error> {
        Ok([&VERSION.to_le_bytes()[..], &self.capacity.to_le_bytes()[..]].concat())
    }

    /// Fails when the disk is not as large as the one that was saved: the guest goes by what it knew.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        match state.split_at_checked(4) {
            Some((version, _)) if version != VERSION.to_le_bytes() => {
                Err(Error::Protocol("a block device's state of another version"))
            }
            Some((_, capacity)) if capacity == self.capacity.to_le_bytes() => Ok(()),
            _ => Err(Error::Protocol("the state of a block device of another size")),
        }
    }
}
