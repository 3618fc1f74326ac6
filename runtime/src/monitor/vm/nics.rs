//! The NICs of a VM, which all its containers share. At first no tap is attached to any of them.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use protocol::Nic;
use vmm::Running;
use vmm::virtio::Device;
use vmm::virtio::net::{Counters, Net, TapHandle, Traffic};

use crate::plan::NICS;

/// The NICs of one VM.
pub struct Nics {
    taps: Vec<TapHandle>,
    counters: Vec<Arc<Counters>>,
    /// Number of the first NIC among the VM's devices.
    first: usize,
    /// Whether each NIC is hot-plugged when it is needed. A kernel that cannot do that finds all of them as it boots.
    pub hotplugged: bool,
    /// The NICs that no container has.
    pub pool: NicPool,
}

impl Nics {
    /// Makes the NICs, as devices behind so many others. Their addresses only matter until a tap is attached.
    pub fn new(first: usize, hotplugged: bool) -> anyhow::Result<(Vec<Box<dyn Device>>, Self)> {
        let (mut devices, mut taps, mut counters) = (Vec::<Box<dyn Device>>::new(), Vec::new(), Vec::new());
        for number in (0..=u8::MAX).take(NICS) {
            let (device, tap) = Net::new([2, b'r', b'v', b'm', 0, number]).context("make a NIC")?;
            counters.push(device.counters());
            devices.push(Box::new(device));
            taps.push(tap);
        }
        Ok((devices, Self { taps, counters, first, hotplugged, pool: NicPool::default() }))
    }

    /// Number of frames that went each way, and that did not arrive, over all NICs.
    pub fn frames(&self) -> [(&'static str, u64); 4] {
        let sum = |of: fn(&Counters) -> &Traffic, count: fn(&Traffic) -> u64| {
            self.counters.iter().map(|counters| count(of(counters))).sum()
        };
        [
            ("received", sum(|of| &of.received, Traffic::frames)),
            ("receive dropped", sum(|of| &of.received, Traffic::dropped)),
            ("sent", sum(|of| &of.transmitted, Traffic::frames)),
            ("send dropped", sum(|of| &of.transmitted, Traffic::dropped)),
        ]
    }

    /// Attaches a tap. Returns how the guest finds the NIC.
    pub async fn attach(&self, lease: &NicLease, tap: OwnedFd, running: &Running) -> anyhow::Result<Nic> {
        let (number, device) = (lease.number, self.first + lease.number);
        let handle = self.taps.get(number).with_context(|| format!("there is no NIC {number}"))?.clone();
        let text = if self.hotplugged { format!("{}:{device}", running.hotplug(number)?) } else { String::new() };
        // The device answers when it has done what it is at: not for this thread to wait for.
        tokio::task::spawn_blocking(move || handle.attach(tap)).await??;
        Ok(Nic { device: u32::try_from(device)?, kernel_parameter: text, ..Default::default() })
    }

    /// Detaches the tap.
    pub async fn detach(&self, lease: &NicLease) -> anyhow::Result<()> {
        let Some(handle) = self.taps.get(lease.number).cloned() else { return Ok(()) };
        Ok(tokio::task::spawn_blocking(move || handle.detach()).await??)
    }
}

/// Numbers of the NICs that no container has.
#[derive(Clone)]
pub struct NicPool(Arc<Mutex<BTreeSet<usize>>>);

impl Default for NicPool {
    /// All numbers.
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0..NICS).collect())))
    }
}

impl NicPool {
    /// Takes so many, or none if there are fewer.
    pub fn take(&self, count: usize) -> Option<Vec<NicLease>> {
        let leases: Vec<NicLease> = (0..count).map_while(|_| self.take_one()).collect();
        (leases.len() == count).then_some(leases)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.free().len()
    }

    fn take_one(&self) -> Option<NicLease> {
        let number = self.free().pop_first()?;
        Some(NicLease { number, pool: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A NIC that one container has, until this is dropped.
pub struct NicLease {
    number: usize,
    pool: NicPool,
}

impl Drop for NicLease {
    fn drop(&mut self) {
        self.pool.free().insert(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_are_wanted_or_none() {
        let pool = NicPool::default();
        let most = pool.take(NICS - 1).unwrap();
        assert!(pool.take(2).is_none());
        let last = pool.take(1).unwrap();
        assert_eq!(last[0].number, NICS - 1);
        assert!(pool.take(1).is_none() && pool.take(0).is_some());
        drop(most);
        assert_eq!(pool.take(NICS - 1).unwrap()[0].number, 0);
    }
}
