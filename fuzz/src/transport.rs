//! The registers of every device as a vCPU writes them, with workers that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::OnThread;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::driver::Silent;
use vmm::virtio::fs::Policy;
use vmm::virtio::mmio::Transport;
use vmm::virtio::net::Net;
use vmm::virtio::rng::Rng;
use vmm::virtio::worker::Wiring;
use vmm::virtio::{Device, vsock};
use vmm_sys_util::eventfd::EventFd;

use crate::files::{self, Place};
use crate::input::Input;
use crate::rings::disk;

const MEMORY: usize = 0x1_0000;
/// Most steps of one input, and most that may activate the device: each costs two switches of threads.
const STEPS: usize = 128;
const RESETS: usize = 16;
/// Offsets of the registers that a driver writes.
const REGISTERS: [u64; 20] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xd0, 0xfc, 0x100,
    0xffc,
];

/// Devices; the file system is the last one.
const KINDS: u8 = 6;
const FS: u8 = KINDS - 1;

fn device(kind: u8, place: Option<&Place>) -> Box<dyn Device> {
    match (kind, place) {
        (0, _) => Box::new(Rng),
        (1, _) => Box::new(Balloon),
        (2, _) => Box::new(Net::new([2, 0, 0, 0, 0, 1]).unwrap().0),
        (3, _) => Box::new(vsock::new(3).unwrap().0),
        (FS, Some(place)) => Box::new(files::device(place, &Policy::unrestricted())),
        _ => Box::new(disk(false)),
    }
}

/// What a well-behaved driver writes before `DRIVER_OK`: all features of the transport, the first queue.
fn set_up(transport: &mut Transport, size: u16) {
    let writes: [(u64, u32); 14] = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x24, 0),
        (0x20, 1 << 29),
        (0x70, 11),
        (0x30, 0),
        (0x38, size.into()),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
        (0x70, 15),
    ];
    writes.iter().for_each(|(offset, value)| transport.write(*offset, &value.to_le_bytes()));
}

/// What a device is wired to: guest memory, events, and a count of faults.
struct Wires {
    memory: GuestMemoryMmap,
    faults: Arc<AtomicUsize>,
}

impl Wires {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self { memory, faults: Arc::default() }
    }

    fn wiring(&self, device: &dyn Device) -> Wiring {
        let faults = self.faults.clone();
        let event = || Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        Wiring {
            name: "fuzz".to_owned(),
            memory: self.memory.clone(),
            notified: device.queue_sizes().iter().map(|_| event()).collect(),
            active: Arc::default(),
            interrupt: Silent::interrupt(),
            on_fault: Arc::new(move |_| {
                faults.fetch_add(1, Ordering::Relaxed);
            }),
        }
    }

    fn transport(&self, device: Box<dyn Device>) -> Transport {
        let wiring = self.wiring(device.as_ref());
        let mut transport = Transport::new(device, wiring);
        transport.spawn_thread(&OnThread::default()).unwrap();
        transport.await_thread().unwrap();
        transport
    }
}

/// Chooses a device and drives its registers.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % KINDS {
        FS => Place::with(|place| drive(&mut input, FS, Some(place))),
        kind => drive(&mut input, kind, None),
    }
}

fn drive(input: &mut Input, kind: u8, place: Option<&Place>) {
    let wires = Wires::new();
    let make = || wires.transport(device(kind, place));
    let (mut transport, mut activations) = (make(), 0);
    for _ in 0..STEPS {
        if input.is_empty() || activations >= RESETS {
            break;
        }
        let choice = input.byte() % 8;
        activations += usize::from(choice >= 5);
        match choice {
            0..3 => {
                let (offset, value) = (input.pick(&REGISTERS), input.long());
                activations += usize::from(offset == 0x70);
                transport.write(offset, &value.to_le_bytes());
            }
            3 => {
                let (offset, length) = (input.word().into(), input.byte() % 16);
                transport.write(offset, input.bytes(length.into()));
            }
            4 => {
                let (at, length) = (u64::from(input.word()), input.byte());
                let _ = wires.memory.write(input.bytes(length.into()), GuestAddress(at));
            }
            5 => set_up(&mut transport, 1 << (input.byte() % 16)),
            6 => {
                transport.pause();
                transport.resume();
            }
            _ => {
                transport.pause();
                if let Ok(state) = transport.save() {
                    transport = make();
                    // Of the same kind and saved by the same code; files may have gone.
                    let restored = transport.restore(&state);
                    assert!(kind == FS || restored.is_ok(), "{restored:?}");
                    transport.resume();
                }
            }
        }
    }
    drop(transport);
    // A fault is said once for each activation, and no more.
    assert!(wires.faults.load(Ordering::Relaxed) <= activations + 1);
}
