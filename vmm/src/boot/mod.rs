//! Direct boot of Linux (Documentation/arch/x86/boot.rst, "64-bit boot protocol"): kernel and initrd
//! into memory, zero page, arguments, and the page tables and GDT that the entry point wants.

pub mod cpu_setup;
pub mod mptable;
mod tables;

use std::ffi::CString;
use std::fs::File;
use std::io;

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::cmdline::Cmdline;
use linux_loader::loader::{Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout::{self, MIB, PAGE};
use crate::memory::{MappedKernel, read_file};
use crate::spec::MachineSpec;

/// Memory that a kernel needs besides itself and its initrd to come up at all.
const SLACK: u64 = 8 * MIB;

/// `E820_TYPE_RAM`.
const RAM: u32 = 1;

/// `SETUP_RNG_SEED` of `struct setup_data`.
const SETUP_RNG_SEED: u32 = 9;
const SEED_BYTES: usize = 32;

/// What every machine tells its kernel; docs/guest-kernel.md has the reasons, and what each one costs.
const ARGUMENTS: &str = "reboot=t noreplace-smp tsc=reliable rcupdate.rcu_expedited=1 \
     dhash_entries=65536 ihash_entries=32768 nf_conntrack.hashsize=4096 ifb.numifbs=0 dummy.numdummies=0";

/// Loads everything the kernel finds in memory; returns the address of its first instruction.
///
/// # Errors
/// Kernel or initrd are missing, damaged, or don't fit; the arguments are too long.
pub fn load(memory: &GuestMemoryMmap, spec: &MachineSpec, devices: usize) -> Result<u64, Error> {
    let bytes = u64::from(spec.memory_mib) * MIB;
    let (mut kernel_file, initrd_file) = (open(&spec.kernel)?, open(&spec.initrd)?);
    let kernel = load_kernel(memory, spec, &mut kernel_file)?;
    let initrd = place_initrd(kernel.kernel_end, &initrd_file, spec)?;
    read_file(memory, &initrd_file, 0, initrd.start, initrd.length)
        .map_err(|error| Error::file(&spec.initrd, error))?;
    let cmdline = cmdline(spec, devices)?;
    memory.write_slice(cmdline.as_bytes_with_nul(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(zero_page(bytes, initrd), GuestAddress(layout::ZERO_PAGE))?;
    memory.write_slice(&seed()?, GuestAddress(layout::SEED))?;
    tables::write(memory)?;
    Ok(kernel.kernel_load.0)
}

fn open(path: &std::path::Path) -> Result<File, Error> {
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Ok(file),
        Ok(_) => Err(Error::file(path, "not a file with content")),
        Err(error) => Err(Error::file(path, error)),
    }
}

/// Puts the kernel's segments into memory. The part of a segment beyond the file's is zero because
/// guest memory is.
fn load_kernel(memory: &GuestMemoryMmap, spec: &MachineSpec, file: &mut File) -> Result<KernelLoaderResult, Error> {
    let unusable =
        |why: String| Error::file(&spec.kernel, format!("not a usable kernel (an uncompressed vmlinux): {why}"));
    let lowest = GuestAddress(layout::KERNEL_MIN);
    let loaded =
        Elf::load(memory, None, &mut MappedKernel(file), Some(lowest)).map_err(|error| unusable(error.to_string()))?;
    if loaded.kernel_load.0 >= loaded.kernel_end {
        return Err(unusable("its entry point is in none of its segments".to_owned()));
    }
    Ok(loaded)
}

/// Where the initrd is in guest memory.
struct Initrd {
    start: u64,
    length: u64,
}

/// Places the initrd right behind the kernel, where the huge page of the kernel's end has room.
fn place_initrd(kernel_end: u64, initrd: &File, spec: &MachineSpec) -> Result<Initrd, Error> {
    let length = initrd.metadata().map_err(|error| Error::file(&spec.initrd, error))?.len();
    let end = layout::low_memory_end(u64::from(spec.memory_mib) * MIB);
    let needed = kernel_end.saturating_add(length).saturating_add(SLACK);
    if needed > end {
        let (mib, given) = (needed.div_ceil(MIB), end / MIB);
        return Err(Error::Spec(format!("kernel and initrd need {mib} MiB of memory below 4 GiB; there are {given}")));
    }
    Ok(Initrd { start: kernel_end.next_multiple_of(PAGE), length })
}

/// The kernel's arguments.
fn cmdline(spec: &MachineSpec, devices: usize) -> Result<CString, Error> {
    let bad = |error: linux_loader::cmdline::Error| Error::Spec(format!("kernel arguments: {error}"));
    let mut line = Cmdline::new(layout::CMDLINE_MAX).map_err(bad)?;
    line.insert_str(ARGUMENTS).map_err(bad)?;
    if spec.console.is_some() {
        line.insert_str("console=ttyS0 earlyprintk=ttyS0 8250.nr_uarts=1").map_err(bad)?;
    }
    let (address, size) = (layout::RAMOOPS, layout::RAMOOPS_SIZE);
    let record = layout::RAMOOPS_RECORD;
    let ramoops =
        format!("ramoops.mem_address={address:#x} ramoops.mem_size={size:#x} ramoops.record_size={record:#x}");
    line.insert_str(ramoops).map_err(bad)?;
    if layout::memory_ranges(u64::from(spec.memory_mib) * MIB).len() > 1 {
        // No device of ours is confined to memory below 4 GiB; without this 64 MiB there are cleared for such.
        line.insert_str("swiotlb=noforce").map_err(bad)?;
    }
    for slot in 0..devices {
        line.insert("virtio_mmio.device", &layout::virtio_parameter(slot, layout::virtio_slot(slot).1)).map_err(bad)?;
    }
    if !spec.cmdline.is_empty() {
        line.insert_str(&spec.cmdline).map_err(bad)?;
    }
    line.as_cstring().map_err(bad)
}

/// The zero page (Documentation/arch/x86/zero-page.rst).
fn zero_page(bytes: u64, initrd: Initrd) -> boot_params {
    let mut page = boot_params::default();
    page.hdr.boot_flag = 0xaa55;
    page.hdr.header = u32::from_le_bytes(*b"HdrS");
    // Version 2.15 of the protocol, an unknown boot loader.
    page.hdr.version = 0x020f;
    page.hdr.type_of_loader = 0xff;
    page.hdr.ramdisk_image = initrd.start as u32;
    page.hdr.ramdisk_size = initrd.length as u32;
    page.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    page.hdr.setup_data = layout::SEED;
    let map = e820(bytes);
    page.e820_entries = map.len() as u8;
    for (entry, (addr, size)) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: RAM };
    }
    page
}

/// The memory map: (address, bytes) of RAM. The ramoops region is left out, so that the kernel finds it by its
/// argument only.
fn e820(bytes: u64) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::RAMOOPS)];
    for (start, length) in layout::memory_ranges(bytes) {
        let first = start.max(MIB);
        map.push((first, start + length - first));
    }
    map
}

/// `struct setup_data` with random bytes from the host: the guest's own generator is ready at once.
fn seed() -> Result<Vec<u8>, Error> {
    let mut seed = [0u8; SEED_BYTES];
    // SAFETY: the pointer and length describe `seed`, which lives across the call.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    if got != SEED_BYTES as isize {
        return Err(Error::Host("get random bytes", io::Error::last_os_error()));
    }
    let mut bytes = 0u64.to_le_bytes().to_vec();
    bytes.extend(SETUP_RNG_SEED.to_le_bytes());
    bytes.extend((SEED_BYTES as u32).to_le_bytes());
    bytes.extend(seed);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::threads::OnThread;

    fn spec(memory_mib: u32, kernel: PathBuf, initrd: PathBuf) -> MachineSpec {
        let kvm = std::fs::File::open("/dev/null").unwrap().into();
        let (cmdline, on_thread) = ("x=y".to_owned(), OnThread::default());
        MachineSpec { kvm, memory_mib, vcpus: 1, kernel, initrd, cmdline, console: None, nested: false, on_thread }
    }

    fn files(kernel: &[u8]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (kernel_path, initrd_path) = (folder.path().join("vmlinux"), folder.path().join("initrd"));
        std::fs::write(&kernel_path, kernel).unwrap();
        std::fs::write(&initrd_path, [7; 5000]).unwrap();
        (folder, kernel_path, initrd_path)
    }

    /// A file with one segment of `code` at `address`, entered at its start, `memory_size` long.
    fn kernel(address: u64, code: &[u8], memory_size: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [address, 64, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for word in [4096, address, address, code.len() as u64, memory_size, 4096] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(4096, 0);
        bytes.extend(code);
        bytes
    }

    #[test]
    fn kernel_initrd_and_zero_page_are_where_the_kernel_looks() {
        let (_folder, kernel, initrd) = files(&kernel(MIB, &[0xf4; 5000], 2 * MIB));
        let memory = crate::memory::allocate(64 * MIB).unwrap();
        assert_eq!(load(&memory, &spec(64, kernel, initrd), 2).unwrap(), MIB);
        let byte = |address: u64| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        let word = |address: u64| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
        assert_eq!((byte(MIB + 4999), byte(MIB + 5000)), (0xf4, 0));
        let (at, length) = (word(layout::ZERO_PAGE + 0x218), word(layout::ZERO_PAGE + 0x21c));
        assert_eq!((u64::from(at), length), (3 * MIB, 5000));
        assert_eq!((byte(u64::from(at)), byte(u64::from(at) + 4999), byte(u64::from(at) + 5000)), (7, 7, 0));
        let mut line = vec![0; layout::CMDLINE_MAX];
        memory.read_slice(&mut line, GuestAddress(layout::CMDLINE)).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(line.contains(" virtio_mmio.device=4K@0xd0001000:6 x=y\0"), "{line}");
    }

    fn kernel_bytes() -> Vec<u8> {
        kernel(MIB, &[0xf4; 10], 60 * MIB)
    }

    #[test]
    fn unusable_files_are_named() {
        let (folder, kernel, initrd) = files(&kernel_bytes());
        let memory = crate::memory::allocate(128 * MIB).unwrap();
        let error = |spec| load(&memory, &spec, 0).unwrap_err().to_string();
        assert!(error(spec(64, kernel.clone(), initrd.clone())).contains("need 70 MiB"));
        assert!(error(spec(64, folder.path().join("none"), initrd.clone())).contains("none: No such file"));
        assert!(error(spec(64, folder.path().to_owned(), initrd.clone())).contains("not a file"));
        assert!(error(spec(64, initrd.clone(), initrd.clone())).contains("initrd: not a usable kernel"));
        let cut = folder.path().join("cut");
        let whole = kernel_bytes();
        std::fs::write(&cut, &whole[..whole.len() - 1]).unwrap();
        assert!(error(spec(64, cut, initrd.clone())).contains("Unable to read kernel image"));
        let mut long = spec(128, kernel, initrd);
        long.cmdline = "a".repeat(2048);
        assert!(error(long).contains("kernel arguments"));
    }

    #[test]
    fn the_memory_map_covers_all_memory_once() {
        for bytes in [64 * MIB, 3072 * MIB, 5000 * MIB] {
            let map = e820(bytes);
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            let total: u64 = map.iter().map(|entry| entry.1).sum();
            assert_eq!(total, bytes - (MIB - layout::RAMOOPS));
        }
    }

    #[test]
    fn the_arguments_are_those_recommended_for_the_kernel() {
        let wanted = include_str!("../../../guest-kernel/cmdline").lines().filter(|line| !line.starts_with('#'));
        // How many CPUs come up at first is for the machine's owner to say.
        for argument in wanted.filter(|line| !line.is_empty() && !line.starts_with("maxcpus")) {
            assert!(ARGUMENTS.split_whitespace().any(|known| known == argument), "{argument} is missing");
        }
    }
}
