//! The registers of every device as a vCPU writes them, with workers that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::OnThread;
use vmm::virtio::balloon::Balloon;
use vmm::virtio::driver::Silent;
use vmm::virtio::mmio::Transport;
use vmm::virtio::net::Net;
use vmm::virtio::rng::Rng;
use vmm::virtio::worker::Wiring;
use vmm::virtio::{Device, vsock};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

const MEMORY: usize = 0x1_0000;
/// Most steps of one input, and most that may activate the device: each costs two switches of threads.
const STEPS: usize = 128;
const RESETS: usize = 16;
/// Offsets of the registers that a driver writes.
const REGISTERS: [u64; 20] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xd0, 0xfc, 0x100,
    0xffc,
];

fn device(kind: u8) -> Box<dyn Device> {
    match kind % 4 {
        0 => Box::new(Rng),
        1 => Box::new(Balloon),
        2 => Box::new(Net::new([2, 0, 0, 0, 0, 1]).unwrap().0),
        _ => Box::new(vsock::new(3).unwrap().0),
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

/// Drives the registers of a device.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let faults = Arc::new(AtomicUsize::new(0));
    let wiring = |device: &dyn Device| Wiring {
        name: "fuzz".to_owned(),
        memory: memory.clone(),
        notified: device.queue_sizes().iter().map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).collect(),
        interrupt: Silent::interrupt(),
        on_fault: Arc::new({
            let faults = faults.clone();
            move |_| {
                faults.fetch_add(1, Ordering::Relaxed);
            }
        }),
    };
    let make = || {
        let device = device(kind);
        let wiring = wiring(device.as_ref());
        let mut transport = Transport::new(device, wiring);
        transport.spawn_thread(&OnThread::default()).unwrap();
        transport.await_thread().unwrap();
        transport
    };
    let (mut transport, mut activations) = (make(), 0);
    for _ in 0..STEPS {
        if input.is_empty() || activations >= RESETS {
            break;
        }
        match input.byte() % 8 {
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
                let _ = memory.write(input.bytes(length.into()), GuestAddress(at));
            }
            5 => {
                activations += 1;
                set_up(&mut transport, 1 << (input.byte() % 16));
            }
            6 => {
                activations += 1;
                transport.pause();
                transport.resume();
            }
            _ => {
                activations += 1;
                transport.pause();
                if let Ok(state) = transport.save() {
                    transport = make();
                    // Of the same kind and saved by the same code.
                    transport.restore(&state).unwrap();
                    transport.resume();
                }
            }
        }
    }
    drop(transport);
    // A fault is said once for each activation, and no more.
    assert!(faults.load(Ordering::Relaxed) <= activations + 1);
}
