//! Disks of the host that become disks of the VM: block devices that the bundle lists.
//!
//! The guest's kernel gives each a number of its own, which only the agent learns. So it finds disks by their serial
//! numbers, which are given here.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::LinuxDevice;

use super::device_rules::{Kind, Rules, WRITE};
use super::sandbox::Sandbox;
use crate::facts::{DiskFact, Facts};

/// Devices that every VM has: files, sockets, random numbers, the balloon.
pub const OWN_DEVICES: usize = 4;
/// Network cards of a VM, each for a link of the container's network namespace.
pub const CARDS: usize = 4;
/// Most disks of a VM: what its interrupts leave.
const MOST: usize = vmm::MAX_DEVICES - OWN_DEVICES - CARDS;

/// A disk to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its serial number in the guest.
    pub serial: String,
    /// Its node on the host.
    pub source: PathBuf,
    /// Its major number there.
    pub major: u32,
    /// Its minor number there.
    pub minor: u32,
    /// Whether the bundle's rules keep the container from writing to it.
    pub read_only: bool,
}

impl fmt::Display for DiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.source.display(), self.major, self.minor)
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
        if let Some(sandbox) = self.sandbox {
            bail!(
                "the VM of container {}, which this one joins, runs and gets no more disks: give the disk to that one, \
                 or this one a VM of its own",
                sandbox.id
            );
        }
        let number = (device.major(), device.minor());
        let known = |plan: &&DiskPlan| (i64::from(plan.major), i64::from(plan.minor)) == number;
        if let Some(plan) = self.plans.iter().find(known) {
            return Ok(plan.serial.clone());
        }
        if self.plans.len() >= MOST {
            bail!("a VM has {MOST} disks at most: list fewer");
        }
        let plan = self.find(number)?;
        let serial = plan.serial.clone();
        self.plans.push(plan);
        Ok(serial)
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
        Ok(DiskPlan { serial: format!("disk{}", self.plans.len()), source, major, minor, read_only })
    }
}
