//! The file-system devices of a VM, and which share is on which.
//!
//! ```text
//!  0        shares on the host's own file systems; the guest's kernel finds it as it boots, and vCPUs serve it
//!  1, 2, …  one for each of the host's network and FUSE file systems that a share is on, in reserve until then
//! ```
//!
//! Each has a thread and tables of its own. A file system that does not answer holds up the thread of its device, and with it the
//! guest's processes that ask for something there, and nobody else. Shares of one file system are on one device, so that a file which
//! several of them reach is one to the guest. Where there are more file systems than devices the last ones share one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use protocol::{CreateContainerRequest, FileSystem};
use vmm::Running;
use vmm::virtio::fs::{self, Counters, Fs, MakeNode, Moment, Policy, Progress, Sharing};

use crate::host::shares::Share;
use crate::parcel::VmSetup;

/// Tag of the first device; the agent mounts it by this name, and the others by this name and their numbers.
const TAG: &str = "shares";

/// Most devices besides the first.
const MOST: usize = 8;

/// A device that is at one request for this long does not answer, as far as somebody is concerned who waits for an end.
pub const STUCK: Duration = Duration::from_millis(400);

/// How long a device that gets on, or that the guest has not mounted, may take to let shares go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Numbers of file-system devices.
pub type Devices = BTreeSet<u32>;

/// The file systems of the host that shares on each of the devices in reserve are on, once for each share.
#[derive(Clone)]
pub struct Places(Rc<RefCell<Vec<Vec<String>>>>);

impl Places {
    /// Devices for these shares of the VM's first container, and some more for containers that join. A kernel that cannot be told of
    /// devices while it runs has the first one for all.
    pub fn of(shares: &[Share], setup: &VmSetup) -> Self {
        let systems: BTreeSet<_> = shares.iter().filter_map(|share| share.remote.as_ref()).collect();
        Self::new(if setup.hotplug { systems.len().saturating_add(setup.plan.spare_file_systems) } else { 0 })
    }

    fn new(count: usize) -> Self {
        Self(Rc::new(RefCell::new(vec![Vec::new(); count.min(MOST)])))
    }

    fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// The device for one more share, which is on this file system if somebody else may have to answer for it. It is the one that has this
    /// file system, or else one that has none, or else the last.
    pub fn take(&self, system: Option<&str>) -> Place {
        let mut all = self.0.borrow_mut();
        let known = |systems: &Vec<String>| systems.iter().any(|known| Some(known.as_str()) == system);
        let at = all.iter().position(known).or_else(|| all.iter().position(Vec::is_empty));
        let at = at.or(all.len().checked_sub(1));
        let Some((system, at)) = system.zip(at) else { return Place { device: 0, taken: None } };
        all.get_mut(at).into_iter().for_each(|systems| systems.push(system.to_owned()));
        Place { device: at as u32 + 1, taken: Some((system.to_owned(), self.clone())) }
    }
}

/// The place of a share, given back when this is dropped.
pub struct Place {
    /// The device.
    pub device: u32,
    taken: Option<(String, Places)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((system, places)) = self.taken.take() else { return };
        let mut all = places.0.borrow_mut();
        let systems = (self.device as usize).checked_sub(1).and_then(|at| all.get_mut(at));
        if let Some(systems) = systems
            && let Some(at) = systems.iter().position(|known| *known == system)
        {
            systems.swap_remove(at);
        }
    }
}

/// Gives each device somebody who makes device nodes.
pub type MakesNodes = Box<dyn Fn() -> Box<dyn MakeNode>>;

/// A share for a device.
pub struct Placed {
    /// The device.
    pub device: u32,
    /// The share.
    pub share: fs::Share,
}

/// The devices of one VM, and what is done to their shares.
pub struct FileSystems {
    first: Sharing,
    more: Vec<Sharing>,
    progress: Vec<Arc<Progress>>,
    counters: Vec<Arc<Counters>>,
    /// Where containers that join get places.
    pub places: Places,
}

impl FileSystems {
    /// Makes the first device, and those in reserve.
    ///
    /// # Errors
    /// The host refuses something.
    pub fn new(shares: Vec<Placed>, places: Places, nodes: &MakesNodes) -> anyhow::Result<(Fs, Vec<Fs>, Self)> {
        let count = places.count();
        let mut by_device = Vec::new();
        by_device.resize_with(count + 1, Vec::new);
        for Placed { device, share } in shares {
            by_device.get_mut(device as usize).context("a share on no device")?.push(share);
        }
        let make = |(number, shares): (usize, Vec<fs::Share>)| -> anyhow::Result<Fs> {
            let tag = if number == 0 { TAG.to_owned() } else { format!("{TAG}{number}") };
            let sixteenths = if number == 0 { 16 - count } else { 1 };
            let mut device = Fs::one_of(&tag, shares, sixteenths).context("make a file-system device")?;
            device.make_nodes_with(nodes());
            if number > 0 {
                device.set_apart();
            }
            Ok(device)
        };
        let mut devices = by_device.into_iter().enumerate().map(make).collect::<anyhow::Result<Vec<_>>>()?;
        let progress = devices.iter().map(Fs::progress).collect();
        let counters = devices.iter().map(Fs::counters).collect();
        let more = devices.split_off(1);
        let first = devices.pop().context("no file-system device")?;
        let this = Self {
            first: first.sharing(),
            more: more.iter().map(|device| device.sharing().unwaiting()).collect(),
            progress,
            counters,
            places,
        };
        Ok((first, more, this))
    }

    /// Tells the guest, in a request for a container, of the devices that shares of these names are on. `first_index` is the number of
    /// the first device in reserve among those that are hot-plugged, `first_slot` among all.
    ///
    /// # Errors
    /// KVM refuses a device.
    pub fn describe(
        &self,
        request: &mut CreateContainerRequest,
        names: &BTreeMap<String, u32>,
        [first_index, first_slot]: [usize; 2],
        running: &Running,
    ) -> anyhow::Result<()> {
        let device = |place: &str| names.get(place.rsplit('/').next().unwrap_or_default()).copied().unwrap_or(0);
        request.share_device = device(&request.share);
        request.mounts.iter_mut().for_each(|mount| mount.share_device = device(&mount.share));
        for number in names.values().copied().filter(|number| *number > 0).collect::<Devices>() {
            let at = number as usize - 1;
            let (index, slot) = (first_index + at, first_slot + at);
            let kernel_parameter = format!("{}:{slot}", running.hotplug(index)?);
            let device = u32::try_from(slot)?;
            request.file_systems.push(FileSystem { number, device, kernel_parameter, ..Default::default() });
        }
        Ok(())
    }

    /// Adds shares. The first device answers when it has done what it is at, on another thread; another one does so when it can.
    ///
    /// # Errors
    /// The first device does not answer, or refuses.
    pub async fn add(&self, shares: Vec<Placed>) -> anyhow::Result<()> {
        let placed = shares.into_iter().map(|Placed { device, share }| (device, share));
        self.each(placed, |sharing, shares| sharing.add(shares)).await
    }

    /// Takes shares away.
    ///
    /// # Errors
    /// The first device does not answer, or one of the others does not so soon.
    pub async fn remove(&self, names: Vec<(u32, String)>) -> anyhow::Result<()> {
        let devices: Devices = names.iter().map(|(device, _)| *device).filter(|device| *device > 0).collect();
        self.each(names.into_iter(), |sharing, names| sharing.remove(names)).await?;
        // Nobody may unmount what is still open: each device says so by an empty change, in its turn.
        let asked = self.more.iter().zip(1..).filter(|(_, number)| devices.contains(number));
        for sharing in asked.map(|(sharing, _)| sharing.clone().waiting()) {
            let answered = tokio::task::spawn_blocking(move || sharing.remove(Vec::new()));
            tokio::select! {
                answered = answered => answered??,
                () = self.stuck(&devices, STUCK) => bail!("a file system of the host does not answer"),
                () = tokio::time::sleep(PATIENCE) => bail!("a file-system device of the VM is not in use, or slow"),
            }
        }
        Ok(())
    }

    /// Changes what the guest may do to files of shares.
    ///
    /// # Errors
    /// The first device does not answer, or refuses.
    pub async fn set_policies(&self, policies: Vec<(u32, (String, Policy))>) -> anyhow::Result<()> {
        self.each(policies.into_iter(), |sharing, policies| sharing.set_policies(policies)).await
    }

    async fn each<T: Send + 'static>(
        &self,
        items: impl Iterator<Item = (u32, T)>,
        act: fn(&Sharing, Vec<T>) -> Result<(), vmm::virtio::Error>,
    ) -> anyhow::Result<()> {
        let mut by_device = BTreeMap::<u32, Vec<T>>::new();
        items.for_each(|(device, item)| by_device.entry(device).or_default().push(item));
        for (device, items) in by_device {
            match (device as usize).checked_sub(1) {
                None => {
                    let sharing = self.first.clone();
                    tokio::task::spawn_blocking(move || act(&sharing, items)).await??;
                }
                Some(at) => act(self.more.get(at).context("a share on no device")?, items)?,
            }
        }
        Ok(())
    }

    /// Returns when one of these devices has been at one request for so long.
    pub async fn stuck(&self, devices: &Devices, patience: Duration) {
        let now = || -> Vec<Option<Moment>> {
            let at = |device: &u32| self.progress.get(*device as usize).and_then(|progress| progress.now());
            devices.iter().map(at).collect()
        };
        loop {
            let before = now();
            tokio::time::sleep(patience).await;
            if before.iter().zip(now()).any(|(before, now)| before.is_some() && *before == now) {
                return;
            }
        }
    }

    /// All devices but the first.
    pub fn in_reserve(&self) -> Devices {
        (1..=self.more.len() as u32).collect()
    }

    /// Number of requests of each kind, over all devices.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        Counters::named_sum(&self.counters.iter().map(Arc::as_ref).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_has_a_device_until_there_are_too_many() {
        let all = Places::new(2);
        let [one, two, three, again, local] =
            [Some("0:1"), Some("0:2"), Some("0:3"), Some("0:1"), None].map(|system| all.take(system));
        assert_eq!([&one, &two, &three, &again, &local].map(|place| place.device), [1, 2, 2, 1, 0]);
        drop(one);
        assert_eq!(all.take(Some("0:4")).device, 2, "the first is still used");
        drop(again);
        assert_eq!(all.take(Some("0:4")).device, 1);
        assert_eq!(all.take(Some("0:3")).device, 2, "it is there already");
    }

    #[test]
    fn without_devices_in_reserve_the_first_one_is_for_all() {
        assert_eq!(Places::new(0).take(Some("0:1")).device, 0);
        assert_eq!(Places::new(MOST + 3).count(), MOST);
    }
}
