//! The slots of virtio-mmio devices: registers, events, and what connects the two with KVM.
//!
//! ```text
//!  build ──▶ Transport   the guest's writes find it from the start
//!       └──▶ IoeventfdBindings ──connect──▶ KVM: at once or, for a hot-plugged device, when the guest is told of it
//! ```
//!
//! A hot-plugged device has no thread until then either: a guest that finds it by itself can set it up, but not use it. One that is in
//! reserve has its thread from the start, and the interrupt of the last device that the kernel finds as it boots.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, kvm};
use crate::interrupt::{Interrupt, KvmLine};
use crate::layout;
use crate::registers::Window;
use crate::registers::offset::{INTERRUPT_ACK, NOTIFY_PORT, QUEUE_NOTIFY};
use crate::threads::{OnThread, ThreadKind};
use crate::virtio::mmio::Transport;
use crate::virtio::worker::{OnFault, Wiring};
use crate::virtio::{Device, EnterThread, ExitNotifier};

/// Devices of a machine, in the order of their slots.
pub type Devices = Vec<Box<dyn Device>>;

/// A device with its registers.
pub type Slot = Arc<Mutex<Transport>>;

/// The slots of a machine, and what belongs to some of them.
#[derive(Default)]
pub struct Slots {
    /// All slots.
    pub all: Vec<Slot>,
    /// Devices that are hot-plugged.
    pub hotplugged: Vec<HotPlugged>,
    /// Ports through which vCPUs notify devices that they serve themselves.
    pub notifiers: Vec<(u64, Arc<ExitNotifier>)>,
    /// What each vCPU's thread does before it may serve them.
    pub enter_vcpu: Vec<EnterThread>,
}

/// Builds the slots of one machine.
pub struct SlotBuilder<'a> {
    /// The machine.
    pub vm: &'a Arc<VmFd>,
    /// The guest's memory.
    pub memory: &'a GuestMemoryMmap,
    /// Where faults are reported, once somebody has said so.
    pub on_fault: &'a Arc<OnceLock<OnFault>>,
}

/// Notification events of a device's queues, to be bound to ioeventfds of KVM.
pub struct IoeventfdBindings {
    slot: usize,
    registers: Window,
    /// One event per queue.
    notified: Vec<Arc<EventFd>>,
    /// Whether the notification port is an exit, where the vCPU serves the device itself.
    served_at_exit: bool,
}

/// A device that the guest's kernel is told of while it runs.
pub struct HotPlugged {
    slot: usize,
    irq: u32,
    device: Slot,
    /// Whether its thread starts with the machine.
    in_reserve: bool,
    /// Bindings that were not made yet.
    bindings: Mutex<Option<IoeventfdBindings>>,
}

impl SlotBuilder<'_> {
    /// Slots for the devices that the kernel finds as it boots, then for those to be hot-plugged. The latter are returned
    /// a second time as what [`HotPlugged::connect`] is called on; only the former can be served by vCPUs.
    pub fn build(&self, devices: Devices, hotplugged: Devices, windows: Vec<Window>) -> Result<Slots, Error> {
        let at_boot = devices.len();
        let mut slots = Slots::default();
        let shared = layout::virtio_slot(at_boot.saturating_sub(1)).1;
        let shared_line = Arc::new(KvmLine::new(self.vm.clone(), shared));
        for (slot, (device, window)) in devices.into_iter().chain(hotplugged).zip(windows).enumerate() {
            let enter_vcpu = device.enter_vcpu().filter(|_| slot < at_boot);
            let in_reserve = slot >= at_boot && device.in_reserve();
            let irq = if in_reserve { shared } else { layout::virtio_slot(slot).1 };
            let line = if irq == shared { shared_line.clone() } else { Arc::new(KvmLine::new(self.vm.clone(), irq)) };
            let wiring = self.wiring(device.as_ref(), Interrupt::new(line, window.clone()))?;
            let (notified, served_at_exit) = (wiring.notified.clone(), enter_vcpu.is_some());
            let bindings = IoeventfdBindings { slot, registers: window, notified, served_at_exit };
            if let Some(enter) = enter_vcpu {
                slots.notifiers.push((layout::notify_port(slot), Arc::new(wiring.exit_notifier())));
                slots.enter_vcpu.push(enter);
            }
            let built = Arc::new(Mutex::new(Transport::new(device, wiring)));
            if slot < at_boot {
                bindings.connect(self.vm)?;
            } else {
                let bindings = Mutex::new(Some(bindings));
                slots.hotplugged.push(HotPlugged { slot, irq, device: built.clone(), in_reserve, bindings });
            }
            slots.all.push(built);
        }
        Ok(slots)
    }

    fn wiring(&self, device: &dyn Device, interrupt: Interrupt) -> Result<Wiring, Error> {
        let notified = device.queue_sizes().iter().map(|_| event().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let on_fault = self.on_fault.clone();
        Ok(Wiring {
            name: ThreadKind::of_device(device.id()).name(),
            memory: self.memory.clone(),
            notified,
            active: Arc::default(),
            interrupt,
            on_fault: Arc::new(move |text| match on_fault.get() {
                Some(report) => report(text),
                None => eprintln!("{text}"),
            }),
        })
    }
}

impl IoeventfdBindings {
    /// Has KVM notify the queues without an exit to user space. Where vCPUs serve the device the port is left out: drivers that
    /// do not know it have its thread serve them.
    pub fn connect(&self, vm: &VmFd) -> Result<(), Error> {
        let ((address, _), port) = (layout::virtio_slot(self.slot), layout::notify_port(self.slot));
        let refused = kvm("register an ioeventfd");
        for (queue, notified) in self.notified.iter().enumerate() {
            let at = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
            vm.register_ioevent(notified, &at, queue as u32).map_err(&refused)?;
            if !self.served_at_exit {
                vm.register_ioevent(notified, &IoEventAddress::Pio(port), queue as u32).map_err(&refused)?;
            }
        }
        self.registers.store(NOTIFY_PORT, port as u32);
        // A write of any value ends in the kernel; KVM keeps the event.
        vm.register_ioevent(&event()?, &IoEventAddress::Mmio(address + INTERRUPT_ACK), NoDatamatch).map_err(refused)
    }
}

impl HotPlugged {
    /// The device, if it is one in reserve.
    pub fn reserve(&self) -> Option<&Slot> {
        Some(&self.device).filter(|_| self.in_reserve)
    }

    /// Starts the device's thread and makes the bindings, once, and returns what the guest's kernel is told. What KVM refused
    /// half-way it refuses again.
    pub fn connect(&self, vm: &VmFd, on_thread: &OnThread) -> Result<String, Error> {
        let mut bindings = self.bindings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bindings) = &*bindings {
            if !self.in_reserve {
                start_threads(&[&self.device], on_thread)?;
            }
            bindings.connect(vm)?;
        }
        *bindings = None;
        Ok(layout::virtio_parameter(self.slot, self.irq))
    }
}

/// Starts the threads of these devices, all at the same time.
pub fn start_threads(slots: &[&Slot], on_thread: &OnThread) -> Result<(), Error> {
    let each = |act: &dyn Fn(&mut Transport) -> std::io::Result<()>| {
        slots.iter().try_for_each(|slot| {
            let mut device = slot.lock().unwrap_or_else(PoisonError::into_inner);
            act(&mut device).map_err(|error| Error::Thread(device.name().to_owned(), error))
        })
    };
    each(&|device| device.spawn_thread(on_thread))?;
    each(&Transport::await_thread)
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| Error::Host("create an event", error))
}

/// An event that raises this interrupt.
pub fn irqfd(vm: &VmFd, irq: u32) -> Result<Arc<EventFd>, Error> {
    let fd = event()?;
    vm.register_irqfd(&fd, irq).map_err(kvm("register an irqfd"))?;
    Ok(Arc::new(fd))
}
