//! Number of requests by opcode, for tests and benchmarks.

use std::sync::atomic::{AtomicU64, Ordering};

use super::fuse::opcode;

/// Opcodes counted; higher ones share the last place.
const OPCODES: usize = 64;

/// Requests served since the device was made, by opcode of `fuse.h`. Read it from any thread.
#[derive(Debug)]
pub struct Counters {
    requests: [AtomicU64; OPCODES],
}

impl Default for Counters {
    fn default() -> Self {
        Self { requests: [const { AtomicU64::new(0) }; OPCODES] }
    }
}

impl Counters {
    /// Counts a request. Only the device's worker does.
    pub(super) fn count(&self, opcode: u32) {
        let place = (opcode as usize).min(OPCODES - 1);
        if let Some(counter) = self.requests.get(place) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Number of requests of one opcode.
    pub fn get(&self, opcode: u32) -> u64 {
        self.requests.get(opcode as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Number of requests of all opcodes.
    pub fn total(&self) -> u64 {
        self.requests.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// Name and count of every opcode that came, by number.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        Self::named_sum(&[self])
    }

    /// Name and count of every opcode that came to any of several devices, by number.
    pub fn named_sum(all: &[&Self]) -> Vec<(&'static str, u64)> {
        let sum = |opcode| all.iter().map(|counters| counters.get(opcode)).sum();
        let counts = (0..OPCODES as u32).map(|opcode| (opcode::name(opcode), sum(opcode)));
        counts.filter(|&(_, count)| count > 0).collect()
    }
}
