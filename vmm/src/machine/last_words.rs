//! Reads what a panicking kernel left in the ramoops region (Documentation/admin-guide/ramoops.rst).
//!
//! The region begins with the zone for panic and oops records; newer ones replace older ones. A zone is
//! a `struct persistent_ram_buffer` (fs/pstore/ram_core.c): signature, where the text begins within the
//! ring, its length, then the ring. A record begins with a line `====SECONDS.MICROSECONDS-D`. The guest can forge
//! all of this.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

/// The zone: all of the region but the three zones of 4 KiB for console, ftrace and messages from user
/// space at its end. To have none of those would take three more kernel arguments.
const ZONE_SIZE: usize = (layout::RAMOOPS_SIZE - 3 * layout::PAGE) as usize;

/// `PERSISTENT_RAM_SIG`, "DBGC".
const SIGNATURE: u32 = 0x4347_4244;
const HEADER: usize = 12;

/// The newest record's text, control characters replaced; `None` when there is none.
pub fn read(memory: &GuestMemoryMmap) -> Option<String> {
    let mut zone = vec![0; ZONE_SIZE];
    memory.read_slice(&mut zone, GuestAddress(layout::RAMOOPS)).ok()?;
    of(&zone)
}

/// The same from the bytes of the zone.
pub fn of(zone: &[u8]) -> Option<String> {
    record(zone).map(|text| printable(&text))
}

/// The text in a zone, without its first line.
fn record(zone: &[u8]) -> Option<Vec<u8>> {
    let (header, ring) = zone.split_at_checked(HEADER)?;
    let field = |at: usize| header.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let (start, size) = (field(4)? as usize, field(8)? as usize);
    if field(0)? != SIGNATURE || size == 0 || size > ring.len() || start > size {
        return None;
    }
    let (newer, older) = ring.get(..size)?.split_at_checked(start)?;
    let text = [older, newer].concat();
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let (head, body) = text.split_at_checked(end)?;
    head.starts_with(b"====").then(|| body.get(1..).unwrap_or_default().to_vec())
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
    use crate::layout::{MIB, RAMOOPS};

    fn zone(start: u32, text: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_le_bytes().to_vec();
        bytes.extend(start.to_le_bytes());
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text);
        bytes
    }

    fn memory(zone: &[u8]) -> GuestMemoryMmap {
        let memory = crate::memory::allocate(MIB).unwrap();
        memory.write_slice(zone, GuestAddress(RAMOOPS)).unwrap();
        memory
    }

    #[test]
    fn a_record_is_shown_without_its_head_and_without_control_characters() {
        assert_eq!(read(&memory(&[])), None);
        assert_eq!(read(&memory(&zone(0, b""))), None);
        assert_eq!(read(&memory(&zone(0, b"something else\nPanic#2\n"))), None);
        let text = read(&memory(&zone(0, b"====5.200000-D\nPanic#2\nnew \x1b[31m\n")));
        assert_eq!(text.unwrap(), "Panic#2\nnew \u{fffd}[31m\n");
    }

    #[test]
    fn a_wrapped_ring_is_put_in_order() {
        assert_eq!(read(&memory(&zone(4, b"end\n====1.0-D\nbegin "))).unwrap(), "begin end\n");
    }

    #[test]
    fn the_kernel_makes_one_zone_of_this_region() {
        // ramoops_init_przs: as many as fit, then of equal size.
        let room = layout::RAMOOPS_SIZE - 3 * layout::PAGE;
        assert!(layout::RAMOOPS_SIZE.is_power_of_two() && layout::RAMOOPS_RECORD.is_power_of_two());
        assert_eq!(room / (room / layout::RAMOOPS_RECORD), ZONE_SIZE as u64);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..ZONE_SIZE),
                                start: u32, size: u32, head in "====[0-9]{0,30}\\.[0-9]{0,30}(-D)?\n?") {
            read(&memory(&bytes));
            let mut forged = zone(start % 0x8000, head.as_bytes());
            forged.extend(bytes);
            forged[8..12].copy_from_slice(&(size % 0x8000).to_le_bytes());
            if let Some(text) = read(&memory(&forged)) {
                prop_assert!(text.len() <= 3 * ZONE_SIZE);
            }
        }
    }
}
