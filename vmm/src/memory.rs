//! Guest memory: lazily backed anonymous pages, with files mapped over them copy-on-write.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::{Error, kvm};
use crate::layout::{self, PAGE};

/// Reserves address space for `bytes` of guest memory; pages come as they are touched.
pub fn allocate(bytes: u64) -> Result<GuestMemoryMmap, Error> {
    let ranges: Vec<_> = layout::memory_ranges(bytes)
        .into_iter()
        .map(|(start, length)| (GuestAddress(start), length as usize))
        .collect();
    // Anonymous, private and without reserving swap is what this function maps.
    GuestMemoryMmap::from_ranges(&ranges)
        .map_err(|error| Error::Host("reserve guest memory", io::Error::other(error.to_string())))
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

/// Makes `length` bytes of `file` from `offset` appear at guest address `to`: whole pages are mapped
/// copy-on-write when both are aligned alike, the rest is read.
///
/// # Errors
/// The range isn't guest memory, or the file is shorter or can't be read.
pub fn map_file(memory: &GuestMemoryMmap, file: &File, offset: u64, to: (u64, u64)) -> io::Result<()> {
    let (to, length) = to;
    let whole = if offset.is_multiple_of(PAGE) && to.is_multiple_of(PAGE) { length - length % PAGE } else { 0 };
    if whole > 0 {
        let slice = memory.get_slice(GuestAddress(to), whole as usize).map_err(io::Error::other)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
        let address = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: the slice was checked to be guest memory of ours, so only that is replaced; nobody
        // holds a reference into it, and the region's unmapping covers the new mapping too.
        let mapped =
            unsafe { libc::mmap(address, whole as usize, protection, flags, file.as_raw_fd(), offset as libc::off_t) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
    }
    read_file(memory, file, offset + whole, (to + whole, length - whole))
}

fn read_file(memory: &GuestMemoryMmap, file: &File, offset: u64, to: (u64, u64)) -> io::Result<()> {
    let (to, length) = to;
    let mut buffer = [0; 1 << 16];
    let mut done = 0;
    while done < length {
        let chunk = buffer.len().min((length - done) as usize);
        file.read_exact_at(&mut buffer[..chunk], offset + done)?;
        memory.write_slice(&buffer[..chunk], GuestAddress(to + done)).map_err(io::Error::other)?;
        done += chunk as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn files_appear_in_memory_whatever_their_alignment() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let memory = allocate(layout::MIB).unwrap();
        for (offset, to, length) in [(0, 0x4000, 20_000), (4096, 0x8000, 8192), (3, 0x9001, 12_345), (4096, 0xb000, 10)]
        {
            map_file(&memory, &file, offset, (to, length)).unwrap();
            let mut got = vec![0; length as usize];
            memory.read_slice(&mut got, GuestAddress(to)).unwrap();
            assert_eq!(got, content[offset as usize..(offset + length) as usize]);
        }
        assert!(map_file(&memory, &file, 0, (layout::MIB - 4096, 8192)).is_err());
        assert!(map_file(&memory, &file, 16_384, (0x4000, 4096 - 10)).is_err(), "file too short");
    }
}
