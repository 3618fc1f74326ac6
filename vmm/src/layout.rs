//! Where things are in the guest's physical address space.
//!
//! ```text
//!  0x0000_0000  MP floating pointer, MP table (page 0, which Linux never uses itself)
//!  0x0000_7000  zero page, then kernel arguments, boot GDT, random seed, boot page tables
//!  0x0009_0000  ramoops: the kernel's last words (Linux keeps off the first MiB in any case)
//!  0x0010_0000  kernel (where its ELF says), then the initrd
//!  0xc000_0000  end of low memory at the latest
//!  0xd000_0000  virtio-mmio devices, 4 KiB each
//!  0xfec0_0000  I/O APIC, 0xfee0_0000 local APICs, 0xfffb_c000 KVM's own pages
//! 0x1_0000_0000 high memory
//! ```

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 2 * MIB;

/// MP floating pointer structure: Linux looks in the first KiB first.
pub const MP_POINTER: u64 = 0;
/// MP configuration table, after the BIOS data area (which stays zero).
pub const MP_TABLE: u64 = 0x500;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// The kernel's arguments.
pub const CMDLINE: u64 = 0x8000;
/// Longest argument string with its terminating zero (`COMMAND_LINE_SIZE` of x86 Linux).
pub const CMDLINE_MAX: usize = 2048;
/// Boot GDT.
pub const GDT: u64 = 0x8800;
/// `struct setup_data` with the random seed.
pub const SEED: u64 = 0x8900;
/// Top of the boot stack; the kernel has its own within a few instructions.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Boot page tables: one page each of PML4, PDPT and PD.
pub const PML4: u64 = 0x9000;
/// Page directory pointers.
pub const PDPT: u64 = 0xa000;
/// Page directory: 512 pages of 2 MiB.
pub const PD: u64 = 0xb000;
/// First byte of the ramoops region.
pub const RAMOOPS: u64 = 0x9_0000;
/// Size of the ramoops region in bytes, a power of two.
pub const RAMOOPS_SIZE: u64 = 0x8000;
/// Size of a record in the ramoops region, as the kernel is told. A power of two; that it fits the region once makes it
/// one zone.
pub const RAMOOPS_RECORD: u64 = 0x4000;
/// Lowest address at which a kernel may begin.
pub const KERNEL_MIN: u64 = MIB;

/// End of memory below the MMIO gap.
pub const GAP_START: u64 = 0xc000_0000;
/// Memory below the gap when there is more than fits there: room for kernel and initrd.
pub const LOW_MEMORY: u64 = 256 * MIB;
/// Start of memory above the gap.
pub const GAP_END: u64 = 1 << 32;
/// First virtio-mmio device.
pub const VIRTIO: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio device's registers.
pub const VIRTIO_SIZE: u64 = crate::registers::SIZE as u64;
/// Interrupt of the first virtio-mmio device; the others follow.
pub const VIRTIO_IRQ: u32 = 5;
/// The I/O APIC's inputs.
pub const IRQS: u32 = 24;
/// Most virtio-mmio devices: one input of the I/O APIC each.
pub const VIRTIO_MAX: usize = (IRQS - VIRTIO_IRQ) as usize;
/// Most virtio-mmio devices besides, which share the interrupt of another one.
pub const SHARING_MAX: usize = 8;
/// First port that notifies queues of a virtio-mmio device.
pub const NOTIFY_PORT: u64 = 0x6000;
/// Bytes of a notification port.
pub const NOTIFY_PORT_SIZE: u64 = 4;
/// Serial port and its interrupt.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of the serial device.
pub const SERIAL_PORTS: u16 = 8;
/// Interrupt of the serial port.
pub const SERIAL_IRQ: u32 = 4;
/// I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel for real mode (`KVM_SET_TSS_ADDR`); nothing else may be there.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Guest memory as (first address, bytes): below the MMIO gap if it all fits there, else little of it. Our kernel
/// leaves memory undescribed until it is needed, but only in its highest zone, which then begins above the gap.
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    match low_memory_end(bytes) {
        low if low == bytes => vec![(0, bytes)],
        low => vec![(0, low), (GAP_END, bytes - low)],
    }
}

/// End of the memory below the gap.
pub fn low_memory_end(bytes: u64) -> u64 {
    if bytes > GAP_START { LOW_MEMORY } else { bytes }
}

/// Address of the virtio-mmio device in this slot, and the interrupt of one that shares none.
pub fn virtio_slot(slot: usize) -> (u64, u32) {
    (VIRTIO + slot as u64 * VIRTIO_SIZE, VIRTIO_IRQ + slot as u32)
}

/// The port to which a driver that knows it writes the number of a queue, 32 bits, in place of the device's `QueueNotify`.
pub fn notify_port(slot: usize) -> u64 {
    NOTIFY_PORT + slot as u64 * NOTIFY_PORT_SIZE
}

/// The value of Linux' parameter `virtio_mmio.device` for the device in this slot, with this interrupt.
pub fn virtio_parameter(slot: usize, irq: u32) -> String {
    let (address, _) = virtio_slot(slot);
    format!("{}K@{address:#x}:{irq}", VIRTIO_SIZE >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_around_the_gap() {
        assert_eq!(memory_ranges(128 * MIB), [(0, 128 * MIB)]);
        assert_eq!(memory_ranges(3072 * MIB), [(0, 3072 * MIB)]);
        assert_eq!(memory_ranges(3073 * MIB), [(0, 256 * MIB), (1 << 32, 2817 * MIB)]);
        assert_eq!(low_memory_end(8192 * MIB), 256 * MIB);
    }

    #[test]
    fn slots_stay_below_the_ioapic() {
        let (_, irq) = virtio_slot(VIRTIO_MAX - 1);
        let (address, _) = virtio_slot(VIRTIO_MAX + SHARING_MAX - 1);
        assert!(address + VIRTIO_SIZE <= IOAPIC.into() && irq == IRQS - 1);
    }

    #[test]
    fn slots_are_told_as_the_kernel_reads_them() {
        assert_eq!(virtio_parameter(5, 10), "4K@0xd0005000:10");
    }
}
