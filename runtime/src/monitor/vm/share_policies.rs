//! What the guest may do to the files of one container's shares, as the container lives.
//!
//! ```text
//!  created      what its processes may do, and what root makes for it: mount points, device nodes
//!  started      what its processes may do
//!  exec         and what one more process may do, until the container's end: it may leave others behind
//! ```

use std::cell::Cell;
use std::io;

use anyhow::Context;
use protocol::Process;
use tokio::sync::Mutex;
use vmm::virtio::fs::{self, Policy};

use super::Vm;
use crate::host::shares::{Share, policy, setup_policy};
use crate::plan::{FileRights, ShareRole};

/// The shares of a container, and the rights that hold there.
pub struct SharePolicies {
    shares: Vec<(String, ShareRole)>,
    /// Held while the device is told of a change.
    rights: Mutex<FileRights>,
    started: Cell<bool>,
}

impl SharePolicies {
    /// The policies of shares of a container that is yet to be set up, and the shares for the device.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(shares: Vec<Share>, rights: FileRights) -> io::Result<(Self, Vec<fs::Share>)> {
        let roles = shares.iter().map(|share| (share.name.clone(), share.role)).collect();
        let shares = shares.into_iter().map(|share| share.into_device(&rights)).collect::<io::Result<_>>()?;
        Ok((Self { shares: roles, rights: Mutex::new(rights), started: Cell::new(false) }, shares))
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

    /// Tells the device of those policies that are others than `before`, on another thread: it answers when it has done what it
    /// is at.
    async fn tell(&self, vm: &Vm, change: impl Fn(ShareRole) -> (Policy, Policy)) -> anyhow::Result<()> {
        let changed = self.shares.iter().filter_map(|(name, role)| {
            let (before, now) = change(*role);
            (before != now).then(|| (name.clone(), now))
        });
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() {
            return Ok(());
        }
        let sharing = vm.sharing.clone();
        let told = async { Ok(tokio::task::spawn_blocking(move || sharing.set_policies(changed)).await??) };
        vm.or_death(told).await.context("change what the guest may do to the files of the container")
    }
}
