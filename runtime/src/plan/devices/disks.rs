//! Disks of the host that become disks of the VM: block devices that the bundle lists, and raw images among its mounts, chosen
//! by an annotation. The annotation names destinations only, so nobody reaches a file of the host by it.
//!
//! The guest's kernel gives each disk a number of its own, which only the agent learns. So planning gives each disk a serial
//! number, by which the agent finds it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxDevice, Spec};
use protocol::Device;

use super::rules::{DeviceNumber, Kind, MKNOD, READ, Rule, Rules, WRITE};
use crate::plan::facts::{DiskFact, FileId};
use crate::plan::vm::Surroundings;
use crate::plan::{annotations, guest_path};

/// Number of devices that every VM has: file system, vsock, random numbers, balloon.
pub const OWN_DEVICES: usize = 4;
/// Number of NICs of a VM, each for a link of a container's network namespace.
pub const NICS: usize = 4;
/// Most disks of a VM: as many as interrupts are left.
pub const MAX_DISKS: usize = 11;

/// Major number of images in device rules. No device of a host has it.
const IMAGES: u32 = u32::MAX;
/// Permissions of the nodes of images: those that Debian gives to disks.
const IMAGE_MODE: u32 = 0o660;

/// A disk of the host to open for the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Serial number in the guest.
    pub serial: String,
    /// Path of the node or image on the host.
    pub source: PathBuf,
    /// Major and minor number of the node; none for an image.
    pub device: Option<(u32, u32)>,
    /// The image; none for a node.
    pub image: Option<FileId>,
    /// Whether the container may only read.
    pub read_only: bool,
}

impl fmt::Display for DiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source.display();
        match self.device {
            Some((major, minor)) => write!(f, "linux.devices: block device {source} ({major}:{minor})"),
            None => write!(f, "annotation {}: image {source}", annotations::DISKS),
        }
    }
}

/// A raw image, mounted where the container is to have a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Path on the host.
    pub source: PathBuf,
    /// The file that is there.
    pub id: FileId,
    /// Path of the disk's node in the container.
    pub path: String,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// Destinations of mounts that become disks: annotation `io.runvm.disks`.
pub struct Destinations(BTreeSet<String>);

impl Destinations {
    /// Reads the annotation.
    ///
    /// # Errors
    /// The annotation is no list of absolute paths, or names one twice.
    pub fn of(spec: &Spec) -> anyhow::Result<Self> {
        let mut all = BTreeSet::new();
        let list = annotations::get(spec, annotations::DISKS);
        for path in list.iter().flat_map(|list| list.split(',')) {
            if !path.starts_with('/') {
                bail!("annotation {}: {path:?} is not the absolute path of a mount", annotations::DISKS);
            }
            if !all.insert(guest_path::clean(path)) {
                bail!("annotation {}: {path} is listed twice", annotations::DISKS);
            }
        }
        Ok(Self(all))
    }

    /// Takes a destination off the list; says whether it was there.
    pub fn take(&mut self, destination: &str) -> bool {
        self.0.remove(destination)
    }

    /// Refuses destinations that no mount took.
    ///
    /// # Errors
    /// Names one.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.0.into_iter().next() {
            Some(path) => bail!(
                "annotation {}: {path} is not a bind mount; mount a raw image there, for example -v IMAGE:{path}",
                annotations::DISKS
            ),
            None => Ok(()),
        }
    }
}

/// Collects the disks of a container.
pub struct Disks<'a> {
    surroundings: Surroundings<'a>,
    rules: &'a Rules,
    /// Disks found so far, in the order of their serial numbers.
    pub plans: Vec<DiskPlan>,
}

impl<'a> Disks<'a> {
    /// Begins without disks.
    pub fn new(surroundings: Surroundings<'a>, rules: &'a Rules) -> Self {
        Self { surroundings, rules, plans: Vec::new() }
    }

    /// Serial number of the disk behind a device; a disk is added once, however many nodes it has.
    ///
    /// # Errors
    /// The host has no such disk, the VM exists already, or it has too many.
    pub fn serial(&mut self, device: &LinuxDevice) -> anyhow::Result<String> {
        let number = (device.major(), device.minor());
        let is_it = |(major, minor): (u32, u32)| (i64::from(major), i64::from(minor)) == number;
        if let Some(plan) = self.plans.iter().find(|plan| plan.device.is_some_and(is_it)) {
            return Ok(plan.serial.clone());
        }
        self.check_room()?;
        self.find(number).map(|plan| self.add(plan))
    }

    /// Adds an image as a disk; returns its node in the container.
    ///
    /// # Errors
    /// The VM exists already, or it has too many disks.
    pub fn image(&mut self, image: Image) -> anyhow::Result<Device> {
        let Image { source, id, path, read_only } = image;
        self.check_room().with_context(|| format!("annotation {}: {path}", annotations::DISKS))?;
        let disk = self.add(DiskPlan { serial: self.next_serial(), source, device: None, image: Some(id), read_only });
        Ok(Device { path, kind: "b".to_owned(), mode: IMAGE_MODE, disk, ..Default::default() })
    }

    /// Major and minor number by which device rules name each disk.
    pub fn numbers(&self) -> Vec<(u32, u32)> {
        let number = |(index, plan): (usize, &DiskPlan)| plan.device.unwrap_or((IMAGES, index as u32));
        self.plans.iter().enumerate().map(number).collect()
    }

    /// Rules for images, which no rule of the bundle names.
    pub fn rules(&self) -> impl Iterator<Item = Rule> {
        let images = self.plans.iter().zip(self.numbers()).filter(|(plan, _)| plan.device.is_none());
        images.map(|(plan, (major, minor))| Rule {
            allow: true,
            kind: Kind::Block,
            major: Some(major),
            minor: Some(minor),
            access: if plan.read_only { MKNOD | READ } else { MKNOD | READ | WRITE },
        })
    }

    fn check_room(&self) -> anyhow::Result<()> {
        if let Some(sandbox) = self.surroundings.sandbox {
            bail!(
                "the container joins the VM of container {}, which is running and gets no more disks: give the disk to that \
                 container, or this one a VM of its own",
                sandbox.id
            );
        }
        if self.plans.len() >= MAX_DISKS {
            bail!("a VM can have at most {MAX_DISKS} disks: list fewer");
        }
        Ok(())
    }

    fn next_serial(&self) -> String {
        format!("disk{}", self.plans.len())
    }

    fn add(&mut self, plan: DiskPlan) -> String {
        let serial = plan.serial.clone();
        self.plans.push(plan);
        serial
    }

    fn find(&self, number: (i64, i64)) -> anyhow::Result<DiskPlan> {
        let source = match self.surroundings.facts.disks.get(&number) {
            Some(DiskFact::At(source)) => source.clone(),
            Some(DiskFact::Missing(why)) => bail!("{why}"),
            None => bail!("it was not looked at"),
        };
        let part = |number: i64| u32::try_from(number).context("its device number is invalid");
        let (major, minor) = (part(number.0)?, part(number.1)?);
        let read_only = !self.rules.allow(DeviceNumber { kind: Kind::Block, major, minor }, WRITE);
        Ok(DiskPlan { serial: self.next_serial(), source, device: Some((major, minor)), image: None, read_only })
    }
}
