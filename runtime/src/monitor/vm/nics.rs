//! The network cards of a machine, which all its containers share. They are connected to nothing at first.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use protocol::Nic;
use vmm::Running;
use vmm::virtio::Device;
use vmm::virtio::net::{Counters, Net, TapHandle, Traffic};

use crate::plan::NICS;

/// All of them.
pub struct Cards {
    taps: Vec<TapHandle>,
    counters: Vec<Arc<Counters>>,
    /// Number of the first one among the machine's devices.
    first: usize,
    /// The kernel is told of each when it is needed. One that cannot be told later finds all of them as it boots.
    pub late: bool,
    pool: Pool,
}

impl Cards {
    /// Makes them, as devices behind so many others. Their addresses only matter until they are connected to something.
    pub fn new(first: usize, late: bool) -> anyhow::Result<(Vec<Box<dyn Device>>, Self)> {
        let (mut devices, mut taps, mut counters) = (Vec::<Box<dyn Device>>::new(), Vec::new(), Vec::new());
        for number in (0..=u8::MAX).take(NICS) {
            let (device, tap) = Net::new([2, b'r', b'v', b'm', 0, number]).context("make a network card")?;
            counters.push(device.counters());
            devices.push(Box::new(device));
            taps.push(tap);
        }
        Ok((devices, Self { taps, counters, first, late, pool: Pool::default() }))
    }

    /// Those that are free.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How many frames went each way, and did not arrive, over all of them.
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

    /// Connects one with a tap. Returns how the guest finds it.
    pub async fn plug(&self, slot: &Slot, tap: OwnedFd, running: &Running) -> anyhow::Result<Nic> {
        let (number, device) = (slot.number, self.first + slot.number);
        let handle = self.taps.get(number).with_context(|| format!("there is no network card {number}"))?.clone();
        let text = if self.late { format!("{}:{device}", running.hotplug(number)?) } else { String::new() };
        // The device answers when it has done what it is at: not for this thread to wait for.
        tokio::task::spawn_blocking(move || handle.attach(tap)).await??;
        Ok(Nic { device: u32::try_from(device)?, kernel_parameter: text, ..Default::default() })
    }

    /// Disconnects it.
    pub async fn unplug(&self, slot: &Slot) -> anyhow::Result<()> {
        let Some(handle) = self.taps.get(slot.number).cloned() else { return Ok(()) };
        Ok(tokio::task::spawn_blocking(move || handle.detach()).await??)
    }
}

/// Numbers of cards that no container has.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<BTreeSet<usize>>>);

impl Default for Pool {
    /// All numbers.
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0..NICS).collect())))
    }
}

impl Pool {
    /// Takes so many, or none if there are fewer.
    pub fn take(&self, count: usize) -> Option<Vec<Slot>> {
        let slots: Vec<Slot> = (0..count).map_while(|_| self.take_one()).collect();
        (slots.len() == count).then_some(slots)
    }

    fn take_one(&self) -> Option<Slot> {
        let number = self.free().pop_first()?;
        Some(Slot { number, pool: self.clone() })
    }

    fn free(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A card that one container has, until this is dropped.
pub struct Slot {
    number: usize,
    pool: Pool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.free().insert(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_are_wanted_or_none() {
        let pool = Pool::default();
        let most = pool.take(NICS - 1).unwrap();
        assert!(pool.take(2).is_none());
        let last = pool.take(1).unwrap();
        assert_eq!(last[0].number, NICS - 1);
        assert!(pool.take(1).is_none() && pool.take(0).is_some());
        drop(most);
        assert_eq!(pool.take(NICS - 1).unwrap()[0].number, 0);
    }
}
