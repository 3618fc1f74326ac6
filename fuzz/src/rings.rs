//! The rings of every device, and what stands in them: any bytes.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmm::virtio::balloon::Balloon;
use vmm::virtio::block::{Block, Disk};
use vmm::virtio::fs::Policy;
use vmm::virtio::net::Net;
use vmm::virtio::rng::Rng;
use vmm::virtio::{Device, vsock};

use crate::files::{Place, device};
use crate::input::Input;
use crate::rig::Rig;

/// Most steps of one input.
const STEPS: usize = 64;

/// A disk in memory.
pub fn disk(read_only: bool) -> Block {
    let file: OwnedFd = memfd_create("disk", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 0x1_0000).unwrap();
    Block::new(Disk { file, serial: "fuzz".to_owned(), read_only }).unwrap()
}

fn drive<D: Device>(input: &mut Input, make: impl Fn() -> D) {
    let mut rig = Rig::new(make(), input.quad());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        rig.step(input, &make);
    }
}

/// Chooses a device and drives it.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 7 {
        0 => drive(&mut input, || Rng),
        1 => drive(&mut input, || Balloon),
        2 => drive(&mut input, || disk(false)),
        3 => drive(&mut input, || disk(true)),
        4 => drive(&mut input, || Net::new([2, 0, 0, 0, 0, 1]).unwrap().0),
        5 => drive(&mut input, || vsock::new(3).unwrap().0),
        _ => Place::with(|place| drive(&mut input, || device(place, &Policy::unrestricted()))),
    }
}
