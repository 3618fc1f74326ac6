//! Device nodes: pseudo devices of the guest's kernel, and disks. No other hardware of the host reaches the guest.

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use protocol::{CreateContainerRequest, Device};

use super::disks::{DiskPlan, Disks, Image};
use super::filter;
use super::rules::Rules;
use crate::plan::vm::Surroundings;
use crate::plan::{guest_path, nul};

/// Character devices that every kernel has and that hold nothing of the host: major and minor number, and path in the guest.
/// A bind mount of one becomes a bind mount of the guest's.
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

/// Path of a pseudo device in the guest.
pub fn pseudo(major: u32, minor: u32) -> Option<&'static str> {
    PSEUDO.iter().find(|device| (device.0, device.1) == (major, minor)).map(|device| device.2)
}

/// Fills in device nodes and the filter of their use; returns the disks of the host among them.
///
/// # Errors
/// The guest cannot have a device, unless the bundle allows and lists all devices (`--privileged`): then such devices are left
/// out. A disk is missing, or a rule is malformed.
pub fn plan(
    spec: &Spec,
    surroundings: Surroundings<'_>,
    images: Vec<Image>,
    request: &mut CreateContainerRequest,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<DiskPlan>> {
    let rules = Rules::of(spec)?;
    let mut disks = Disks::new(surroundings, &rules);
    let devices = spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten());
    for (index, device) in devices.enumerate() {
        let path = nul::path("linux.devices path", device.path())?;
        if !device.path().is_absolute() {
            bail!("device {path:?}: its path must be absolute");
        }
        let made = message(device, guest_path::clean(&path));
        match device.typ() {
            _ if exists_in_guest(device) => request.devices.push(made),
            _ if rules.otherwise => notes.push(format!("device {path}: left out, the VM has no such device")),
            LinuxDeviceType::B => {
                let disk = disks.serial(device).with_context(|| format!("linux.devices[{index}]: {}", name(device)))?;
                request.devices.push(Device { disk, ..made });
            }
            _ => bail!("{} of the host does not exist in a VM: run without --device {path}", name(device)),
        }
    }
    for image in images {
        request.devices.push(disks.image(image)?);
    }
    set_filter(&rules, &disks, request);
    Ok(disks.plans)
}

fn set_filter(rules: &Rules, disks: &Disks<'_>, request: &mut CreateContainerRequest) {
    let all = Rules { rules: rules.rules.iter().copied().chain(disks.rules()).collect(), ..*rules };
    let filter = filter::compile(&all, &disks.numbers());
    let message = |(disk, filter_at): (&DiskPlan, u32)| protocol::Disk {
        serial: disk.serial.clone(),
        filter_at,
        ..Default::default()
    };
    request.disks = disks.plans.iter().zip(filter.disks_at).map(message).collect();
    request.device_filter = filter.program;
}

/// Name of a device in messages.
fn name(device: &LinuxDevice) -> String {
    let (path, kind) = (device.path().display(), device.typ());
    format!("device {path} ({} {}:{})", kind.as_str(), device.major(), device.minor())
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
    use crate::plan::facts::{DiskFact, Facts, FileId};

    fn planned(
        device: &str,
        rules: &str,
        facts: &Facts,
    ) -> anyhow::Result<(CreateContainerRequest, Vec<DiskPlan>, Vec<String>)> {
        let json = format!(r#"{{"linux":{{"devices":[{device}],"resources":{{"devices":[{rules}]}}}}}}"#);
        let (mut request, mut notes) = (CreateContainerRequest::new(), Vec::new());
        let spec = serde_json::from_str(&json).unwrap();
        let disks = plan(&spec, Surroundings { facts, sandbox: None }, Vec::new(), &mut request, &mut notes)?;
        Ok((request, disks, notes))
    }

    fn devices(device: &str, rules: &str) -> anyhow::Result<(Vec<Device>, Vec<String>)> {
        planned(device, rules, &facts(&[])).map(|(request, _, notes)| (request.devices, notes))
    }

    /// A host with these disks, named after their minor numbers, and without (8, 9).
    fn facts(disks: &[(i64, i64)]) -> Facts {
        let at = |number: &(i64, i64)| (*number, DiskFact::At(format!("/dev/sd{}", number.1).into()));
        let missing = [((8, 9), DiskFact::Missing("the host has no such block device".to_owned()))];
        Facts { disks: disks.iter().map(at).chain(missing).collect(), ..crate::plan::tests::facts() }
    }

    fn disk(path: &str, minor: i64) -> String {
        format!(r#"{{"path":"{path}","type":"b","major":8,"minor":{minor},"fileMode":432,"uid":1,"gid":2}}"#)
    }

    const DENY: &str = r#"{"allow":false,"access":"rwm"}"#;

    #[test]
    fn disks_are_handed_through() {
        let rules = format!(
            r#"{DENY},{{"allow":true,"type":"b","major":8,"minor":1,"access":"rwm"}},
               {{"allow":true,"type":"b","major":8,"minor":2,"access":"r"}}"#
        );
        let list = [disk("/dev/a", 1), disk("/dev/b", 2), disk("/mnt/c", 1)].join(",");
        let (request, disks, notes) = planned(&list, &rules, &facts(&[(8, 1), (8, 2)])).unwrap();
        let made: Vec<_> = request.devices.iter().map(|made| (made.path.as_str(), made.disk.as_str())).collect();
        assert_eq!(made, [("/dev/a", "disk0"), ("/dev/b", "disk1"), ("/mnt/c", "disk0")]);
        assert_eq!((request.devices[0].mode, request.devices[0].uid, request.devices[0].gid), (0o660, 1, 2));
        let opened: Vec<_> = disks.iter().map(|disk| (disk.device.unwrap(), disk.read_only)).collect();
        assert_eq!(opened, [((8, 1), false), ((8, 2), true)]);
        assert_eq!(disks[0].to_string(), "linux.devices: block device /dev/sd1 (8:1)");
        let serials: Vec<_> = request.disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!((serials, notes.len()), (vec!["disk0", "disk1"], 0));
        assert!(request.disks.iter().all(|disk| disk.filter_at > 0));
    }

    /// What becomes of so many images, with these rules.
    fn images(count: usize, rules: &str) -> anyhow::Result<(CreateContainerRequest, Vec<DiskPlan>)> {
        let json = format!(r#"{{"linux":{{"resources":{{"devices":[{rules}]}}}}}}"#);
        let image = |n| Image {
            source: format!("/srv/{n}").into(),
            id: FileId::default(),
            path: format!("/dev/{n}"),
            read_only: n == 1,
        };
        let (mut request, spec) = (CreateContainerRequest::new(), serde_json::from_str(&json).unwrap());
        let images = (0..count).map(image).collect();
        let facts = facts(&[]);
        let disks = plan(&spec, Surroundings { facts: &facts, sandbox: None }, images, &mut request, &mut Vec::new())?;
        Ok((request, disks))
    }

    #[test]
    fn images_become_disks() {
        for (rules, filtered) in [(DENY, true), (r#"{"allow":true,"access":"rwm"}"#, false)] {
            let (request, disks) = images(2, rules).unwrap();
            let made: Vec<_> = request.devices.iter().map(|made| (made.path.as_str(), made.disk.as_str())).collect();
            assert_eq!(made, [("/dev/0", "disk0"), ("/dev/1", "disk1")]);
            let opened: Vec<_> = disks.iter().map(|disk| (disk.to_string(), disk.read_only)).collect();
            let name = |n| format!("annotation io.runvm.disks: image /srv/{n}");
            assert_eq!(opened, [(name(0), false), (name(1), true)]);
            assert_eq!(request.disks.len(), 2);
            assert!(request.disks.iter().all(|disk| (disk.filter_at > 0) == filtered));
        }
        let text = format!("{:#}", images(vmm::MAX_DEVICES, DENY).unwrap_err());
        assert_eq!(text, "annotation io.runvm.disks: /dev/11: a VM can have at most 11 disks: list fewer");
    }

    #[test]
    fn disks_that_cannot_be_are_refused() {
        let refused = |list: &str, facts: &Facts| planned(list, DENY, facts).map(|_| ()).unwrap_err();
        let text = format!("{:#}", refused(&disk("/dev/x", 9), &facts(&[])));
        assert_eq!(text, "linux.devices[0]: device /dev/x (b 8:9): the host has no such block device");
        let numbers: Vec<_> = (10..10 + vmm::MAX_DEVICES as i64).map(|minor| (8, minor)).collect();
        let list: Vec<_> = numbers.iter().map(|(_, minor)| disk("/dev/x", *minor)).collect();
        let text = format!("{:#}", refused(&list.join(","), &facts(&numbers)));
        assert_eq!(text, "linux.devices[11]: device /dev/x (b 8:21): a VM can have at most 11 disks: list fewer");
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
        let kvm = r#"{"path":"/dev/kvm","type":"c","major":10,"minor":232}"#;
        let text = devices(kvm, DENY).unwrap_err().to_string();
        assert!(text.starts_with("device /dev/kvm (c 10:232) of the host does not exist in a VM"), "{text}");
        let disk = r#"{"path":"/dev/sda","type":"b","major":8,"minor":0}"#;
        let (made, notes) = devices(disk, r#"{"allow":true,"access":"rwm"}"#).unwrap();
        assert!(made.is_empty());
        assert_eq!(notes, ["device /dev/sda: left out, the VM has no such device"]);
        assert!(devices(r#"{"path":"sda","type":"p"}"#, "").is_err());
    }
}
