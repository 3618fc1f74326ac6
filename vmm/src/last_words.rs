//! What a panicking kernel left in the ramoops region (Documentation/admin-guide/ramoops.rst).
//!
//! The region is a row of zones of [`RECORD_SIZE`] bytes, each a `struct persistent_ram_buffer`
//! (fs/pstore/ram_core.c): signature, start of the text within the ring, its length, then the ring.
//! The last 12 KiB are for zones of other kinds, which our kernel doesn't write.
//! A record begins with a line `====SECONDS.MICROSECONDS-D`. All of it is the guest's to forge.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

/// Size of one zone in bytes: the most text one panic leaves.
pub const RECORD_SIZE: u64 = 0x4000;

/// `PERSISTENT_RAM_SIG`, "DBGC".
const SIGNATURE: u32 = 0x4347_4244;
const HEADER: usize = 12;

/// The newest record's text, control characters replaced; `None` when there is none.
pub fn read(memory: &GuestMemoryMmap) -> Option<String> {
    let mut region = vec![0; layout::RAMOOPS_SIZE as usize];
    memory.read_slice(&mut region, GuestAddress(layout::RAMOOPS)).ok()?;
    let records = region.chunks(RECORD_SIZE as usize).filter_map(record);
    let (_, text) = records.max_by_key(|(time, _)| *time)?;
    Some(printable(&text))
}

/// Time in microseconds and text of the record in a zone.
fn record(zone: &[u8]) -> Option<(u64, Vec<u8>)> {
    let (header, ring) = zone.split_at_checked(HEADER)?;
    let field = |at: usize| header.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let (start, size) = (field(4)? as usize, field(8)? as usize);
    if field(0)? != SIGNATURE || size == 0 || size > ring.len() || start > size {
        return None;
    }
    let (newer, older) = ring.get(..size)?.split_at_checked(start)?;
    let text = [older, newer].concat();
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let time = time(text.get(..end)?)?;
    Some((time, text.get(end + 1..).unwrap_or_default().to_vec()))
}

/// `====1234.567890-D` in microseconds.
fn time(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("====")?;
    let (seconds, rest) = line.split_once('.')?;
    let micros = rest.split('-').next()?;
    seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)
}

/// Text that is safe to print on a terminal.
fn printable(text: &[u8]) -> String {
    let plain = |c: char| if c == '\n' || c == '\t' || !c.is_control() { c } else { '\u{fffd}' };
    String::from_utf8_lossy(text).chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{MIB, RAMOOPS, RAMOOPS_SIZE};

    fn zone(start: u32, text: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_le_bytes().to_vec();
        bytes.extend(start.to_le_bytes());
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
        bytes
    }

    fn memory(zones: &[(u64, Vec<u8>)]) -> GuestMemoryMmap {
        let memory = crate::memory::allocate(MIB).unwrap();
        for (index, bytes) in zones {
            memory.write_slice(bytes, GuestAddress(RAMOOPS + index * RECORD_SIZE)).unwrap();
        }
        memory
    }

    #[test]
    fn the_newest_record_wins() {
        assert_eq!(read(&memory(&[])), None);
        let zones = [
            (0, zone(0, b"====5.000001-D\nOops#1\nold\n")),
            (1, zone(0, b"====5.200000-D\nPanic#2\nnew \x1b[31m\n")),
            (2, b"not a record".to_vec()),
        ];
        assert_eq!(read(&memory(&zones)).unwrap(), "Panic#2\nnew \u{fffd}[31m\n");
    }

    #[test]
    fn a_wrapped_ring_is_put_in_order() {
        assert_eq!(read(&memory(&[(3, zone(4, b"end\n====1.0-D\nbegin "))])).unwrap(), "begin end\n");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..RAMOOPS_SIZE as usize),
                                start: u32, size: u32, head in "====[0-9]{0,30}\\.[0-9]{0,30}(-D)?\n?") {
            read(&memory(&[(0, bytes.clone())]));
            let mut forged = zone(start, head.as_bytes());
            forged.extend(bytes);
            forged[8..12].copy_from_slice(&size.to_le_bytes());
            forged.truncate(RECORD_SIZE as usize);
            if let Some(text) = read(&memory(&[(1, forged)])) {
                prop_assert!(text.len() <= 3 * RECORD_SIZE as usize);
            }
        }
    }
}
