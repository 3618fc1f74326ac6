//! Guest memory: lazily backed, private, anonymous, in huge pages where the host has them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::error::{Error, kvm};
use crate::layout::{self, HUGE_PAGE};

/// Reserves address space for `bytes` of guest memory; pages come as they are touched, 2 MiB at a time
/// where the host has them: a nested page fault costs a VM exit, and a booting kernel touches 60 MiB.
pub fn allocate(bytes: u64) -> Result<GuestMemoryMmap, Error> {
    let failed =
        |error: &dyn std::fmt::Display| Error::Host("reserve guest memory", io::Error::other(error.to_string()));
    let mut regions = Vec::new();
    for (start, length) in layout::memory_ranges(bytes) {
        let mapping = map_aligned(length as usize).map_err(|error| failed(&error))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        regions.push(region.ok_or_else(|| failed(&"beyond the address space"))?);
    }
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|error| failed(&error))?;
    for region in memory.iter() {
        // SAFETY: the range is this mapping's own; the advice changes no content. A host without huge
        // pages refuses it, and then small ones have to do.
        unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_HUGEPAGE) };
    }
    Ok(memory)
}

/// An anonymous mapping that begins at a multiple of [`HUGE_PAGE`], so that huge pages of the host are
/// huge pages of the guest too. Where the kernel doesn't play along, it works all the same, only slower.
fn map_aligned(length: usize) -> Result<MmapRegion, MmapRegionError> {
    let plug = Plug::new(length);
    let mapping = MmapRegion::new(length);
    drop(plug);
    mapping
}

/// Fills address space so that the next mapping of a given length begins at a huge page's boundary. The
/// kernel fills holes from the top, so this takes a hole that surely has such a place, frees it up to the
/// end of that, and keeps the rest. (A filler asked for by itself would end up in some smaller hole.)
struct Plug(*mut libc::c_void, usize);

impl Plug {
    fn new(length: usize) -> Option<Self> {
        let huge = HUGE_PAGE as usize;
        let hole = length.checked_add(huge)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), hole, libc::PROT_NONE, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        let end = (at as usize).next_multiple_of(huge) + length;
        // SAFETY: the lower part of the mapping made above, which nobody else knows.
        unsafe { libc::munmap(at, end - at as usize) };
        Some(Self(end as *mut _, at as usize + hole - end))
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        if self.1 > 0 {
            // SAFETY: the rest of the mapping made in `new`, which nobody else knows.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }
}

/// Tells KVM where guest memory is. Before the interrupt controllers: a later slot costs milliseconds
/// on some kernels.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped, and the machine keeps the mapping until its vCPUs are gone.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("register guest memory"))?;
    }
    Ok(())
}

/// Reads `length` bytes of `file` from `offset` to guest address `to`.
///
/// Mapping the file copy-on-write was measured and is worse: the guest's kernel patches most of its own
/// pages, and each then costs two faults of 4 KiB where one of 2 MiB does for 512.
///
/// # Errors
/// The range isn't guest memory, or the file is shorter or can't be read.
pub fn read_file(memory: &GuestMemoryMmap, file: &File, offset: u64, to: (u64, u64)) -> io::Result<()> {
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    memory.read_exact_volatile_from(GuestAddress(to.0), &mut file, to.1 as usize).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_appear_in_memory() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let memory = allocate(layout::MIB).unwrap();
        for (offset, to, length) in [(0, 0x4000, 20_000), (4096, 0x8000, 8192), (3, 0x9001, 12_345), (4096, 0xb000, 10)]
        {
            read_file(&memory, &file, offset, (to, length)).unwrap();
            let mut got = vec![0; length as usize];
            memory.read_slice(&mut got, GuestAddress(to)).unwrap();
            assert_eq!(got, content[offset as usize..(offset + length) as usize]);
        }
        assert!(read_file(&memory, &file, 0, (layout::MIB - 4096, 8192)).is_err());
        assert!(read_file(&memory, &file, 16_384, (0x4000, 4096 - 10)).is_err(), "file too short");
    }

    #[test]
    fn huge_pages_of_host_and_guest_coincide() {
        // Another thread may map something in between; not every time.
        let aligned = |bytes| {
            let memory = allocate(bytes).unwrap();
            (memory.iter().next().unwrap().as_ptr() as u64).is_multiple_of(HUGE_PAGE)
        };
        for bytes in [64 * layout::MIB, 129 * layout::MIB] {
            assert!((0..10).any(|_| aligned(bytes)));
        }
    }
}
