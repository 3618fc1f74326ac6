//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4), which lists CPUs and interrupt
//! controllers in place of ACPI.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout;

const SPEC_1_4: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ISA_BUS: u8 = 0;

/// Writes floating pointer and table for this many CPUs, whose APIC ids are 0, 1, 2, …, and for the
/// interrupts that have a device. Linux sets up each interrupt that it finds, with a dozen VM exits.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8, irqs: &[u8]) -> Result<(), Error> {
    memory.write_slice(&pointer(), GuestAddress(layout::MP_POINTER))?;
    memory.write_slice(&table(vcpus, irqs), GuestAddress(layout::MP_TABLE))?;
    Ok(())
}

/// The floating pointer structure (section 4.1).
fn pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend((layout::MP_TABLE as u32).to_le_bytes());
    bytes.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    seal(bytes, 10)
}

/// Header and entries (sections 4.2 and 4.3). The I/O APIC's id follows those of the CPUs.
fn table(vcpus: u8, irqs: &[u8]) -> Vec<u8> {
    let mut entries = Vec::new();
    for id in 0..vcpus {
        // Enabled, and the first one boots. Signature and features are read from CPUID nowadays.
        entries.extend([0, id, APIC_VERSION, 1 | if id == 0 { 2 } else { 0 }]);
        entries.extend([0; 16]);
    }
    entries.extend([1, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([2, vcpus, APIC_VERSION, 1]);
    entries.extend(layout::IOAPIC.to_le_bytes());
    for &irq in irqs {
        // A vectored interrupt with the bus's usual trigger and polarity: ISA is edge, active high.
        entries.extend([3, 0, 0, 0, ISA_BUS, irq, vcpus, irq]);
    }
    // Local interrupts of all CPUs: ExtINT on LINT0 (type 3), NMI on LINT1 (type 1).
    entries.extend([4, 3, 0, 0, ISA_BUS, 0, 0xff, 0]);
    entries.extend([4, 1, 0, 0, ISA_BUS, 0, 0xff, 1]);
    let count = u16::from(vcpus) + 1 + 1 + irqs.len() as u16 + 2;
    header(&entries, count)
}

fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let mut bytes = b"PCMP".to_vec();
    bytes.extend((44 + entries.len() as u16).to_le_bytes());
    bytes.extend([SPEC_1_4, 0]);
    bytes.extend(b"RUNVM   MICROVM     ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(layout::LAPIC.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(entries);
    seal(bytes, 7)
}

/// Has all bytes add up to zero by setting the one at `at`.
fn seal(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = sum.wrapping_neg();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn lengths_and_checksums_are_right() {
        let pointer = pointer();
        assert_eq!((pointer.len(), sum(&pointer), &pointer[..4]), (16, 0, &b"_MP_"[..]));
        let irqs: Vec<u8> = (0..layout::IRQS as u8).collect();
        for vcpus in [1, 2, MAX_VCPUS] {
            let table = table(vcpus, &irqs);
            assert_eq!(sum(&table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), u16::from(vcpus) + 28);
            assert_eq!(table[36..40], layout::LAPIC.to_le_bytes());
            assert!(layout::MP_TABLE as usize + table.len() <= layout::PAGE as usize);
        }
    }

    #[test]
    fn entries_can_be_walked() {
        let table = table(3, &[4, 5, 6]);
        let (mut at, mut seen) = (44, [0; 5]);
        while at < table.len() {
            let kind = usize::from(table[at]);
            seen[kind] += 1;
            at += if kind == 0 { 20 } else { 8 };
        }
        assert_eq!(seen, [3, 1, 1, 3, 2]);
        assert_eq!(at, table.len());
    }
}
