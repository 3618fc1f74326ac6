//! Table of the guest's locks that hold on the host.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

/// Most owners of locks at a time, however many descriptors there are; each owner takes one.
pub const MOST: usize = 4096;
/// Most ranges of all owners: the host's kernel keeps each in memory of its own (200 bytes), and goes through those of a
/// file one by one.
const MOST_RANGES: usize = 16_384;

/// Owners of locks, and handles that have one.
pub struct Locks {
    /// Most owners that the table takes.
    pub limit: usize,
    /// Most ranges that they have together.
    pub range_limit: usize,
    /// Owners by nodeid of the file and the guest's number of the owner.
    pub owners: HashMap<(u64, u64), Owner>,
    /// Handles with a `flock` lock.
    pub flocked: HashSet<u64>,
}

/// An owner of locks, as the guest names it.
pub struct Owner {
    /// Open file of this owner only, which carries the owner's locks.
    pub file: OwnedFd,
    /// The handle that the last lock was set through.
    pub fh: u64,
    /// The owner's process in the guest.
    pub pid: u32,
    /// What the owner has locked.
    pub ranges: Ranges,
}

/// Ranges that an owner has locked, in order, as the host's kernel keeps them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

/// A range of bytes with a lock of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First and last byte.
    pub bytes: RangeInclusive<u64>,
    /// `F_RDLCK`, `F_WRLCK`; `F_UNLCK` for no lock.
    pub kind: u32,
}

impl Ranges {
    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the ranges are after one more is locked, or unlocked: it takes the place of what was there, and touching
    /// ranges of one kind become one.
    pub fn with(&self, new: &Range) -> Self {
        let (first, last) = (*new.bytes.start(), *new.bytes.end());
        let mut ranges = Vec::with_capacity(self.0.len() + 2);
        for old in &self.0 {
            let before = *old.bytes.start()..=first.saturating_sub(1).min(*old.bytes.end());
            let after = last.saturating_add(1).max(*old.bytes.start())..=*old.bytes.end();
            let left = [(first > 0).then_some(before), (last < u64::MAX).then_some(after)];
            let left = left.into_iter().flatten().filter(|bytes| !bytes.is_empty());
            ranges.extend(left.map(|bytes| Range { bytes, kind: old.kind }));
        }
        if new.kind != libc::F_UNLCK as u32 {
            ranges.push(new.clone());
        }
        ranges.sort_by_key(|range| *range.bytes.start());
        ranges.dedup_by(|next, range| {
            let touch = range.kind == next.kind && range.bytes.end().checked_add(1) == Some(*next.bytes.start());
            if touch {
                range.bytes = *range.bytes.start()..=*next.bytes.end();
            }
            touch
        });
        Self(ranges)
    }
}

impl Locks {
    /// An empty table of at most `limit` owners.
    pub fn new(limit: usize) -> Self {
        Self { limit, range_limit: MOST_RANGES, owners: HashMap::new(), flocked: HashSet::new() }
    }

    /// Whether there is room for so many ranges more.
    pub fn has_room_for(&self, more: usize) -> bool {
        more == 0 || self.owners.values().map(|owner| owner.ranges.len()).sum::<usize>() + more <= self.range_limit
    }

    /// Drops all locks.
    pub fn clear(&mut self) {
        self.keep(|_| false);
    }

    /// Whether there are no locks.
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.flocked.is_empty()
    }

    /// Drops the locks of an owner that closes a file.
    pub fn drop_owner(&mut self, nodeid: u64, owner: u64) {
        self.owners.remove(&(nodeid, owner));
    }

    /// Drops the locks that were set through a handle.
    pub fn drop_handle(&mut self, fh: u64) {
        self.flocked.remove(&fh);
        self.owners.retain(|_, owner| owner.fh != fh);
    }

    /// Drops the locks of handles that are not there any more.
    pub fn keep(&mut self, is_open: impl Fn(u64) -> bool) {
        self.flocked.retain(|&fh| is_open(fh));
        self.owners.retain(|_, owner| is_open(owner.fh));
    }

    /// A process of the guest that may have the lock that is in an owner's way; 0 for one elsewhere.
    pub fn other(&self, nodeid: u64, owner: u64) -> u32 {
        let others = self.owners.iter().filter(|((node, of), _)| *node == nodeid && *of != owner);
        others.map(|(_, owner)| owner.pid).next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &[(u64, u64, i32)]) -> Vec<(u64, u64, u32)> {
        let range = |&(first, last, kind): &(u64, u64, i32)| Range { bytes: first..=last, kind: kind as u32 };
        let ranges = steps.iter().fold(Ranges::default(), |ranges, step| ranges.with(&range(step)));
        ranges.0.into_iter().map(|range| (*range.bytes.start(), *range.bytes.end(), range.kind)).collect()
    }

    #[test]
    fn ranges_are_cut_and_joined() {
        use libc::{F_RDLCK as R, F_UNLCK as U, F_WRLCK as W};
        let (r, w) = (R as u32, W as u32);
        const END: u64 = i64::MAX as u64;
        assert_eq!(after(&[(0, 9, W), (10, 19, W)]), [(0, 19, w)]);
        assert_eq!(after(&[(10, 19, W), (0, 9, R)]), [(0, 9, r), (10, 19, w)]);
        assert_eq!(after(&[(0, END, W), (5, 6, R)]), [(0, 4, w), (5, 6, r), (7, END, w)]);
        assert_eq!(after(&[(0, END, W), (5, 6, U), (0, 0, U)]), [(1, 4, w), (7, END, w)]);
        assert_eq!(after(&[(5, 6, R), (9, 9, W), (1, 20, W)]), [(1, 20, w)]);
        assert_eq!(after(&[(5, 6, R), (0, END, U)]), []);
        assert_eq!(
            after(&[(0, u64::MAX, W), (u64::MAX, u64::MAX, R)]),
            [(0, u64::MAX - 1, w), (u64::MAX, u64::MAX, r)]
        );
    }
}
