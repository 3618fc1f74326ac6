//! Page tables and segments that the kernel's entry point wants.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout;

/// Code (64-bit) and data segments at selectors 0x10 and 0x18, as the boot protocol asks.
pub const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Page tables that map the first GiB to itself, and the GDT.
pub fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
    // Present and writable; 0x80 makes it a 2 MiB page.
    memory.write_obj(layout::PDPT | 3, GuestAddress(layout::PML4))?;
    memory.write_obj(layout::PD | 3, GuestAddress(layout::PDPT))?;
    let directory: Vec<u8> = (0..512u64).flat_map(|index| ((index << 21) | 0x83).to_le_bytes()).collect();
    memory.write_slice(&directory, GuestAddress(layout::PD))?;
    let gdt: Vec<u8> = GDT.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&gdt, GuestAddress(layout::GDT))?;
    Ok(())
}
