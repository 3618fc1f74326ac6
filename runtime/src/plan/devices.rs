//! Device nodes: those that the guest's kernel has. Nothing of the host's hardware is passed on.

use anyhow::bail;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use protocol::{CreateContainerRequest, Device};

use super::device_rules::Rules;
use super::{device_filter, text};

/// Character devices that exist alike in every kernel and hold nothing of the host: major, minor, and
/// their path in the guest. A bind mount of one becomes a bind mount of the guest's.
const PSEUDO: [(u32, u32, &str); 6] = [
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
    (5, 0, "/dev/tty"),
];

/// More character devices that work in the guest when the bundle asks for them: ptmx, tun, fuse.
const GUEST: [(i64, i64); 3] = [(5, 2), (10, 200), (10, 229)];

/// The guest's path of a pseudo device.
pub fn pseudo(major: u32, minor: u32) -> Option<&'static str> {
    PSEUDO.iter().find(|device| (device.0, device.1) == (major, minor)).map(|device| device.2)
}

/// Fills in the device nodes and the rules of their use.
///
/// # Errors
/// A device of the host that the guest cannot have, unless the bundle allows all devices and lists all there
/// are (`--privileged`): then those are left out. A rule that is none.
pub fn plan(spec: &Spec, request: &mut CreateContainerRequest, notes: &mut Vec<String>) -> anyhow::Result<()> {
    let rules = Rules::of(spec)?;
    request.device_filter = device_filter::compile(&rules);
    for device in spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten()) {
        let path = text::path("linux.devices path", device.path())?;
        if !device.path().is_absolute() {
            bail!("device {path:?}: its path must be absolute");
        }
        match exists_in_guest(device) {
            true => request.devices.push(message(device, text::clean(&path))),
            false if rules.otherwise => notes.push(format!("device {path}: left out, the VM has no such device")),
            false => bail!(
                "device {path} ({} {}:{}) of the host does not exist in a VM: run without --device {path}",
                device.typ().as_str(),
                device.major(),
                device.minor()
            ),
        }
    }
    Ok(())
}

fn exists_in_guest(device: &LinuxDevice) -> bool {
    let number = (device.major(), device.minor());
    let known = |&(major, minor, _): &(u32, u32, &str)| number == (i64::from(major), i64::from(minor));
    match device.typ() {
        LinuxDeviceType::P => true,
        LinuxDeviceType::C | LinuxDeviceType::U => PSEUDO.iter().any(known) || GUEST.contains(&number),
        LinuxDeviceType::A | LinuxDeviceType::B => false,
    }
}

fn message(device: &LinuxDevice, path: String) -> Device {
    Device {
        path,
        kind: device.typ().as_str().to_owned(),
        major: device.major(),
        minor: device.minor(),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or_default(),
        gid: device.gid().unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(device: &str, rules: &str) -> anyhow::Result<(Vec<Device>, Vec<String>)> {
        let json = format!(r#"{{"linux":{{"devices":[{device}],"resources":{{"devices":[{rules}]}}}}}}"#);
        let (mut request, mut notes) = (CreateContainerRequest::new(), Vec::new());
        plan(&serde_json::from_str(&json).unwrap(), &mut request, &mut notes)?;
        Ok((request.devices, notes))
    }

    #[test]
    fn devices_of_the_guest_are_made() {
        let fuse = r#"{"path":"/dev/fuse","type":"c","major":10,"minor":229,"fileMode":8630,"uid":5}"#;
        let (made, notes) = devices(fuse, "").unwrap();
        assert_eq!((made[0].path.as_str(), made[0].mode, made[0].uid), ("/dev/fuse", 0o666, 5));
        assert!(notes.is_empty());
        let (made, _) = devices(r#"{"path":"/run/pipe","type":"p"}"#, "").unwrap();
        assert_eq!(made[0].kind, "p");
    }

    #[test]
    fn devices_of_the_host_are_refused_or_left_out() {
        let disk = r#"{"path":"/dev/sda","type":"b","major":8,"minor":0}"#;
        let text = devices(disk, r#"{"allow":false,"access":"rwm"}"#).unwrap_err().to_string();
        assert!(text.starts_with("device /dev/sda (b 8:0) of the host does not exist in a VM"), "{text}");
        let (made, notes) = devices(disk, r#"{"allow":true,"access":"rwm"}"#).unwrap();
        assert!(made.is_empty());
        assert_eq!(notes, ["device /dev/sda: left out, the VM has no such device"]);
        assert!(devices(r#"{"path":"sda","type":"p"}"#, "").is_err());
    }
}
