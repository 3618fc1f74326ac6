//! Device nodes and the usual links in the container's /dev.

use crate::error::{Context, Error, Result};
use crate::storage::disks;
use crate::storage::path::{Leaf, Root};
use crate::sys;
use protocol::Device;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use std::ffi::CStr;

/// The nodes every container has, by the OCI specification: path, major, minor.
const DEFAULT: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links every container has: name in /dev, target.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes the default nodes, the requested ones and the links.
pub fn populate(root: &Root, devices: &[Device]) -> Result<()> {
    let asked = |path: &str| devices.iter().any(|device| device.path == path);
    for (path, major, minor) in DEFAULT.into_iter().filter(|(path, _, _)| !asked(path)) {
        let device = Device { path: path.into(), kind: "c".into(), major, minor, mode: 0o666, ..Default::default() };
        make(root, &device)?;
    }
    devices.iter().try_for_each(|device| make(root, device))?;
    LINKS.into_iter().try_for_each(|(name, target)| link(root, name, target))
}

fn make(root: &Root, device: &Device) -> Result<()> {
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        kind => return Err(Error::invalid(format!("unknown device type {kind:?}"))),
    };
    let made = match node(root, device, kind) {
        // In a user namespace nobody makes device nodes: the guest's own are shown instead.
        Err(Errno::PERM) => bind(root, device),
        result => result,
    };
    made.context(|| format!("create device {}", device.path))
}

fn node(root: &Root, device: &Device, kind: FileType) -> std::result::Result<(), Errno> {
    let (parent, name) = root.parent(&device.path)?;
    let number = |n: i64| u32::try_from(n).map_err(|_| Errno::INVAL);
    let dev = if kind == FileType::Fifo { 0 } else { makedev(number(device.major)?, number(device.minor)?) };
    let mode = Mode::from_raw_mode(device.mode & 0o7777);
    match rustix::fs::mknodat(&parent, name, kind, mode, dev) {
        Err(Errno::EXIST) => return Ok(()),
        result => result?,
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    if device.uid != 0 || device.gid != 0 {
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        // A change of owner takes away set-id bits, and a umask may have taken others.
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

fn bind(root: &Root, device: &Device) -> std::result::Result<(), Errno> {
    let place = root.ensure(&device.path, Leaf::File)?;
    let own = if device.disk.is_empty() { device.path.clone() } else { disks::node(&device.disk) };
    sys::mount(&own, &sys::fd_path(&place), "", libc::MS_BIND, "")
}

/// Shows a terminal of the container, by its name there, as the container's /dev/console too.
pub fn bind_console(root: &Root, name: &CStr) -> Result<()> {
    let bind = || {
        let slave = root.open_path(&name.to_string_lossy())?;
        let console = root.ensure("/dev/console", Leaf::File)?;
        sys::mount(&sys::fd_path(&slave), &sys::fd_path(&console), "", libc::MS_BIND, "")
    };
    bind().context(|| "mount /dev/console")
}

fn link(root: &Root, path: &str, target: &str) -> Result<()> {
    let make = || {
        let (parent, name) = root.parent(path)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            // /dev/ptmx of an image would be the guest's, not the container's.
            Err(Errno::EXIST) if name == "ptmx" => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                rustix::fs::symlinkat(target, &parent, name)
            }
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    };
    make().context(|| format!("create link {path}"))
}
