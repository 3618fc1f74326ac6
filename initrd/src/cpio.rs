//! The archive format of an initramfs: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Nothing in it depends on when or where it was made.

use anyhow::{Context, Result};

const MODE_DIRECTORY: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
const MODE_CHARACTER: u32 = 0o020_000;

/// An archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

/// The header fields that differ between entries.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    /// Adds a directory; its parent has to be there already.
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<()> {
        self.entry(&Entry { name, mode: MODE_DIRECTORY | mode, links: 2, device: (0, 0), data: &[] })
    }

    /// Adds a file.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<()> {
        self.entry(&Entry { name, mode: MODE_FILE | mode, links: 1, device: (0, 0), data })
    }

    /// Adds a character device node: major, minor.
    pub fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> Result<()> {
        self.entry(&Entry { name, mode: MODE_CHARACTER | mode, links: 1, device, data: &[] })
    }

    /// The finished archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(&Entry { name: "TRAILER!!!", mode: 0, links: 1, device: (0, 0), data: &[] })?;
        self.pad(512);
        Ok(self.bytes)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<()> {
        let size = u32::try_from(entry.data.len()).context("a file in a cpio archive is below 4 GiB")?;
        let name_size = u32::try_from(entry.name.len() + 1)?;
        self.entries += 1;
        // ino, mode, uid, gid, nlink, mtime, size, device of the file, device node, name size, checksum
        let (major, minor) = entry.device;
        let fields = [self.entries, entry.mode, 0, 0, entry.links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| self.bytes.extend_from_slice(format!("{field:08X}").as_bytes()));
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(entry.data);
        self.pad(4);
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
pub use tests::entries;

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, data and device.
    pub type Parsed = (String, u32, Vec<u8>, (u32, u32));

    /// All entries but the trailer.
    pub fn entries(mut bytes: &[u8]) -> Vec<Parsed> {
        let mut all = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let at = 6 + 8 * n;
                u32::from_str_radix(std::str::from_utf8(&bytes[at..at + 8]).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return all;
            }
            all.push((name, field(1), bytes[data..data + size].to_vec(), (field(9), field(10))));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut archive = Archive::default();
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(
            entries(&bytes),
            [
                ("dev".into(), 0o040_755, vec![], (0, 0)),
                ("dev/console".into(), 0o020_600, vec![], (5, 1)),
                ("init".into(), 0o100_755, b"hello".to_vec(), (0, 0)),
            ]
        );
    }
}
