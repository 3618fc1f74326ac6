//! The state of a stopped machine as plain, versioned data, taken from KVM and the devices.
//!
//! Guest memory is not part of the state: it stays where it is, or is saved beside it.
//!
//! Nothing in the runtime saves or restores a machine yet. The state is the basis of warm starts; until then only tests
//! take it (`examples/boot --save`, run by the test area `vmm`), and there is no way back from it to a machine. Devices
//! are further: each can be saved *and* restored, which their unit tests do.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::error::{Error, kvm};
pub use crate::virtio::mmio::DeviceState;

/// Version of [`MachineState`] that this build writes.
pub const VERSION: u32 = 1;

/// A whole machine but for its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Version of the form: [`VERSION`].
    pub version: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// State that all vCPUs share.
    pub vm: VmState,
    /// The vCPUs, in order.
    pub vcpus: Vec<VcpuState>,
    /// The virtio devices, in slot order.
    pub devices: Vec<DeviceState>,
}

/// Interrupt controllers and clock.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    /// First PIC, second PIC, I/O APIC.
    pub irqchips: Vec<kvm_irqchip>,
    /// The clock that the guest reads as kvmclock.
    pub clock: kvm_clock_data,
}

/// State of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub tsc_khz: u32,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: kvm_xcrs,
    pub debug_regs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    pub msrs: Vec<kvm_msr_entry>,
    pub events: kvm_vcpu_events,
}

/// Reads the state that the vCPUs share. Call it while none runs.
pub fn save_vm(vm: &VmFd) -> Result<VmState, Error> {
    let chip = |chip_id| {
        let mut irqchip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut irqchip).map_err(kvm("read an interrupt controller"))?;
        Ok(irqchip)
    };
    let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
    let irqchips = chips.into_iter().map(chip).collect::<Result<_, Error>>()?;
    let mut clock = vm.get_clock().map_err(kvm("read the clock"))?;
    // The flags say how the time was read, which does not matter when it is set again.
    clock.flags = 0;
    Ok(VmState { irqchips, clock })
}

/// Reads one vCPU that has returned from `KVM_RUN` with EINTR, or never ran.
///
/// The order matters: reading the MP state makes KVM deliver pending INIT and SIPI, so it comes
/// first; the events come last, as they tell what the others left pending.
pub fn save_vcpu(vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, Error> {
    let mp_state = vcpu.get_mp_state().map_err(kvm("read the MP state"))?;
    let regs = vcpu.get_regs().map_err(kvm("read registers"))?;
    let sregs = vcpu.get_sregs().map_err(kvm("read system registers"))?;
    let xsave = vcpu.get_xsave().map_err(kvm("read the FPU"))?;
    let xcrs = vcpu.get_xcrs().map_err(kvm("read extended control registers"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(kvm("read debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(kvm("read the TSC's frequency"))?;
    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("read CPUID"))?.as_slice().to_vec();
    let msrs = save_msrs(vcpu, msrs)?;
    let events = vcpu.get_vcpu_events().map_err(kvm("read pending events"))?;
    Ok(VcpuState { cpuid, tsc_khz, mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, msrs, events })
}

/// The MSRs that KVM says are part of a vCPU's state.
pub fn msr_list(kvm_fd: &Kvm) -> Result<Vec<u32>, Error> {
    Ok(kvm_fd.get_msr_index_list().map_err(kvm("list MSRs"))?.as_slice().to_vec())
}

fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut entries: Vec<_> = indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut saved = Vec::with_capacity(entries.len());
    while !entries.is_empty() {
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| Error::Spec("too many MSRs".to_owned()))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(kvm("read MSRs"))?.min(entries.len());
        saved.extend(msrs.as_slice().iter().take(count));
        // KVM stops at the first one that this guest doesn't have.
        entries.drain(..(count + 1).min(entries.len()));
    }
    Ok(saved)
}
