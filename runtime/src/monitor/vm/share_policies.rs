//! What the guest may do to the files of one container's shares, as the container lives.
//!
//! ```text
//!  created      what its processes may do, and what root makes for it: mount points, device nodes
//!  started      what its processes may do
//!  exec         and what one more process may do, until the container's end: it may leave others behind
//! ```

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use anyhow::Context;
use protocol::Process;
use tokio::sync::Mutex;
use vmm::virtio::fs::Policy;

use super::Vm;
use super::file_systems::{Devices, Place, Placed, Places};
use crate::host::shares::{Share, policy, setup_policy};
use crate::plan::{FileRights, ShareRole};

/// The shares of a container, and the rights that hold there.
pub struct SharePolicies {
    shares: Vec<Entry>,
    /// Held while the device is told of a change.
    rights: Mutex<FileRights>,
    started: Cell<bool>,
}

/// A share, how it is used, and which device it is on.
struct Entry {
    name: String,
    role: ShareRole,
    place: Place,
}

impl SharePolicies {
    /// The policies of shares of a container that is yet to be set up, and the shares for the devices.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(shares: Vec<Share>, rights: FileRights, places: &Places) -> io::Result<(Self, Vec<Placed>)> {
        let (mut entries, mut placed) = (Vec::new(), Vec::new());
        for share in shares {
            let place = places.take(share.remote.as_deref());
            let (name, role, device) = (share.name.clone(), share.role, place.device);
            entries.push(Entry { name, role, place });
            placed.push(Placed { device, share: share.into_device(&rights)? });
        }
        Ok((Self { shares: entries, rights: Mutex::new(rights), started: Cell::new(false) }, placed))
    }

    /// The devices of shares that are on network and FUSE file systems.
    pub fn devices_in_reserve(&self) -> Devices {
        self.shares.iter().map(|share| share.place.device).filter(|device| *device > 0).collect()
    }

    /// The device of each share, by the share's name.
    pub fn devices_by_name(&self) -> BTreeMap<String, u32> {
        self.shares.iter().map(|share| (share.name.clone(), share.place.device)).collect()
    }

    /// The container is set up and will start: from now on its guest may only do what its processes may.
    ///
    /// # Errors
    /// The device does not answer.
    pub async fn start(&self, vm: &Vm) -> anyhow::Result<()> {
        let rights = self.rights.lock().await;
        self.tell(vm, |role| (setup_policy(role, &rights), policy(role, &rights))).await?;
        self.started.set(true);
        Ok(())
    }

    /// A process is about to run in the container.
    ///
    /// # Errors
    /// The device does not answer.
    pub async fn admit(&self, vm: &Vm, process: &Process) -> anyhow::Result<()> {
        let mut rights = self.rights.lock().await;
        let more = rights.with(process);
        let of = |role, rights: &_| if self.started.get() { policy(role, rights) } else { setup_policy(role, rights) };
        self.tell(vm, |role| (of(role, &rights), of(role, &more))).await?;
        *rights = more;
        Ok(())
    }

    /// Tells the devices of those policies that are others than `before`.
    async fn tell(&self, vm: &Vm, change: impl Fn(ShareRole) -> (Policy, Policy)) -> anyhow::Result<()> {
        let changed = self.shares.iter().filter_map(|share| {
            let (before, now) = change(share.role);
            (before != now).then(|| (share.place.device, (share.name.clone(), now)))
        });
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() {
            return Ok(());
        }
        let told = vm.files.set_policies(changed);
        vm.or_death(told).await.context("change what the guest may do to the files of the container")
    }
}
