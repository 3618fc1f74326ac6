//! Memory balloon device (virtio 1.2, section 5.5), there for free page reporting: the guest names memory it
//! has no use for, and the host takes it back until the guest touches it again.
//!
//! The balloon itself stays empty. `num_pages` is always 0: limits are kept by cgroups on both sides, and a
//! guest that frees memory reports it without being asked. A driver that inflates all the same gets its
//! buffers back, and nothing happens to the pages in them: there is no reason to parse lists of page
//! numbers that nobody asked for.

use super::queue::{Chain, Outcome};
use super::{Context, Device, Error, Event};

/// `VIRTIO_BALLOON_F_REPORTING`.
const REPORTING: u64 = 1 << 5;

/// Index of the ring with free pages. The specification numbers the rings as if all features had been
/// negotiated; over MMIO, Linux and QEMU leave out those of features that are not (stats, hints).
const REPORTING_QUEUE: usize = 2;

/// Pages of the host, the least that can be given back.
const PAGE: u64 = 4096;

/// `num_pages` and `actual` of `struct virtio_balloon_config`.
const CONFIG_BYTES: usize = 8;

/// The balloon device; it has no state.
pub struct Balloon;

impl Device for Balloon {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        REPORTING
    }

    /// Inflate, deflate, reporting. Linux reports 32 ranges in a chain and wants a ring of as many.
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16, 32]
    }

    fn config(&self) -> Vec<u8> {
        vec![0; CONFIG_BYTES]
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        let Event::Queue(queue) = event else { return Ok(()) };
        let serve = if queue == REPORTING_QUEUE { discard } else { ignore };
        match context.rings.get_mut(queue) {
            Some(ring) => ring.serve(context.memory, serve),
            None => Ok(()),
        }
    }
}

fn ignore(_chain: &mut Chain) -> Result<Outcome, Error> {
    Ok(Outcome::Used(0))
}

/// Gives the host back what the chain's buffers cover: as many ranges as a chain has descriptors, 4 GiB in all.
fn discard(chain: &mut Chain) -> Result<Outcome, Error> {
    let ranges = chain.writable.iovecs();
    let whole = |range: &libc::iovec| [range.iov_base as u64, range.iov_len as u64].iter().all(|n| n % PAGE == 0);
    if !ranges.iter().all(whole) {
        return Err(Error::Protocol("reported memory that is not whole pages"));
    }
    for range in ranges {
        // The guest sees zeros then or, in the kernel's file and in memory cloned from one, what the file says.
        // Either will do for free memory. Only this machine's private pages go, never the file's own.
        // SAFETY: the range was checked to be guest memory, a private mapping to which nothing refers but by
        // volatile accesses; it stays mapped, readable and writable.
        if unsafe { libc::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) } != 0 {
            return Err(Error::Host("give free memory back", std::io::Error::last_os_error()));
        }
    }
    Ok(Outcome::Used(0))
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueState;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::worker::tests::{Driver, Started, USED, queue, start_with, wait, wiring};
    use crate::virtio::worker::{Idle, Wiring};

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const FREE: u64 = 0x8_0000;
    /// All memory there is.
    const MIB: u64 = 1 << 20;

    fn filled(memory: &GuestMemoryMmap, at: u64) -> bool {
        memory.read_obj::<u64>(GuestAddress(at)).unwrap() == u64::MAX
    }

    /// A driver whose only ring is the one of this index; memory from [`FREE`] on is in use.
    fn start(live: usize) -> (Driver, Started, Wiring, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
        let (wiring, _, faults) = wiring(3);
        wiring.memory.write_slice(&[0xff; 0x4_0000], GuestAddress(FREE)).unwrap();
        let unused = QueueState { max_size: 16, size: 16, ..QueueState::default() };
        let queues = (0..3).map(|index| if index == live { queue() } else { unused }).collect();
        let driver = Driver::new(wiring.memory.clone(), wiring.notified[live].clone());
        let started = start_with(Idle { device: Box::new(Balloon), queues }, REPORTING, &wiring);
        (driver, started, wiring, faults)
    }

    fn used(memory: &GuestMemoryMmap) -> u16 {
        memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    #[test]
    fn what_is_reported_is_gone_and_nothing_else() {
        let (mut driver, worker, wiring, faults) = start(REPORTING_QUEUE);
        driver.describe(0, (FREE, 0x2000), (WRITE | NEXT, 1));
        driver.describe(1, (FREE + 0x8000, 0x1000), (WRITE, 0));
        driver.offer(0);
        wait("the answer", || used(&wiring.memory) == 1);
        let gone = [0, 0x1ff8, 0x8000, 0x8ff8].map(|at| !filled(&wiring.memory, FREE + at));
        let kept = [0x2000, 0x7ff8, 0x9000].map(|at| filled(&wiring.memory, FREE + at));
        assert_eq!((gone, kept), ([true; 4], [true; 3]));
        // It is memory as before.
        wiring.memory.write_obj(u64::MAX, GuestAddress(FREE)).unwrap();
        assert!(filled(&wiring.memory, FREE));
        worker.stop().unwrap();
        assert!(faults.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_inflated_comes_back_as_it_was() {
        for queue in [0, 1] {
            let (mut driver, worker, wiring, faults) = start(queue);
            wiring.memory.write_obj((FREE >> 12) as u32, GuestAddress(0x4000)).unwrap();
            driver.describe(0, (0x4000, 4), (0, 0));
            driver.offer(0);
            wait("the answer", || used(&wiring.memory) == 1);
            assert!(filled(&wiring.memory, FREE));
            worker.stop().unwrap();
            assert!(faults.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn malformed_reports_stop_the_device_and_free_nothing() {
        // Whole pages come first: nothing is done before all is checked.
        let table = [(FREE + 0x1008, 0x1000), (FREE + 0x1000, 0x1008), (MIB - 0x1000, 0x2000), (u64::MAX - 0xfff, 1)];
        for bad in table {
            let (mut driver, worker, wiring, faults) = start(REPORTING_QUEUE);
            driver.describe(0, (FREE, 0x1000), (WRITE | NEXT, 1));
            driver.describe(1, bad, (WRITE, 0));
            driver.offer(0);
            wait("the fault", || wiring.interrupt.is_broken());
            worker.stop().unwrap();
            assert!(filled(&wiring.memory, FREE), "{bad:x?}");
            assert_eq!(faults.lock().unwrap().len(), 1);
        }
    }

    #[test]
    fn a_guest_may_throw_away_its_own_rings() {
        let (mut driver, worker, wiring, _) = start(REPORTING_QUEUE);
        driver.describe(0, (0, MIB as u32), (WRITE, 0));
        driver.offer(0);
        wait("the end of it", || !filled(&wiring.memory, FREE));
        assert_eq!(worker.stop().unwrap().queues.len(), 3);
    }

    #[test]
    fn readable_buffers_are_no_report() {
        let (mut driver, worker, wiring, faults) = start(REPORTING_QUEUE);
        driver.describe(0, (FREE, 0x1000), (0, 0));
        driver.offer(0);
        wait("the answer", || used(&wiring.memory) == 1);
        assert!(filled(&wiring.memory, FREE));
        worker.stop().unwrap();
        assert!(faults.lock().unwrap().is_empty());
    }
}
