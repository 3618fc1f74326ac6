//! The tap: an interface of the host's whose frames are read and written here, each behind a header of virtio's.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use libc::iovec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::frame::HEADER;
use crate::virtio::queue::{Buffers, Room};

/// A tap whose header is as long as the device's, and whose calls do not block.
pub struct Tap {
    fd: OwnedFd,
    /// What the host was told last; nothing at first.
    offloads: Cell<Option<u32>>,
    pace: Cell<Pace>,
    /// In tests and fuzzing: where the offloads of what stands for a tap are noted.
    #[cfg(any(test, feature = "driver"))]
    noted: Option<std::sync::Arc<std::sync::atomic::AtomicU32>>,
}

impl Tap {
    /// Takes a tap that was made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    ///
    /// # Errors
    /// The descriptor is no tap, or a tap without headers.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // IFF_NO_PI can't be seen: in an answer that bit says whether the tap has a filter.
        let wanted = libc::IFF_TAP | libc::IFF_VNET_HDR;
        if flags(fd.as_fd())? & (wanted | libc::IFF_TUN) != wanted {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a tap with headers of virtio's"));
        }
        let size = HEADER as libc::c_int;
        // SAFETY: the call reads one int, which lives across it.
        if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) } != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd,
            offloads: Cell::default(),
            pace: Cell::new(Pace::new(Instant::now())),
            #[cfg(any(test, feature = "driver"))]
            noted: None,
        })
    }

    /// A socket whose messages are frames, in a tap's stead.
    #[cfg(any(test, feature = "driver"))]
    pub fn of_socket(fd: OwnedFd, noted: std::sync::Arc<std::sync::atomic::AtomicU32>) -> Self {
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        Self { fd, offloads: Cell::default(), pace: Cell::new(Pace::new(Instant::now())), noted: Some(noted) }
    }

    /// Tells the host what frames the guest takes: those without a checksum, and long ones. The host does that under its
    /// network lock, so a guest that changes its mind again and again has to wait.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let flags = offloads(features);
        if self.offloads.get() == Some(flags) {
            return Ok(());
        }
        let mut pace = self.pace.get();
        wait(pace.take(Instant::now()));
        self.pace.set(pace);
        self.tell_offloads(flags)?;
        self.offloads.set(Some(flags));
        Ok(())
    }

    fn tell_offloads(&self, flags: u32) -> io::Result<()> {
        #[cfg(any(test, feature = "driver"))]
        if let Some(noted) = &self.noted {
            noted.store(flags, std::sync::atomic::Ordering::Relaxed);
            return Ok(());
        }
        // SAFETY: the call takes no pointer.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads a frame with its header; returns their bytes, or more than the room has if the frame does not fit.
    pub fn receive(&self, room: &Room, iovecs: &mut Vec<iovec>) -> io::Result<usize> {
        // What does not fit is lost without a word. A byte more tells.
        let mut beyond = 0u8;
        iovecs.clear();
        iovecs.extend_from_slice(room.iovecs());
        iovecs.push(iovec { iov_base: (&raw mut beyond).cast(), iov_len: 1 });
        retry(|| {
            // SAFETY: the iovecs describe guest memory that the room keeps mapped across the call, whose content the
            // guest expects to change, and a byte of ours; they are no more than UIO_MAXIOV.
            unsafe { libc::readv(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) }
        })
    }

    /// Writes a frame with its header, whole or not at all.
    pub fn send(&self, frame: &Buffers, iovecs: &mut Vec<iovec>) -> io::Result<()> {
        iovecs.clear();
        iovecs.extend(frame.each_iovec());
        if iovecs.len() > libc::UIO_MAXIOV as usize {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        retry(|| {
            // SAFETY: the iovecs describe guest memory that the chain keeps mapped across the call, and which the
            // kernel only reads; they are no more than UIO_MAXIOV.
            unsafe { libc::writev(self.fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) }
        })?;
        Ok(())
    }

    /// Whether the tap's interface was removed: no frame will come from it again.
    pub fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::empty())];
        let asked = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        asked.is_ok() && polled.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP))
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Waits for so long, by a call that the thread makes anyway.
fn wait(time: Duration) {
    let end = Instant::now() + time;
    let rest = || end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero());
    while let Some(rest) = rest().and_then(|rest| Timespec::try_from(rest).ok()) {
        // A signal only makes the rest shorter.
        let _ = poll(&mut [], Some(&rest));
    }
}

/// How often the host's network lock may be taken for a guest.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// When the allowance will be whole again.
    whole: Instant,
}

impl Pace {
    /// Times in a row: as many as a driver needs that is loaded again and again.
    const AT_ONCE: u32 = 8;
    /// Between any two beyond that.
    const EACH: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { whole: now }
    }

    /// Takes one time; how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        self.whole = self.whole.max(now) + Self::EACH;
        self.whole.saturating_duration_since(now + Self::EACH * Self::AT_ONCE)
    }
}

/// The `IFF_*` flags of a tap.
fn flags(fd: BorrowedFd) -> io::Result<libc::c_int> {
    // SAFETY: an ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one ifreq, which lives across it.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the flags are what the call set, and any bytes are a value of theirs.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// The `TUN_F_*` flags for the features that the driver took. The host has no segments without checksums left out, nor
/// congestion marks without segments, whatever a driver takes.
pub(super) fn offloads(features: u64) -> u32 {
    let flag = |bit: u32, flag: u32| if features & 1 << bit != 0 { flag } else { 0 };
    let checksum = flag(VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM);
    let segments = flag(VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4) | flag(VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6);
    let marks = flag(VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN);
    match (checksum, segments) {
        (0, _) => 0,
        (_, 0) => checksum,
        _ => checksum | segments | marks,
    }
}

/// Makes a system call again while a signal interrupts it.
fn retry(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        let returned = call();
        if let Ok(bytes) = usize::try_from(returned) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_told_of_changes_only_and_at_the_host_s_pace() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let waits: Vec<u64> = (0..11).map(|_| pace.take(begin).as_secs()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(pace.take(begin + Duration::from_secs(60)).as_secs(), 0);

        let (fd, _host) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let noted = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(7));
        let tap = Tap::of_socket(fd.into(), noted.clone());
        let told = |features| {
            tap.set_offloads(features).unwrap();
            noted.swap(7, std::sync::atomic::Ordering::Relaxed)
        };
        let checksums = 1 << VIRTIO_NET_F_GUEST_CSUM;
        assert_eq!([told(0), told(0), told(checksums), told(checksums), told(0)], [0, 7, libc::TUN_F_CSUM, 7, 0]);
    }
}
