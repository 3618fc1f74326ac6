//! A device without its worker and transport: rings in guest memory, a driver that keeps or breaks the rules, real
//! descriptors watched by a real epoll.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::interrupt::Interrupt;
use vmm::virtio::driver::{Epoll, Silent, queue};
use vmm::virtio::queue::Ring;
use vmm::virtio::{AtExit, Context, Device, Error, Event};

use crate::input::Input;

/// Entries of each ring.
pub const SIZE: u16 = 16;
/// Bytes of a guest's memory.
pub const MEMORY: u64 = 0x8_0000;
/// Where rings end and buffers begin.
pub const BUFFERS: u64 = 0x1_0000;
/// Bytes of a ring's three parts together.
const RING: u64 = 0x3000;

/// Flags of a descriptor: another one follows, the device writes.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A descriptor's buffer.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Address in the guest's memory.
    pub at: u64,
    /// Bytes.
    pub length: u32,
    /// Flags of the descriptor, which may be wrong.
    pub flags: u16,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(at: u64, length: usize) -> Self {
        Self { at, length: length as u32, flags: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(at: u64, length: usize) -> Self {
        Self { at, length: length as u32, flags: WRITE }
    }
}

/// The driver's side of a ring.
#[derive(Clone, Copy, Default)]
struct Driven {
    descriptor: u16,
    available: u16,
    used: u16,
}

/// A guest with one device.
pub struct Rig<D: Device> {
    /// The device.
    pub device: D,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    driven: Vec<Driven>,
    epoll: Epoll,
    interrupt: Interrupt,
    features: u64,
    /// Whether it is activated, and no error has stopped it.
    works: bool,
    /// Notifications so far.
    kicks: usize,
}

thread_local! {
    static MEMORY_OF_ALL: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    static INTERRUPT_OF_ALL: Interrupt = Silent::interrupt();
}

impl<D: Device> Rig<D> {
    /// A guest that has activated the device with these of its features.
    pub fn new(mut device: D, features: u64) -> Self {
        device.enter_thread().unwrap();
        let memory = MEMORY_OF_ALL.with(GuestMemoryMmap::clone);
        memory.write_slice(&[0; MEMORY as usize], GuestAddress(0)).unwrap();
        let (driven, epoll) = (vec![Driven::default(); device.queue_sizes().len()], Epoll::new());
        let interrupt = INTERRUPT_OF_ALL.with(Interrupt::clone);
        let mut rig =
            Self { device, memory, rings: Vec::new(), driven, epoll, interrupt, features, works: false, kicks: 0 };
        rig.restart(features);
        rig
    }

    fn call(&mut self, act: impl FnOnce(&mut D, &mut Context) -> Result<(), Error>) {
        if !self.works {
            return;
        }
        let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut self.epoll };
        if act(&mut self.device, &mut context).is_err() {
            // As the worker does it: nothing more until the driver resets the device.
            self.device.deactivate(&mut context);
            self.works = false;
        }
    }

    /// Stops the device.
    fn stop(&mut self) {
        if std::mem::take(&mut self.works) {
            let mut context = Context { memory: &self.memory, rings: &mut self.rings, watcher: &mut self.epoll };
            self.device.deactivate(&mut context);
        }
    }

    fn activate(&mut self) {
        self.works = true;
        let features = self.features;
        self.call(|device, context| device.activate(features, context));
        (0..self.driven.len()).for_each(|index| self.kick(index));
    }

    /// Resets the device and sets it up again.
    pub fn restart(&mut self, features: u64) {
        self.stop();
        self.device.reset();
        self.features = features & self.device.features();
        self.memory.write_slice(&[0; BUFFERS as usize], GuestAddress(0)).unwrap();
        self.driven.fill(Driven::default());
        let fresh = |index: usize| {
            let base = RING * index as u64;
            let mut queue = queue(SIZE, [base, base + 0x1000, base + 0x2000]);
            queue.set_event_idx(features & 1 << 29 != 0);
            Ring::new(queue, self.interrupt.clone())
        };
        self.rings = (0..self.driven.len()).map(fresh).collect();
        self.activate();
    }

    /// Moves the device's state to another one, as a snapshot does; what is saved can be restored, unless the host's files
    /// are no longer what they were.
    pub fn save_and_restore(&mut self, mut other: D) {
        self.stop();
        other.enter_thread().unwrap();
        if let Ok(state) = self.device.save() {
            let _ = other.restore(&state);
        }
        self.device = other;
        let queue = |ring: &Ring| Ring::new(Queue::try_from(ring.state()).unwrap(), self.interrupt.clone());
        self.rings = self.rings.iter().map(queue).collect();
        self.activate();
    }

    /// Notifies the device of a queue: every other time as a vCPU that serves it, as far as the device lets it.
    pub fn kick(&mut self, index: usize) {
        self.kicks += 1;
        let at_exit = self.kicks.is_multiple_of(2);
        self.call(|device, context| {
            if at_exit && device.serve_at_exit(index, context.memory, context.rings)? == AtExit::Served {
                return Ok(());
            }
            device.handle(Event::Queue(index), context)
        });
    }

    /// Hands it events of its descriptors, real or not.
    pub fn event(&mut self, token: u64, events: u32) {
        self.call(|device, context| device.handle(Event::Fd(token, events), context));
    }

    /// Hands it the events that there are.
    pub fn poll(&mut self) {
        for (token, events) in self.epoll.wait(0) {
            self.event(token, events);
        }
    }

    /// Writes to memory, where there is any.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    /// Reads memory; zeros where there is none.
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.min(MEMORY as usize)];
        let _ = self.memory.read(&mut bytes, GuestAddress(at));
        bytes
    }

    /// Offers a chain.
    pub fn offer(&mut self, index: usize, buffers: &[Buffer]) {
        let Some(mut driven) = self.driven.get(index).copied() else { return };
        let base = RING * index as u64;
        let head = driven.descriptor;
        for (number, buffer) in buffers.iter().enumerate() {
            let next = (driven.descriptor + 1) % SIZE;
            let more = if number + 1 < buffers.len() { NEXT } else { 0 };
            let words = u64::from(buffer.length) | u64::from(buffer.flags | more) << 32 | u64::from(next) << 48;
            self.write(base + 16 * u64::from(driven.descriptor), &[buffer.at, words].map(u64::to_le_bytes).concat());
            driven.descriptor = next;
        }
        self.write(base + 0x1004 + 2 * u64::from(driven.available % SIZE), &head.to_le_bytes());
        driven.available = driven.available.wrapping_add(1);
        self.write(base + 0x1002, &driven.available.to_le_bytes());
        self.driven[index] = driven;
    }

    /// Takes back what the device has used; the bytes written of each.
    pub fn used(&mut self, index: usize) -> Vec<u32> {
        let base = RING * index as u64 + 0x2000;
        let end = self.read(base + 2, 2);
        let mut lengths = Vec::new();
        while self.driven[index].used.to_le_bytes() != *end && lengths.len() < usize::from(SIZE) {
            let place = base + 8 + 8 * u64::from(self.driven[index].used % SIZE);
            lengths.push(u32::from_le_bytes(self.read(place, 4).try_into().unwrap()));
            self.driven[index].used = self.driven[index].used.wrapping_add(1);
        }
        lengths
    }

    /// One thing that any driver may do, right or wrong.
    pub fn step(&mut self, input: &mut Input, other: impl FnOnce() -> D) {
        let index = usize::from(input.byte()) % self.driven.len();
        match input.byte() % 8 {
            0 | 1 => {
                let buffers: Vec<Buffer> = (0..input.byte() % 6 + 1).map(|_| buffer(input)).collect();
                self.offer(index, &buffers);
            }
            2 => {
                let at = u64::from(input.long()) % (MEMORY + 0x1000);
                let length = input.byte().into();
                self.write(at, input.bytes(length));
            }
            3 => {
                let (length, room) = (input.byte().into(), input.word().into());
                self.write(BUFFERS, input.bytes(length));
                self.offer(index, &[Buffer::readable(BUFFERS, length), Buffer::writable(BUFFERS + 0x1000, room)]);
                self.kick(index);
            }
            4 => self.kick(index),
            5 => self.event(input.quad(), input.long()),
            6 => self.poll(),
            _ if input.byte() & 1 == 0 => self.restart(input.quad()),
            _ => self.save_and_restore(other()),
        }
    }
}

/// A buffer, mostly within memory.
fn buffer(input: &mut Input) -> Buffer {
    let kind = input.byte();
    let at = if kind & 1 == 0 { BUFFERS + u64::from(input.word()) * 4 } else { input.quad() };
    let length = if kind & 2 == 0 { input.word().into() } else { input.long() };
    let flags = if kind & 4 == 0 { u16::from(kind & 8 != 0) * WRITE } else { input.word() };
    Buffer { at, length, flags }
}
