//! Disks of the host that become disks of the VM: block devices that the bundle lists, and raw images among its mounts, by
//! an annotation. That says no more than what becomes of a mount: it names no file of the host.
//!
//! The guest's kernel gives each a number of its own, which only the agent learns. So it finds disks by their serial
//! numbers, which are given here.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxDevice, Spec};
use protocol::Device;

use super::device_rules::{Kind, MKNOD, READ, Rule, Rules, WRITE};
use super::sandbox::Sandbox;
use super::{annotations, text};
use crate::facts::{DiskFact, Facts};

/// Devices that every VM has: files, sockets, random numbers, the balloon.
pub const OWN_DEVICES: usize = 4;
/// Network cards of a VM, each for a link of the container's network namespace.
pub const CARDS: usize = 4;
/// Most disks of a VM: what its interrupts leave.
const MOST: usize = vmm::MAX_DEVICES - OWN_DEVICES - CARDS;

/// Major number that images have for the rules of devices. No device of a host has it.
const IMAGES: u32 = u32::MAX;
/// Permissions of the nodes of images, as Debian's of disks.
const IMAGE_MODE: u32 = 0o660;

/// A disk to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its serial number in the guest.
    pub serial: String,
    /// Its node on the host, or the image.
    pub source: PathBuf,
    /// Major and minor number of the node; an image has none.
    pub device: Option<(u32, u32)>,
    /// Whether the container is kept from writing to it.
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
    /// The file on the host.
    pub source: PathBuf,
    /// Of the node in the container.
    pub path: String,
    /// Whether the mount is.
    pub read_only: bool,
}

/// Destinations of mounts that are to be disks.
pub struct Destinations(BTreeSet<String>);

impl Destinations {
    /// Reads the annotation.
    ///
    /// # Errors
    /// It is no list of absolute paths, or one is there twice.
    pub fn of(spec: &Spec) -> anyhow::Result<Self> {
        let mut all = BTreeSet::new();
        let list = annotations::get(spec, annotations::DISKS);
        for path in list.iter().flat_map(|list| list.split(',')) {
            if !path.starts_with('/') {
                bail!("annotation {}: {path:?} is not the absolute path of a mount", annotations::DISKS);
            }
            if !all.insert(text::clean(path)) {
                bail!("annotation {}: {path} is there twice", annotations::DISKS);
            }
        }
        Ok(Self(all))
    }

    /// Whether this one is.
    pub fn take(&mut self, destination: &str) -> bool {
        self.0.remove(destination)
    }

    /// Refuses destinations that nobody took.
    ///
    /// # Errors
    /// Names one.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.0.into_iter().next() {
            Some(path) => bail!(
                "annotation {}: {path} is no bind mount: mount a raw image there, as -v IMAGE:{path}",
                annotations::DISKS
            ),
            None => Ok(()),
        }
    }
}

/// What decides about disks, and those found so far.
pub struct Disks<'a> {
    facts: &'a Facts,
    sandbox: Option<&'a Sandbox>,
    rules: &'a Rules,
    /// In the order of their serial numbers.
    pub plans: Vec<DiskPlan>,
}

impl<'a> Disks<'a> {
    /// None yet.
    pub fn new(facts: &'a Facts, sandbox: Option<&'a Sandbox>, rules: &'a Rules) -> Self {
        Self { facts, sandbox, rules, plans: Vec::new() }
    }

    /// The serial number of the disk that a device is; each disk is one, however many nodes it has.
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

    /// The node of an image, which becomes a disk of its own.
    ///
    /// # Errors
    /// The VM exists already, or it has too many disks.
    pub fn image(&mut self, image: Image) -> anyhow::Result<Device> {
        let Image { source, path, read_only } = image;
        self.check_room().with_context(|| format!("annotation {}: {path}", annotations::DISKS))?;
        let disk = self.add(DiskPlan { serial: self.next_serial(), source, device: None, read_only });
        Ok(Device { path, kind: "b".to_owned(), mode: IMAGE_MODE, disk, ..Default::default() })
    }

    /// What the rules of devices call each disk.
    pub fn numbers(&self) -> Vec<(u32, u32)> {
        let number = |(index, plan): (usize, &DiskPlan)| plan.device.unwrap_or((IMAGES, index as u32));
        self.plans.iter().enumerate().map(number).collect()
    }

    /// What the container may do with images: nobody else's rules are about them.
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
        if let Some(sandbox) = self.sandbox {
            bail!(
                "the VM of container {}, which this one joins, runs and gets no more disks: give the disk to that one, \
                 or this one a VM of its own",
                sandbox.id
            );
        }
        if self.plans.len() >= MOST {
            bail!("a VM has {MOST} disks at most: list fewer");
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
        let source = match self.facts.disks.get(&number) {
            Some(DiskFact::At(source)) => source.clone(),
            Some(DiskFact::Missing(why)) => bail!("{why}"),
            None => bail!("it was not looked at"),
        };
        let part = |number: i64| u32::try_from(number).context("its number is none of a device");
        let (major, minor) = (part(number.0)?, part(number.1)?);
        let read_only = !self.rules.allow((Kind::Block, major, minor), WRITE);
        Ok(DiskPlan { serial: self.next_serial(), source, device: Some((major, minor)), read_only })
    }
}
