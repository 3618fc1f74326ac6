//! Virtio-mmio devices that the kernel does not find as it boots.

use crate::error::{Context, Result};
use crate::sys;
use std::path::{Path, PathBuf};

/// virtio-mmio devices that the kernel was told of by number.
const DEVICES: &str = "/sys/devices/virtio-mmio-cmdline";
/// Kernel parameter that takes more devices.
const DEVICE_PARAMETER: &str = "/sys/module/virtio_mmio/parameters/device";

/// The directory of a virtio-mmio device.
pub fn directory(device: u32) -> PathBuf {
    Path::new(DEVICES).join(format!("virtio-mmio.{device}"))
}

/// Tells the kernel of a device, unless it knows that one. The parameter is a value of `virtio_mmio.device`.
pub fn plug(device: u32, parameter: &str) -> Result<()> {
    if directory(device).exists() {
        return Ok(());
    }
    let written = sys::write_file(DEVICE_PARAMETER, parameter);
    written.context(|| format!("add virtio-mmio device {parameter} to the guest's kernel"))
}
