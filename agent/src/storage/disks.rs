//! Disks of the host: which of the guest's they are.
//!
//! The host knows a disk by the serial number that it gave it, the guest's kernel by name and number of its own.

use crate::error::{Context, Error, Result};
use protocol::{CreateContainerRequest, Device};
use rustix::fs::{Gid, Mode, Uid};
use std::path::Path;

/// Directory in which the kernel lists its disks.
const DISKS: &str = "/sys/block";
/// Size of `struct bpf_insn`, and where in it the constant is.
const INSTRUCTION: usize = 8;
const CONSTANT: usize = 4;

/// A disk of the guest's kernel.
struct Found {
    name: String,
    major: u32,
    minor: u32,
}

/// Replaces serial numbers of disks in a request by what the guest's kernel calls the disks: numbers in nodes and in the
/// device filter, and the name.
pub fn resolve(request: &mut CreateContainerRequest) -> Result<()> {
    for disk in std::mem::take(&mut request.disks) {
        let found = find(&disk.serial)?;
        if disk.filter_at != 0 {
            let at = disk.filter_at as usize;
            fill_in(&mut request.device_filter, at, found.major)?;
            fill_in(&mut request.device_filter, at.saturating_add(1), found.minor)?;
        }
        for device in request.devices.iter_mut().filter(|device| device.disk == disk.serial) {
            (device.major, device.minor) = (i64::from(found.major), i64::from(found.minor));
            device.disk = found.name.clone();
        }
    }
    Ok(())
}

/// Gives the guest's own nodes of disks the mode that was asked for, and the owner that `owner` says: in a user
/// namespace nobody makes device nodes, so the container sees these.
pub fn lend(devices: &[Device], owner: impl Fn(&Device) -> (Option<u32>, Option<u32>)) -> Result<()> {
    devices.iter().filter(|device| !device.disk.is_empty()).try_for_each(|device| {
        let node = node(&device.disk);
        let (user, group) = owner(device);
        rustix::fs::chown(&node, user.map(Uid::from_raw), group.map(Gid::from_raw))
            .context(|| format!("change the owner of {node}"))?;
        let mode = Mode::from_raw_mode(device.mode & 0o7777);
        rustix::fs::chmod(&node, mode).context(|| format!("change the mode of {node}"))
    })
}

/// The guest's own node of a disk of this name.
pub fn node(name: &str) -> String {
    format!("/dev/{name}")
}

fn find(serial: &str) -> Result<Found> {
    let disks = std::fs::read_dir(DISKS).context(|| format!("read {DISKS}"))?;
    for disk in disks.flatten() {
        // What has no serial number is none of the host's.
        if std::fs::read_to_string(disk.path().join("serial")).is_ok_and(|own| own.trim_end() == serial) {
            let name = disk.file_name().to_string_lossy().into_owned();
            let (major, minor) = number(&disk.path())?;
            return Ok(Found { name, major, minor });
        }
    }
    Err(Error::not_found(format!("the guest has no disk {serial}: its kernel needs CONFIG_VIRTIO_BLK")))
}

fn number(disk: &Path) -> Result<(u32, u32)> {
    let file = disk.join("dev");
    let text = std::fs::read_to_string(&file).context(|| format!("read {}", file.display()))?;
    let parts = text.trim_end().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    parts.ok_or_else(|| Error::internal(format!("{} has no device number: {text:?}", file.display())))
}

/// Replaces the constant of an instruction.
fn fill_in(program: &mut [u8], instruction: usize, number: u32) -> Result<()> {
    let place = program.chunks_exact_mut(INSTRUCTION).nth(instruction).and_then(|bytes| bytes.get_mut(CONSTANT..));
    let place = place.ok_or_else(|| Error::invalid(format!("the device filter has no instruction {instruction}")))?;
    place.copy_from_slice(&number.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_filled_in_where_there_are_some() {
        let mut program = [0xff; 16];
        fill_in(&mut program, 1, 0x0403_0201).unwrap();
        assert_eq!(program[12..], [1, 2, 3, 4]);
        assert_eq!(program[..12], [0xff; 12]);
        for at in [2, usize::MAX] {
            assert!(fill_in(&mut program, at, 0).is_err());
        }
    }

    #[test]
    fn a_disk_that_is_not_there_is_named() {
        let mut request = CreateContainerRequest::new();
        request.disks = vec![protocol::Disk { serial: "disk0".into(), ..Default::default() }];
        assert!(resolve(&mut request).unwrap_err().message.contains("disk0"));
    }
}
