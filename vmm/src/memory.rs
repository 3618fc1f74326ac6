//! Guest memory: lazily backed, private, anonymous, in huge pages where the host has them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use crate::error::{Error, kvm};
use crate::layout::{self, HUGE_PAGE};
use crate::registers::Window;

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
    let filler = Filler::new(length);
    let mapping = MmapRegion::new(length);
    drop(filler);
    mapping
}

/// A mapping that fills address space so that the next mapping of a given length begins at a huge page's boundary. The
/// kernel fills holes from the top, so this takes a hole that surely has such a place, frees it up to the
/// end of that, and keeps the rest. (A filler asked for by itself would end up in some smaller hole.)
struct Filler(*mut libc::c_void, usize);

impl Filler {
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

impl Drop for Filler {
    fn drop(&mut self) {
        if self.1 > 0 {
            // SAFETY: the rest of the mapping made in `new`, which nobody else knows.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }
}

/// Keeps guest memory, the kernel's file in it included, out of children that this process forks and out of its core files.
/// It is no business of either, and each page that the guest writes while there is a child would be copied. To be called
/// when everything is mapped.
pub fn keep_in_machine(memory: &GuestMemoryMmap) -> Result<(), Error> {
    for region in memory.iter() {
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the range is the whole mapping of the region; only what a child or a core file gets changes.
            if unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) } != 0 {
                return Err(Error::Host("keep guest memory to this process", io::Error::last_os_error()));
            }
        }
    }
    Ok(())
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

/// Shows the guest the registers of the virtio-mmio devices, a row of windows, at their place.
pub fn register_windows(vm: &VmFd, memory: &GuestMemoryMmap, windows: &[Window]) -> Result<(), Error> {
    let Some(first) = windows.first() else { return Ok(()) };
    let region = kvm_userspace_memory_region {
        slot: memory.num_regions() as u32,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: layout::VIRTIO,
        memory_size: windows.len() as u64 * layout::VIRTIO_SIZE,
        userspace_addr: first.address(),
    };
    // SAFETY: the windows are mapped one after the other, and the machine keeps them until its vCPUs are gone.
    unsafe { vm.set_user_memory_region(region) }.map_err(kvm("register the devices' registers"))
}

/// Reads `length` bytes of `file` from `offset` on to guest address `to`.
///
/// # Errors
/// The range isn't guest memory, or the file is shorter or can't be read.
pub fn read_file(memory: &GuestMemoryMmap, file: &File, offset: u64, to: u64, length: u64) -> io::Result<()> {
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    memory.read_exact_volatile_from(GuestAddress(to), &mut file, length as usize).map_err(io::Error::other)
}

/// Fewer bytes than this are copied: a mapped page costs a fault of its own, a copied one is part of a huge page.
const WORTH_MAPPING: usize = 4 << 20;

/// A kernel's file whose large segments, text and constants, are mapped into guest memory copy-on-write
/// instead of read: all machines on a host share those pages, but for the tenth that a kernel patches.
pub struct MappedKernel<'a>(pub &'a File);

impl MappedKernel<'_> {
    /// Maps the whole pages of `to` from the file's position on; returns how many bytes that were.
    fn map<B: BitmapSlice>(&mut self, to: &VolatileSlice<B>) -> io::Result<usize> {
        let page = layout::PAGE as usize;
        let (offset, length) = (self.0.stream_position()?, to.len() / page * page);
        let at = to.ptr_guard_mut().as_ptr();
        let end = offset.saturating_add(length as u64);
        let aligned = offset.is_multiple_of(layout::PAGE) && (at as usize).is_multiple_of(page);
        if length < WORTH_MAPPING || !aligned || end > self.0.metadata()?.len() {
            return Ok(0);
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
        let (file, position) = (self.0.as_raw_fd(), offset as libc::off_t);
        // SAFETY: the range is whole pages of guest memory, to which nothing in this process refers by
        // address; it stays readable and writable, and goes with the mapping around it.
        let mapped = unsafe { libc::mmap(at.cast(), length, protection, flags, file, position) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        self.0.seek(SeekFrom::Start(end))?;
        Ok(length)
    }
}

impl Read for MappedKernel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for MappedKernel<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl ReadVolatile for MappedKernel<'_> {
    fn read_volatile<B: BitmapSlice>(&mut self, to: &mut VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        let mapped = self.map(to).map_err(VolatileMemoryError::IOError)?;
        self.0.read_exact_volatile(&mut to.offset(mapped)?)?;
        Ok(to.len())
    }
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
            read_file(&memory, &file, offset, to, length).unwrap();
            let mut got = vec![0; length as usize];
            memory.read_slice(&mut got, GuestAddress(to)).unwrap();
            assert_eq!(got, content[offset as usize..(offset + length) as usize]);
        }
        assert!(read_file(&memory, &file, 0, layout::MIB - 4096, 8192).is_err());
        assert!(read_file(&memory, &file, 16_384, 0x4000, 4096 - 10).is_err(), "file too short");
    }

    #[test]
    fn large_segments_are_mapped_and_written_to_privately() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..WORTH_MAPPING as u32 + 5000).map(|i| (i / 4096 + i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let memory = allocate(32 * layout::MIB).unwrap();
        // The second is not aligned and read, the third longer than the file.
        for (offset, to, ok) in [(4096, 0x2000, true), (4096, 0x70_0010, true), (8192, 0xc0_0000, false)] {
            let length = WORTH_MAPPING + 5000 - 4096;
            file.seek(SeekFrom::Start(offset)).unwrap();
            let done = memory.read_exact_volatile_from(GuestAddress(to), &mut MappedKernel(&file), length);
            assert_eq!(done.is_ok(), ok, "{done:?}");
            let mut got = vec![0; length];
            memory.read_slice(&mut got, GuestAddress(to)).unwrap();
            assert!(!ok || got == content[4096..]);
        }
        memory.write_slice(&[7; 5000], GuestAddress(0x2000)).unwrap();
        let mut kept = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut kept).unwrap();
        assert!(kept == content, "the file was written to");
    }

    /// The flags of each mapping of this process that begins in the memory (`VmFlags` in proc(5)).
    fn flags(memory: &GuestMemoryMmap) -> Vec<String> {
        let region = memory.iter().next().unwrap();
        let (start, end) = (region.as_ptr() as u64, region.as_ptr() as u64 + region.len());
        let (mut within, mut found) = (false, Vec::new());
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let address = line.split_once('-').and_then(|(start, _)| u64::from_str_radix(start, 16).ok());
            within = address.map_or(within, |address| (start..end).contains(&address));
            found.extend(line.strip_prefix("VmFlags:").filter(|_| within).map(|flags| format!("{flags} ")));
        }
        found
    }

    #[test]
    fn no_core_file_and_no_child_gets_guest_memory() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; WORTH_MAPPING]).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let memory = allocate(16 * layout::MIB).unwrap();
        let kernel = GuestAddress(2 * layout::MIB);
        memory.read_exact_volatile_from(kernel, &mut MappedKernel(&file), WORTH_MAPPING).unwrap();
        assert!(flags(&memory).iter().all(|flags| !flags.contains(" dd ")));
        keep_in_machine(&memory).unwrap();
        let flags = flags(&memory);
        assert!(flags.len() >= 3, "memory, the kernel's file, memory: {flags:?}");
        assert!(flags.iter().all(|flags| flags.contains(" dd ") && flags.contains(" dc ")), "{flags:?}");
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
