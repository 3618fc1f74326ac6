//! Building a machine from its specification, and its life: start, pause, stop.

#[cfg(not(feature = "driver"))]
mod last_words;
#[cfg(feature = "driver")]
pub mod last_words;
mod slots;
pub mod snapshot;

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::boot::cpu_setup::{self, Cpus};
use crate::boot::{self, mptable};
use crate::error::{Error, kvm};
use crate::layout::{self, MIB};
use crate::memory;
use crate::registers::Window;
use crate::spec::MachineSpec;
use crate::threads::OnThread;
use crate::timeline::Timeline;
use crate::vcpu::bus::Bus;
use crate::vcpu::console::Console;
use crate::vcpu::{Exit, ExitCounts, Shared, Vcpus};
use crate::virtio::ExitNotifier;
use crate::virtio::mmio::Transport;
use crate::virtio::worker::OnFault;
use slots::{Devices, HotPlugged, Slot, SlotBuilder, Slots};
use snapshot::MachineState;

/// A machine that is built and has not run yet.
pub struct Machine {
    // Declared before the rest so that it is dropped before guest memory.
    vcpus: Vec<VcpuFd>,
    body: Body,
}

/// What a machine consists of besides its vCPUs.
struct Body {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    memory_mib: u32,
    devices: Vec<Slot>,
    hotplugged: Vec<HotPlugged>,
    shared: Arc<Shared>,
    on_fault: Arc<OnceLock<OnFault>>,
    on_thread: OnThread,
    timeline: Timeline,
}

/// A machine whose vCPUs run.
pub struct Running {
    vcpus: Vcpus,
    body: Body,
}

/// A machine whose threads have ended or are parked: memory, vCPUs and devices are as the guest left them.
pub struct Stopped {
    vcpus: Vec<VcpuFd>,
    body: Body,
}

impl Machine {
    /// Builds everything: memory, interrupt controllers, kernel and initrd, vCPUs, and a virtio-mmio
    /// slot for each device, in order.
    ///
    /// The kernel finds `devices` as it boots. The slots of `hotplugged` devices follow; the kernel learns of one when the
    /// caller tells it what [`Running::hotplug`] returned, and until then the device costs next to nothing. A kernel that
    /// cannot be told while it runs has to have all devices among `devices`. Those that are [in reserve](Device::in_reserve)
    /// come last.
    ///
    /// # Errors
    /// The specification is wrong, a file is unusable, or KVM or the host refuse something.
    pub fn build(mut spec: MachineSpec, devices: Devices, hotplugged: Devices) -> Result<Self, Error> {
        let mut timeline = Timeline::default();
        timeline.mark("build begins");
        let (at_boot, count) = (devices.len(), devices.len() + hotplugged.len());
        let sharing = hotplugged.iter().filter(|device| device.in_reserve()).count();
        check(&spec, at_boot, count - sharing, sharing)?;
        let fd = spec.kvm.try_clone().map_err(|error| Error::Host("copy the descriptor of KVM", error))?;
        let kvm_fd = kvm_of(fd);
        let vm = make_vm(&kvm_fd)?;
        timeline.mark("VM made");
        let memory = memory::allocate(u64::from(spec.memory_mib) * MIB)?;
        // Slots before interrupt controllers, then vCPUs, then events: see `memory::register`.
        memory::register(&vm, &memory)?;
        let windows = Window::row(count).map_err(|error| Error::Host("reserve the devices' registers", error))?;
        memory::register_windows(&vm, &memory, &windows)?;
        vm.set_tss_address(layout::KVM_TSS).map_err(kvm("set its TSS address"))?;
        vm.create_irq_chip().map_err(kvm("make interrupt controllers"))?;
        timeline.mark("memory and interrupt controllers");
        let entry = boot::load(&memory, &spec, at_boot)?;
        memory::keep_in_machine(&memory)?;
        mptable::write(&memory, spec.vcpus, &irqs(&spec, count - sharing))?;
        timeline.mark("kernel and initrd in memory");
        let cpus = Cpus { count: spec.vcpus, nested: spec.nested };
        let vcpus = build_vcpus(&kvm_fd, &vm, cpus, entry)?;
        timeline.mark("vCPUs");
        let on_fault: Arc<OnceLock<OnFault>> = Arc::default();
        let builder = SlotBuilder { vm: &vm, memory: &memory, on_fault: &on_fault };
        let Slots { all: devices, hotplugged, notifiers, enter_vcpu } = builder.build(devices, hotplugged, windows)?;
        let shared = Shared::new(ports(&vm, &mut spec, notifiers)?, mmio(&devices), enter_vcpu)?;
        let shared = Arc::new(shared);
        timeline.mark("devices");
        let MachineSpec { memory_mib, on_thread, .. } = spec;
        // KVM is closed with the specification: it could make more machines, and nothing needs it any more.
        let body = Body { vm, memory, memory_mib, devices, hotplugged, shared, on_fault, on_thread, timeline };
        Ok(Self { vcpus, body })
    }

    /// Has device faults reported to `report`, from the device's thread, one sentence each. Without
    /// this they go to standard error.
    pub fn on_fault(&self, report: impl Fn(String) + Send + Sync + 'static) {
        // The first caller is right; there is no second one.
        let _ = self.body.on_fault.set(Arc::new(report));
    }

    /// Starts the threads, those of devices first.
    ///
    /// # Errors
    /// The host has no more threads, or [`MachineSpec::on_thread`] failed on one. Threads that were started then stay, parked, and
    /// so does all of the machine: the process is to end.
    pub fn start(self) -> Result<Running, Error> {
        let Self { vcpus, mut body } = self;
        match body.start_threads(vcpus) {
            Ok(vcpus) => Ok(Running { vcpus, body }),
            Err(error) => {
                // The owner may have taken from them the calls by which they would end.
                std::mem::forget(body);
                Err(error)
            }
        }
    }
}

impl Running {
    /// An event that becomes readable when the guest has stopped by itself, and stays so.
    pub fn ended(&self) -> BorrowedFd<'_> {
        // SAFETY: the event lives in `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.body.shared.ended.as_raw_fd()) }
    }

    /// Why the guest stopped by itself, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.body.shared.exit()
    }

    /// The newest panic or oops text the guest's kernel left, if any. The guest may have forged it.
    pub fn last_words(&self) -> Option<String> {
        last_words::read(&self.body.memory)
    }

    /// When the steps of building and starting were done.
    pub fn timeline(&self) -> &Timeline {
        &self.body.timeline
    }

    /// VM exits so far that reached user space.
    pub fn exits(&self) -> ExitCounts {
        self.body.shared.counts()
    }

    /// Starts the thread of the hot-plugged device of this index, binds its notifications to KVM, and returns what the
    /// guest's kernel has to be told of the device: a value of the parameter `virtio_mmio.device`. A second call changes
    /// nothing and returns the same value.
    ///
    /// # Errors
    /// There is no such device, KVM refuses it, or the host has no more threads.
    pub fn hotplug(&self, index: usize) -> Result<String, Error> {
        let Body { vm, on_thread, hotplugged, .. } = &self.body;
        let device = hotplugged.get(index);
        device.ok_or_else(|| Error::Spec(format!("there is no hot-plugged device {index}")))?.connect(vm, on_thread)
    }

    /// Pauses all vCPUs. Devices finish what they were asked for, and wait: the guest asks for nothing more.
    pub fn pause(&self) {
        self.vcpus.pause();
    }

    /// Pauses all vCPUs, then waits until no device has a request in flight and parks their threads: nothing changes guest
    /// memory until [`Running::resume`].
    pub fn quiesce(&self) {
        self.vcpus.pause();
        self.body.each_device(Transport::pause);
    }

    /// Undoes [`Running::pause`] or [`Running::quiesce`].
    pub fn resume(&self) {
        self.body.each_device(Transport::resume);
        self.vcpus.resume();
    }

    /// Ends the vCPUs' threads, parks those of devices, and gives back what remains.
    pub fn stop(self) -> Stopped {
        let Self { mut vcpus, body } = self;
        let vcpus = vcpus.stop();
        body.each_device(Transport::pause);
        Stopped { vcpus, body }
    }
}

impl Stopped {
    /// The machine's state, read from KVM and the devices. The descriptor is as in [`MachineSpec::kvm`], of which a machine
    /// keeps none.
    ///
    /// # Errors
    /// KVM refuses a call, or a device was lost or cannot be saved.
    pub fn state(&self, kvm: OwnedFd) -> Result<MachineState, Error> {
        let msrs = snapshot::msr_list(&kvm_of(kvm))?;
        let devices = self.body.devices.iter().enumerate().map(|(slot, device)| {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            device.save().map_err(|error| Error::Device(format!("in slot {slot}"), error))
        });
        Ok(MachineState {
            version: snapshot::VERSION,
            memory_mib: self.body.memory_mib,
            vm: snapshot::save_vm(&self.body.vm)?,
            vcpus: self.vcpus.iter().map(|vcpu| snapshot::save_vcpu(vcpu, &msrs)).collect::<Result<_, _>>()?,
            devices: devices.collect::<Result<_, _>>()?,
        })
    }

    /// Why the guest stopped, if it did so by itself.
    pub fn exit(&self) -> Option<Exit> {
        self.body.shared.exit()
    }

    /// The newest panic or oops text that the guest's kernel left, as [`Running::last_words`] gives it.
    pub fn last_words(&self) -> Option<String> {
        last_words::read(&self.body.memory)
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.body.memory
    }
}

impl Body {
    fn start_threads(&mut self, vcpus: Vec<VcpuFd>) -> Result<Vcpus, Error> {
        let at_boot = self.devices.len() - self.hotplugged.len();
        let reserve = self.hotplugged.iter().filter_map(HotPlugged::reserve);
        let now: Vec<_> = self.devices.iter().take(at_boot).chain(reserve).collect();
        slots::start_threads(&now, &self.on_thread)?;
        self.timeline.mark("device threads");
        let vcpus = Vcpus::start(vcpus, self.shared.clone(), &self.on_thread)?;
        self.timeline.mark("vCPU threads");
        Ok(vcpus)
    }

    fn each_device(&self, act: impl Fn(&mut Transport)) {
        for device in &self.devices {
            act(&mut device.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn check(spec: &MachineSpec, at_boot: usize, own: usize, sharing: usize) -> Result<(), Error> {
    spec.validate()?;
    let (most, most_sharing) = (layout::VIRTIO_MAX, if at_boot > 0 { layout::SHARING_MAX } else { 0 });
    if own > most || sharing > most_sharing {
        let most = format!("at most {most} and {most_sharing} work");
        return Err(Error::Spec(format!("{own} devices and {sharing} in reserve; {most}")));
    }
    Ok(())
}

/// Numbers of the interrupts that have a device.
fn irqs(spec: &MachineSpec, devices: usize) -> Vec<u8> {
    let console = spec.console.iter().map(|_| layout::SERIAL_IRQ);
    let virtio = (0..devices).map(|slot| layout::virtio_slot(slot).1);
    console.chain(virtio).map(|irq| irq as u8).collect()
}

/// Opens KVM for [`MachineSpec::kvm`].
///
/// # Errors
/// The host has no `/dev/kvm`, or this process may not open it.
pub fn open_kvm() -> Result<OwnedFd, Error> {
    let fd = Kvm::open_with_cloexec(true).map_err(kvm("be opened"))?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn kvm_of(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is given away, and KVM's by the meaning of the argument; if it is not, its calls fail.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

fn make_vm(kvm_fd: &Kvm) -> Result<Arc<VmFd>, Error> {
    loop {
        match kvm_fd.create_vm() {
            Ok(vm) => return Ok(Arc::new(vm)),
            // Waiting for a lock of KVM's own can be interrupted.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(kvm("make a VM")(error)),
        }
    }
}

fn build_vcpus(kvm_fd: &Kvm, vm: &VmFd, cpus: Cpus, entry: u64) -> Result<Vec<VcpuFd>, Error> {
    // A host that is too old for this, or has no counters to give, refuses; the guest doesn't see any in either case.
    let mut no_counters = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    no_counters.args[0] = KVM_PMU_CAP_DISABLE.into();
    let _ = vm.enable_cap(&no_counters);
    let supported = kvm_fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("tell its CPUID"))?;
    let build = |id: u8| {
        let vcpu = vm.create_vcpu(id.into()).map_err(kvm("make a vCPU"))?;
        let cpuid = cpu_setup::cpuid(&supported, id, cpus)?;
        cpu_setup::apply(&vcpu, &cpuid, (id == 0).then_some(entry))?;
        Ok(vcpu)
    };
    (0..cpus.count).map(build).collect()
}

fn ports(vm: &VmFd, spec: &mut MachineSpec, notifiers: Vec<(u64, Arc<ExitNotifier>)>) -> Result<Bus, Error> {
    let mut ports = Bus::default();
    for (port, notifier) in notifiers {
        ports.insert(port, layout::NOTIFY_PORT_SIZE, notifier);
    }
    if let Some(output) = spec.console.take() {
        let console = Console::new(output, slots::irqfd(vm, layout::SERIAL_IRQ)?);
        ports.insert(layout::SERIAL_PORT.into(), layout::SERIAL_PORTS.into(), Arc::new(Mutex::new(console)));
    }
    Ok(ports)
}

fn mmio(devices: &[Slot]) -> Bus {
    let mut mmio = Bus::default();
    for (slot, device) in devices.iter().enumerate() {
        mmio.insert(layout::virtio_slot(slot).0, layout::VIRTIO_SIZE, device.clone());
    }
    mmio
}
