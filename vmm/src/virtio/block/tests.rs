//! The device as a driver sees it, over a file: requests through a real ring, honest and not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::worker::tests::{Driver, Started, USED, queue, start_with, wait, wiring};
use crate::virtio::worker::{Idle, Wiring};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
/// Where a request's parts are in guest memory, of which there is 1 MiB.
const HEAD: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x1_0000;
const SECTORS: u64 = 256;
/// A status that no device gives.
const UNTOUCHED: u8 = 0xee;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A driver with its device, of which it waits for each answer.
struct Guest {
    driver: Driver,
    worker: Option<Started>,
    wiring: Wiring,
    faults: Arc<Mutex<Vec<String>>>,
    features: u64,
    disk: File,
}

/// A disk of [`SECTORS`] sectors, each of which begins with its number plus one.
fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SECTORS * SECTOR).unwrap();
    for sector in 0..SECTORS {
        file.write_all_at(&(sector + 1).to_le_bytes(), sector * SECTOR).unwrap();
    }
    file
}

fn block(file: &File, read_only: bool) -> Block {
    let file = file.try_clone().unwrap().into();
    Block::new(Disk { file, serial: "disk0".to_owned(), read_only }).unwrap()
}

fn idle(device: Block, queues: Vec<QueueState>) -> Idle {
    Idle { device: Box::new(device), queues }
}

impl Guest {
    fn new(read_only: bool) -> Self {
        let disk = file();
        let device = block(&disk, read_only);
        Self::with(device, disk)
    }

    fn with(device: Block, disk: File) -> Self {
        let (wiring, _, faults) = wiring(1);
        let driver = Driver::new(wiring.memory.clone(), wiring.notified[0].clone());
        let features = device.features();
        let mut guest = Self { driver, worker: None, wiring, faults, features, disk };
        guest.start(idle(device, vec![queue()]));
        guest
    }

    fn start(&mut self, idle: Idle) {
        self.worker = Some(start_with(idle, self.features, &self.wiring));
    }

    fn stop(&mut self) -> Idle {
        self.worker.take().unwrap().stop().unwrap()
    }

    fn used(&self) -> u16 {
        self.wiring.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Describes a request whose data is at [`DATA`]; the device writes there if `flag` is [`WRITE`].
    fn describe(&self, kind: u32, sector: u64, (bytes, flag): (u32, u16)) {
        let memory = &self.wiring.memory;
        memory.write_obj([kind, 0], GuestAddress(HEAD)).unwrap();
        memory.write_obj(sector, GuestAddress(HEAD + 8)).unwrap();
        memory.write_obj(UNTOUCHED, GuestAddress(STATUS)).unwrap();
        let first = if bytes == 0 { 2 } else { 1 };
        self.driver.describe(0, (HEAD, HEADER as u32), (NEXT, first));
        self.driver.describe(1, (DATA, bytes), (NEXT | flag, 2));
        self.driver.describe(2, (STATUS, 1), (WRITE, 0));
    }

    /// The status of a request, and how many bytes the device says it wrote.
    fn ask(&mut self, kind: u32, sector: u64, data: (u32, u16)) -> (u8, u32) {
        self.describe(kind, sector, data);
        self.answer()
    }

    fn answer(&mut self) -> (u8, u32) {
        let before = self.used();
        self.driver.offer(0);
        wait("an answer", || self.used() != before || self.wiring.interrupt.is_broken());
        assert!(!self.wiring.interrupt.is_broken(), "{:?}", self.faults.lock().unwrap());
        let memory = &self.wiring.memory;
        let at = USED + 4 + u64::from(before % crate::virtio::worker::tests::SIZE) * 8;
        let [_, length]: [u32; 2] = memory.read_obj(GuestAddress(at)).unwrap();
        (memory.read_obj(GuestAddress(STATUS)).unwrap(), length)
    }

    fn word(&self, at: u64) -> u64 {
        self.wiring.memory.read_obj(GuestAddress(DATA + at)).unwrap()
    }

    fn fill(&self, bytes: usize, byte: u8) {
        self.wiring.memory.write_slice(&vec![byte; bytes], GuestAddress(DATA)).unwrap();
    }

    fn range(&mut self, kind: u32, (sector, sectors, flags): (u64, u32, u32)) -> u8 {
        self.wiring.memory.write_obj(sector, GuestAddress(DATA)).unwrap();
        self.wiring.memory.write_obj([sectors, flags], GuestAddress(DATA + 8)).unwrap();
        self.ask(kind, 0, (RANGE as u32, 0)).0
    }

    /// Bytes of the disk on the host.
    fn on_host(&self, sector: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.disk.read_exact_at(&mut data, sector * SECTOR).unwrap();
        data
    }
}

#[test]
fn sectors_are_read_and_written() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.ask(IN, 3, (1024, WRITE)), (OK, 1025));
    assert_eq!((guest.word(0), guest.word(512)), (4, 5));
    guest.fill(2048, 0xab);
    assert_eq!(guest.ask(OUT, 254, (1024, 0)), (OK, 1));
    assert_eq!(guest.on_host(254, 1024), [0xab; 1024]);
    assert_eq!(guest.on_host(253, 8), 254u64.to_le_bytes());
    assert_eq!(guest.ask(VIRTIO_BLK_T_FLUSH, 0, (0, 0)), (OK, 1));
    // What the host writes is what the guest reads next.
    guest.disk.write_all_at(&77u64.to_le_bytes(), 0).unwrap();
    assert_eq!(guest.ask(IN, 0, (512, WRITE)), (OK, 513));
    assert_eq!(guest.word(0), 77);
    assert!(guest.faults.lock().unwrap().is_empty());
}

#[test]
fn a_disk_tells_its_serial_and_its_size() {
    let mut guest = Guest::new(false);
    guest.fill(32, 0xff);
    assert_eq!(guest.ask(VIRTIO_BLK_T_GET_ID, 0, (20, WRITE)), (OK, 21));
    let mut serial = [0; 21];
    guest.wiring.memory.read_slice(&mut serial, GuestAddress(DATA)).unwrap();
    assert_eq!(&serial, b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    let config = block(&guest.disk, false).config();
    assert_eq!((double(&config, 0), word(&config, 12), word(&config, 20)), (SECTORS, 126, 512));
    assert_eq!([36, 40, 44, 48, 52].map(|at| word(&config, at)), [RANGE_SECTORS, 1, 1, RANGE_SECTORS, 1]);
    assert_eq!((config.len(), config[56]), (60, 1));
    for serial in ["", "123456789012345678901", "a b", "ä"] {
        let disk = Disk { file: file().into(), serial: serial.to_owned(), read_only: false };
        assert!(Block::new(disk).is_err(), "{serial:?}");
    }
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    let mut guest = Guest::new(false);
    let before = guest.on_host(0, (SECTORS * SECTOR) as usize);
    guest.fill(4096, 0xcd);
    let outside = [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / SECTOR + 1, 512),
        (u64::MAX - 1, 1024),
        // Not whole sectors.
        (0, 511),
        (SECTORS - 1, 513),
    ];
    for (sector, bytes) in outside {
        assert_eq!(guest.ask(IN, sector, (bytes, WRITE)), (IO_ERROR, 0), "{sector} {bytes}");
        assert_eq!(guest.ask(OUT, sector, (bytes, 0)), (IO_ERROR, 1), "{sector} {bytes}");
    }
    // At the end, nothing is something.
    assert_eq!(guest.ask(IN, SECTORS, (0, WRITE)), (OK, 1));
    assert_eq!(guest.on_host(0, before.len()), before);
    // The disk has become smaller under the device.
    guest.disk.set_len(10 * SECTOR).unwrap();
    assert_eq!(guest.ask(IN, 9, (1024, WRITE)), (IO_ERROR, 512));
    assert_eq!(guest.ask(IN, 20, (512, WRITE)), (IO_ERROR, 0));
}

#[test]
fn what_nobody_knows_is_unsupported() {
    let mut guest = Guest::new(false);
    for kind in [2, 3, 5, 12, 15, 16, 0x100, u32::MAX] {
        assert_eq!(guest.ask(kind, 0, (512, WRITE)), (UNSUPPORTED, 0), "{kind}");
    }
    // What is discarded has no flags.
    assert_eq!(guest.range(VIRTIO_BLK_T_DISCARD, (0, 8, 1)), UNSUPPORTED);
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, (0, 8, 2)), UNSUPPORTED);
}

#[test]
fn what_is_discarded_of_a_file_takes_no_room() {
    let mut guest = Guest::new(false);
    guest.disk.set_len(0).unwrap();
    guest.disk.set_len(SECTORS * SECTOR).unwrap();
    guest.disk.write_all_at(&[7; 16384], 0).unwrap();
    let room = |guest: &Guest| std::os::unix::fs::MetadataExt::blocks(&guest.disk.metadata().unwrap());
    let before = room(&guest);
    assert_eq!(guest.range(VIRTIO_BLK_T_DISCARD, (8, 16, 0)), OK);
    assert!(room(&guest) < before);
    assert_eq!((guest.on_host(7, 1), guest.on_host(8, 1), guest.on_host(24, 1)), (vec![7], vec![0], vec![7]));
}

#[test]
fn ranges_become_zeroes() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, (8, 16, UNMAP)), OK);
    assert_eq!(guest.on_host(8, 16 * 512), [0; 16 * 512]);
    assert_eq!((guest.on_host(7, 1), guest.on_host(24, 1)), (vec![8], vec![25]));
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, (0, 0, UNMAP)), OK);
    for range in [(SECTORS, 1), (0, SECTORS as u32 + 1), (u64::MAX, 8), (0, RANGE_SECTORS + 1), (0, u32::MAX)] {
        assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, (range.0, range.1, UNMAP)), IO_ERROR, "{range:?}");
    }
    // Less and more than one range.
    for bytes in [0, 8, 15, 17, 32, 4096] {
        assert_eq!(guest.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, (bytes, 0)), (IO_ERROR, 1), "{bytes}");
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let mut guest = Guest::new(true);
    assert_eq!(guest.features, 1 << VIRTIO_BLK_F_RO | 1 << 2 | 1 << 6 | 1 << 9);
    let before = guest.on_host(0, (SECTORS * SECTOR) as usize);
    guest.fill(512, 0xab);
    assert_eq!(guest.ask(OUT, 0, (512, 0)), (IO_ERROR, 1));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(guest.range(kind, (0, 8, 0)), IO_ERROR);
    }
    assert_eq!(guest.ask(IN, 0, (512, WRITE)), (OK, 513));
    assert_eq!(guest.on_host(0, before.len()), before);
}

#[test]
fn a_request_without_header_or_status_stops_the_device() {
    let damages: [fn(&Driver); 3] = [
        |driver| driver.describe(0, (HEAD, HEADER as u32), (0, 0)),
        |driver| driver.describe(0, (HEAD, HEADER as u32 - 1), (NEXT, 2)),
        |driver| driver.describe(0, (STATUS, 1), (WRITE, 0)),
    ];
    for damage in damages {
        let mut guest = Guest::new(false);
        guest.describe(IN, 0, (512, WRITE));
        damage(&guest.driver);
        guest.driver.offer(0);
        wait("the fault", || guest.wiring.interrupt.is_broken());
        guest.stop();
        assert_eq!(guest.faults.lock().unwrap().len(), 1);
    }
}

/// Headers and statuses need not be where Linux puts them.
#[test]
fn parts_may_be_cut_in_any_way() {
    let mut guest = Guest::new(false);
    guest.describe(IN, 5, (0, 0));
    guest.driver.describe(0, (HEAD, 5), (NEXT, 1));
    guest.driver.describe(1, (HEAD + 5, 11), (NEXT, 2));
    // Data and status in one.
    guest.driver.describe(2, (DATA, 513), (WRITE, 0));
    assert_eq!(guest.answer().1, 513);
    assert_eq!((guest.word(0), guest.word(505) >> 56), (6, u64::from(OK)));
}

#[test]
fn a_driver_that_does_not_flush_is_served_all_the_same() {
    let disk = file();
    let mut guest = Guest::with(block(&disk, false), disk);
    let idle = guest.stop();
    guest.features = 0;
    guest.start(idle);
    guest.fill(512, 0x5a);
    assert_eq!(guest.ask(OUT, 1, (512, 0)), (OK, 1));
    assert_eq!(guest.on_host(1, 512), [0x5a; 512]);
    assert_eq!(guest.range(VIRTIO_BLK_T_WRITE_ZEROES, (1, 1, UNMAP)), OK);
    assert_eq!(guest.on_host(1, 512), [0; 512]);
}

#[test]
fn a_device_goes_on_where_it_was_stopped() {
    let mut guest = Guest::new(false);
    for round in 0..5u8 {
        guest.fill(512, round);
        assert_eq!(guest.ask(OUT, u64::from(round), (512, 0)), (OK, 1));
        let Idle { device, queues } = guest.stop();
        // What was asked meanwhile is served by the next, which is made of the saved state.
        let mut next = block(&guest.disk, false);
        next.restore(&device.save().unwrap()).unwrap();
        guest.describe(IN, u64::from(round), (512, WRITE));
        guest.driver.offer(0);
        let before = guest.used();
        guest.start(idle(next, queues));
        wait("the answer", || guest.used() != before);
        assert_eq!(guest.word(0), u64::from_le_bytes([round; 8]));
    }
    assert!(guest.faults.lock().unwrap().is_empty());
}

#[test]
fn only_the_state_of_such_a_disk_is_taken_back() {
    let disk = file();
    let mut device = block(&disk, false);
    let state = device.save().unwrap();
    assert!(device.restore(&state).is_ok());
    for length in 0..state.len() {
        assert!(device.restore(&state[..length]).is_err());
    }
    assert!(device.restore(&[&state[..], &[0]].concat()).is_err());
    assert!(device.restore(&[&2u32.to_le_bytes(), &state[4..]].concat()).is_err());
    disk.set_len(SECTOR).unwrap();
    assert!(block(&disk, false).restore(&state).unwrap_err().to_string().contains("another size"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is asked, there is an answer or a fault, the file keeps its size, and what is read is what is there.
    #[test]
    fn any_request_is_answered(
        requests in prop::collection::vec((0u32..16, any::<u64>(), 0u32..0x3000, any::<bool>(), any::<bool>()), 1..6)
    ) {
        let mut guest = Guest::new(false);
        for (kind, sector, bytes, near, out) in requests {
            let sector = if near { sector % (SECTORS + 8) } else { sector };
            let (status, _) = guest.ask(kind, sector, (bytes, if out { 0 } else { WRITE }));
            prop_assert!([OK, IO_ERROR, UNSUPPORTED].contains(&status));
            if kind == IN && status == OK && !out && bytes > 0 {
                let mut seen = vec![0; bytes as usize];
                guest.wiring.memory.read_slice(&mut seen, GuestAddress(DATA)).unwrap();
                prop_assert_eq!(seen, guest.on_host(sector, bytes as usize));
            }
        }
        prop_assert_eq!(guest.disk.metadata().unwrap().len(), SECTORS * SECTOR);
    }
}
