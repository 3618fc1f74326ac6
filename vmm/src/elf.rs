//! The ELF of a kernel (System V ABI, chapters 4 and 5): which parts of the file go where.

use std::fs::File;
use std::os::unix::fs::FileExt;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// More segments than any kernel has.
const MAX_SEGMENTS: u16 = 64;
const X86_64: u16 = 62;
const LOAD: u32 = 1;

/// One loadable segment, in physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Guest address.
    pub address: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Bytes in memory; those beyond the file's are zero.
    pub memory_size: u64,
}

/// A kernel that was looked at, not loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// The loadable segments.
    pub segments: Vec<Segment>,
    /// First address after the kernel.
    pub end: u64,
}

/// Reads the headers.
///
/// # Errors
/// What is wrong with the file, to be put after its name.
pub fn inspect(file: &File) -> Result<Image, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(|_| "too short to be a kernel".to_owned())?;
    let count = check_header(&header)?;
    let mut table = vec![0; PROGRAM_HEADER * usize::from(count)];
    file.read_exact_at(&mut table, u64_at(&header, 32)).map_err(|_| "its program headers are cut off".to_owned())?;
    let mut segments = Vec::new();
    for program_header in table.chunks_exact(PROGRAM_HEADER).filter(|entry| u32_at(entry, 0) == LOAD) {
        let segment = segment(program_header, length)?;
        if segment.memory_size > 0 {
            segments.push(segment);
        }
    }
    let entry = u64_at(&header, 24);
    let contains = |segment: &Segment| (segment.address..segment.address + segment.file_size).contains(&entry);
    if !segments.iter().any(contains) {
        return Err(format!("its entry point {entry:#x} is in none of its segments"));
    }
    let end = segments.iter().map(|segment| segment.address + segment.memory_size).max().unwrap_or(0);
    Ok(Image { entry, segments, end })
}

fn check_header(header: &[u8; HEADER]) -> Result<u16, String> {
    if !header.starts_with(b"\x7fELF") {
        return Err("no ELF file; an uncompressed vmlinux is needed, not a bzImage".to_owned());
    }
    // 64-bit, little endian.
    if header[4..6] != [2, 1] || u16_at(header, 18) != X86_64 {
        return Err("no kernel for x86-64".to_owned());
    }
    let count = u16_at(header, 56);
    if usize::from(u16_at(header, 54)) != PROGRAM_HEADER || !(1..=MAX_SEGMENTS).contains(&count) {
        return Err("its program headers make no sense".to_owned());
    }
    Ok(count)
}

fn segment(header: &[u8], file_length: u64) -> Result<Segment, String> {
    let segment = Segment {
        offset: u64_at(header, 8),
        address: u64_at(header, 24),
        file_size: u64_at(header, 32),
        memory_size: u64_at(header, 40),
    };
    let in_file = segment.offset.checked_add(segment.file_size).is_some_and(|end| end <= file_length);
    if !in_file {
        return Err("a segment is cut off: the file is incomplete".to_owned());
    }
    if segment.file_size > segment.memory_size || segment.address.checked_add(segment.memory_size).is_none() {
        return Err("a segment's sizes make no sense".to_owned());
    }
    Ok(segment)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A file with one segment of `code` at `address`, entered at its start, `memory_size` long.
    pub(crate) fn kernel(address: u64, code: &[u8], memory_size: u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [address, HEADER as u64, 0] {
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

    fn inspect_bytes(bytes: &[u8]) -> Result<Image, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        inspect(&file)
    }

    #[test]
    fn finds_segments_and_entry() {
        let image = inspect_bytes(&kernel(0x10_0000, &[0x90; 100], 5000)).unwrap();
        let segment = Segment { offset: 4096, address: 0x10_0000, file_size: 100, memory_size: 5000 };
        assert_eq!(image, Image { entry: 0x10_0000, segments: vec![segment], end: 0x10_0000 + 5000 });
    }

    #[test]
    fn says_what_is_wrong() {
        let good = kernel(0x10_0000, &[0x90; 100], 5000);
        assert!(inspect_bytes(&[]).unwrap_err().contains("too short"));
        assert!(inspect_bytes(&[b'x'; 5000]).unwrap_err().contains("no ELF"));
        assert!(inspect_bytes(&good[..good.len() - 1]).unwrap_err().contains("incomplete"));
        assert!(inspect_bytes(&good[..100]).unwrap_err().contains("cut off"));
        let mut other = good.clone();
        other[18] = 183;
        assert!(inspect_bytes(&other).unwrap_err().contains("x86-64"));
        let mut other = good;
        other[24] = 200;
        assert!(inspect_bytes(&other).unwrap_err().contains("entry point"));
    }

    proptest! {
        #[test]
        fn damaged_headers_are_errors_or_consistent(at in 0usize..200, value: u64) {
            let mut bytes = kernel(0x10_0000, &[0x90; 100], 5000);
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            if let Ok(image) = inspect_bytes(&bytes) {
                for segment in image.segments {
                    prop_assert!(segment.offset + segment.file_size <= bytes.len() as u64);
                    prop_assert!(segment.address + segment.memory_size <= image.end);
                }
            }
        }
    }
}
