//! The network cards of a machine, which all its containers share. They are connected to nothing at first.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use protocol::Nic;
use vmm::Running;
use vmm::virtio::Device;
use vmm::virtio::net::{Counters, Net, Plug, Traffic};

use crate::plan::CARDS;

/// All of them.
pub struct Cards {
    plugs: Vec<Plug>,
    counters: Vec<Arc<Counters>>,
    /// Number of the first one among the machine's devices.
    first: usize,
    /// The kernel is told of each when it is needed. One that cannot be told later finds all of them as it boots.
    pub late: bool,
    pool: Pool,
}

impl Cards {
    /// Makes them, as devices behind so many others, each with so many pairs of queues. Their addresses only matter until
    /// they are connected to something.
    pub fn new(first: usize, late: bool, pairs: u16) -> anyhow::Result<(Vec<Box<dyn Device>>, Self)> {
        let (mut devices, mut plugs, mut counters) = (Vec::<Box<dyn Device>>::new(), Vec::new(), Vec::new());
        for number in (0..=u8::MAX).take(CARDS) {
            let (device, plug) = Net::new([2, b'r', b'v', b'm', 0, number], pairs).context("make a network card")?;
            counters.extend(device.counters());
            devices.push(Box::new(device));
            plugs.push(plug);
        }
        Ok((devices, Self { plugs, counters, first, late, pool: Pool::new(pairs) }))
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

    /// Connects one with a tap, by a descriptor for each of its queues. Returns how the guest finds it.
    pub async fn plug(&self, slot: &Slot, tap: Vec<OwnedFd>, running: &Running) -> anyhow::Result<Nic> {
        let (number, device) = (slot.number, self.first + slot.number);
        let plug = self.plugs.get(number).with_context(|| format!("there is no network card {number}"))?.clone();
        let text = if self.late { format!("{}:{device}", running.attach(number)?) } else { String::new() };
        // The device answers when it has done what it is at: not for this thread to wait for.
        tokio::task::spawn_blocking(move || plug.plug(tap)).await??;
        Ok(Nic { device: u32::try_from(device)?, kernel_parameter: text, ..Default::default() })
    }

    /// Disconnects it.
    pub async fn unplug(&self, slot: &Slot) -> anyhow::Result<()> {
        let Some(plug) = self.plugs.get(slot.number).cloned() else { return Ok(()) };
        Ok(tokio::task::spawn_blocking(move || plug.unplug()).await??)
    }
}

/// Numbers of cards that no container has.
#[derive(Clone)]
pub struct Pool {
    free: Arc<Mutex<BTreeSet<usize>>>,
    pairs: u16,
}

impl Pool {
    /// All numbers, of cards of so many pairs of queues.
    pub fn new(pairs: u16) -> Self {
        Self { free: Arc::new(Mutex::new((0..CARDS).collect())), pairs }
    }

    /// How many pairs of queues each card has.
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

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
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
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
        let pool = Pool::new(1);
        let most = pool.take(CARDS - 1).unwrap();
        assert!(pool.take(2).is_none());
        let last = pool.take(1).unwrap();
        assert_eq!(last[0].number, CARDS - 1);
        assert!(pool.take(1).is_none() && pool.take(0).is_some());
        drop(most);
        assert_eq!(pool.take(CARDS - 1).unwrap()[0].number, 0);
    }
}
