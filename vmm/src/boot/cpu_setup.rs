//! The state a virtual CPU starts in: CPUID, registers for the 64-bit entry point, MSRs, local APIC.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::tables;
use crate::error::{Error, kvm};
use crate::layout;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// MTRRs on, default type write-back.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// Registers of the local APIC (Intel SDM volume 3, table 11-1) and delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const MODE_NMI: u8 = 4;
const MODE_EXTINT: u8 = 7;

/// What a machine's virtual CPUs are like.
#[derive(Clone, Copy)]
pub struct Cpus {
    /// How many there are.
    pub count: u8,
    /// Whether the guest can run virtual machines.
    pub nested: bool,
}

/// Edits what KVM supports into the CPUID of vCPU `id` out of those.
///
/// The guest sees one package of `count` cores with one thread each, x2APIC, and a TSC deadline timer
/// that doesn't stop: so it needs neither PIT nor calibration. It sees no performance counters and, as a rule, no
/// virtualisation of the processor's: most holes in KVM were in what that takes. Everything else is as on the host.
pub fn cpuid(supported: &CpuId, id: u8, cpus: Cpus) -> Result<CpuId, Error> {
    let count = cpus.count;
    let keep = |entry: &&kvm_cpuid_entry2| !matches!(entry.function, 0xb | 0x1f);
    let mut entries: Vec<_> = supported.as_slice().iter().filter(keep).copied().collect();
    for entry in &mut entries {
        edit(entry, u32::from(id), u32::from(count));
        hide_counters(entry);
        if !cpus.nested {
            hide_virtualisation(entry);
        }
    }
    entries.extend(extended_topology(u32::from(id), u32::from(count)));
    CpuId::from_entries(&entries).map_err(|_| Error::Spec("the host's CPUID is larger than KVM takes".to_owned()))
}

/// Bits that number `count` cores.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn edit(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let several = count > 1;
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xff00) | (entry.ebx & 0xff) | (id << 24) | (1 << core_bits(count) << 16);
            // x2APIC, TSC deadline timer, hypervisor; HTT says that the count above is meant.
            entry.ecx |= (1 << 21) | (1 << 24) | (1 << 31);
            entry.edx = (entry.edx & !(1 << 28)) | (u32::from(several) << 28);
        }
        // Deterministic cache parameters, Intel's and AMD's: levels 1 and 2 per core, 3 for all.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if (entry.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
            if entry.function == 0x4 {
                entry.eax |= ((1 << core_bits(count)) - 1) << 26;
            }
        }
        // The APIC timer always runs (ARAT); no other power management is emulated.
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (1 << 2, 0, 0, 0),
        0x8000_0008 => entry.ecx = (core_bits(count) << 12) | (count - 1),
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Clears the leaf.
fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Hides performance counters: probing them costs exits, and they would tell of other tenants.
fn hide_counters(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        // PDCM: the MSR that describes the counters' features.
        0x1 => entry.ecx &= !(1 << 15),
        // Intel's counters and their extension; AMD's of version 2.
        0xa | 0x23 | 0x8000_0022 => clear(entry),
        // AMD's counters: of cores, north bridge and last-level cache.
        0x8000_0001 => entry.ecx &= !((1 << 23) | (1 << 24) | (1 << 28)),
        _ => {}
    }
}

/// Hides VMX and SVM. KVM refuses a guest that does not see them the instructions and registers, too.
fn hide_virtualisation(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        0x1 => entry.ecx &= !(1 << 5),
        // SVM, and SKINIT.
        0x8000_0001 => entry.ecx &= !((1 << 2) | (1 << 12)),
        0x8000_000a => clear(entry),
        _ => {}
    }
}

/// Leaf 0xb: a level of threads (one per core) and a level of cores.
fn extended_topology(id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: (kind << 8) | index,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, core_bits(count), count, 2), level(2, 0, 0, 0)]
}

/// Puts a vCPU into its first state. The boot CPU will start at `entry`; the others wait for it to
/// wake them, in the state KVM created them in.
pub fn apply(vcpu: &VcpuFd, cpuid: &CpuId, entry: Option<u64>) -> Result<(), Error> {
    vcpu.set_cpuid2(cpuid).map_err(kvm("set CPUID"))?;
    set_msrs(vcpu)?;
    let mut lapic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm("set the local APIC"))?;
    // FPU and MP state need nothing: KVM creates vCPUs as after a reset, with the first one runnable.
    match entry {
        Some(entry) => set_registers(vcpu, entry),
        None => Ok(()),
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let wanted = [msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), msr(MSR_MTRR_DEFAULT, MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&wanted).map_err(|_| Error::Spec("too many MSRs".to_owned()))?;
    // Not all processors have all of them; the kernel lives without.
    vcpu.set_msrs(&msrs).map_err(kvm("set MSRs")).map(|_| ())
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u8) {
    // Bits 8 to 10 of the register.
    if let Some(byte) = lapic.regs.get_mut(register + 1) {
        *byte = ((*byte as u8 & !7) | mode) as _;
    }
}

/// Long mode with paging, flat segments, `boot_params` in RSI (64-bit boot protocol).
fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let mut sregs = vcpu.get_sregs().map_err(kvm("read system registers"))?;
    let data = segment(0x18, 3);
    sregs.cs = kvm_segment { l: 1, db: 0, ..segment(0x10, 11) };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { s: 0, g: 0, db: 0, limit: 0x67, ..segment(0, 11) };
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, size_of_val(&tables::GDT) as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr3 = layout::PML4;
    // PAE; paging, extension type and protection; long mode enabled and active.
    (sregs.cr4, sregs.cr0, sregs.efer) = (1 << 5, (1 << 31) | (1 << 4) | 1, (1 << 8) | (1 << 10));
    vcpu.set_sregs(&sregs).map_err(kvm("set system registers"))?;
    let regs = kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("set registers"))
}

/// A present, flat segment of 4 GiB.
fn segment(selector: u16, kind: u8) -> kvm_segment {
    let limit = 0xffff_ffff;
    kvm_segment { base: 0, limit, selector, type_: kind, present: 1, s: 1, db: 1, g: 1, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn edited(entries: &[kvm_cpuid_entry2], id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        edited_for(entries, id, Cpus { count, nested: false })
    }

    fn edited_for(entries: &[kvm_cpuid_entry2], id: u8, cpus: Cpus) -> Vec<kvm_cpuid_entry2> {
        let supported = CpuId::from_entries(entries).unwrap();
        cpuid(&supported, id, cpus).unwrap().as_slice().to_vec()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn every_cpu_gets_its_own_identity() {
        let host = [
            entry(0x1, 0, [0, 0x0c10_0800, 0, 1 << 28]),
            entry(0xb, 0, [1, 2, 0x100, 9]),
            entry(0x1f, 0, [1, 2, 0x100, 9]),
            entry(0x8000_001e, 0, [77, 77, 77, 0]),
        ];
        let guest = edited(&host, 2, 3);
        let leaf = find(&guest, 1, 0);
        assert_eq!(leaf.ebx, 0x0204_0800);
        assert_eq!(leaf.ecx, (1 << 21) | (1 << 24) | (1 << 31));
        assert_eq!(leaf.edx, 1 << 28);
        assert_eq!((find(&guest, 0xb, 1).eax, find(&guest, 0xb, 1).ebx, find(&guest, 0xb, 0).edx), (2, 3, 2));
        assert!(!guest.iter().any(|entry| entry.function == 0x1f));
        assert_eq!((find(&guest, 0x8000_001e, 0).eax, find(&guest, 0x8000_001e, 0).ecx), (2, 0));
        assert_eq!(find(&edited(&host, 0, 1), 1, 0).edx, 0);
    }

    #[test]
    fn caches_are_shared_by_those_cores_there_are() {
        let l1 = 0x1c00_4121;
        let l3 = 0x1c03_c163;
        let guest = edited(&[entry(4, 0, [l1, 0, 0, 0]), entry(4, 3, [l3, 0, 0, 0])], 0, 4);
        assert_eq!((find(&guest, 4, 0).eax >> 14) & 0xfff, 0);
        assert_eq!((find(&guest, 4, 3).eax >> 14) & 0xfff, 3);
        assert_eq!(find(&guest, 4, 3).eax >> 26, 3);
        assert_eq!(find(&guest, 4, 0).eax & 0x3fff, l1 & 0x3fff);
    }

    #[test]
    fn the_timer_never_stops_and_counters_are_hidden() {
        let host = [entry(6, 0, [0x77, 2, 9, 0]), entry(0xa, 0, [0x0730_0404, 0, 0, 0x603])];
        let guest = edited(&host, 0, 1);
        assert_eq!((find(&guest, 6, 0).eax, find(&guest, 6, 0).ecx), (4, 0));
        assert_eq!((find(&guest, 0xa, 0).eax, find(&guest, 0xa, 0).edx), (0, 0));
    }

    /// A processor that has every bit.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let all = [u32::MAX; 4];
        let leaves = [0x1, 0xa, 0x23, 0x4000_0001, 0x8000_0001, 0x8000_000a, 0x8000_0022];
        leaves.map(|leaf| entry(leaf, 0, all)).to_vec()
    }

    /// The bits of a register that the guest doesn't see of those.
    fn hidden(cpus: Cpus, leaf: u32, register: fn(&kvm_cpuid_entry2) -> u32) -> u32 {
        !register(&find(&edited_for(&everything(), 0, cpus), leaf, 0))
    }

    #[test]
    fn guests_see_counters_of_no_vendor() {
        for nested in [false, true] {
            let cpus = Cpus { count: 1, nested };
            for leaf in [0xa, 0x23, 0x8000_0022] {
                assert_eq!(hidden(cpus, leaf, |entry| entry.eax & entry.ebx & entry.ecx & entry.edx), u32::MAX);
            }
            assert_eq!(hidden(cpus, 0x1, |entry| entry.ecx) & !(1 << 5), 1 << 15);
            let amd = hidden(cpus, 0x8000_0001, |entry| entry.ecx) & !((1 << 2) | (1 << 12));
            assert_eq!(amd, (1 << 23) | (1 << 24) | (1 << 28));
            assert_eq!(hidden(cpus, 0x4000_0001, |entry| entry.eax), 0, "what KVM offers stays");
        }
    }

    #[test]
    fn guests_see_virtualisation_only_where_it_is_meant() {
        for (nested, vmx, svm, leaf) in [(false, 1 << 5, 1 << 2, u32::MAX), (true, 0, 0, 0)] {
            let cpus = Cpus { count: 1, nested };
            assert_eq!(hidden(cpus, 0x1, |entry| entry.ecx) & (1 << 5), vmx);
            assert_eq!(hidden(cpus, 0x8000_0001, |entry| entry.ecx) & (1 << 2), svm);
            let registers: [fn(&kvm_cpuid_entry2) -> u32; 4] =
                [|leaf| leaf.eax, |leaf| leaf.ebx, |leaf| leaf.ecx, |leaf| leaf.edx];
            for register in registers {
                assert_eq!(hidden(cpus, 0x8000_000a, register), leaf);
            }
        }
    }

    #[test]
    fn local_interrupt_pins_have_their_modes() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT0 + 1] = 1;
        set_delivery_mode(&mut lapic, LVT_LINT0, MODE_EXTINT);
        set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
        assert_eq!((lapic.regs[LVT_LINT0 + 1], lapic.regs[LVT_LINT1 + 1]), (7, 4));
    }
}
