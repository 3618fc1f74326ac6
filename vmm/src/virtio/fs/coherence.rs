//! How long the guest may believe what it was told, and how it learns that this no longer holds.
//!
//! The host and other guests may change a file at any time, and FUSE over virtio has no way to tell the guest. So the
//! guest believes names and attributes for as long as the share's [`Cache`] says, and every open is checked: when the file
//! has changed since the guest was last told of it, or stands under that name no more, the answer is `ESTALE`, on which
//! Linux walks the path once more and asks for each name anew. So a process that opens a file reads the present content (close-to-open),
//! however long attributes are believed.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::sys::{self, SetId, Stat};
use super::table::inode::Inode;

/// What the guest may keep of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// How long the guest believes names and attributes.
    pub valid: Duration,
    /// Whether nobody else changes anything: the guest keeps data and the absence of names too, and no open is checked.
    pub exclusive: bool,
    /// Whether locks hold against others on the host, rather than in the guest alone.
    pub host_locks: bool,
}

/// Two changes of a file within one tick of its file system's clock look like one: what was told so soon after a change
/// says nothing about later. These are two of the longest ticks that Linux has.
const TICKS: Duration = Duration::from_millis(20);
/// The same where times are whole seconds, or every other one (FAT, ext3 with small inodes).
const SECONDS: Duration = Duration::from_millis(2020);
/// How long the guest believes attributes of such a file, and of a share that is a single file: the guest does not look
/// that one up by name, so only asking for attributes tells the present length.
const SHORT: Duration = Duration::from_millis(50);
/// Stands for no change time: before the first one, and when an open is good whatever has become of the file.
const NOTHING: i64 = 0;
/// A time that no file has: cached pages with this time are never right.
pub(super) const UNKNOWN: i64 = i64::MIN;

impl Cache {
    /// What may be kept of something that this and another one hold for.
    pub(super) fn strictest(&self, other: &Self) -> Self {
        Self {
            valid: self.valid.min(other.valid),
            exclusive: self.exclusive && other.exclusive,
            host_locks: self.host_locks || other.host_locks,
        }
    }

    /// How long the guest may keep the attributes of an object; `single` for a share's root.
    pub(super) fn attributes_valid(&self, kind: u32, single: bool, recent: bool) -> Duration {
        let short = recent || single && !self.exclusive && kind == libc::S_IFREG;
        if short { self.valid.min(SHORT) } else { self.valid }
    }

    /// Whether a file with these attributes may have changed since without their telling, or may yet do so.
    pub(super) fn is_recent(&self, stat: &Stat, began: Began) -> bool {
        !self.exclusive && sys::kind(stat) == libc::S_IFREG && began.is_soon_after(stat)
    }
}

/// When a request began, by the clock of time stamps, in nanoseconds since 1970. Attributes are asked for after that: had it been
/// read after them, a tick could have ended in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Began(i64);

impl Began {
    /// A request that begins now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
    }

    /// Whether the last change is so new that another one may have the same time. A time in the future is, too.
    pub fn is_soon_after(self, stat: &Stat) -> bool {
        let ticks = if stat.stx_ctime.tv_nsec == 0 { SECONDS } else { TICKS };
        self.0.saturating_sub(change_time(stat)) < ticks.as_nanos() as i64
    }
}

impl Inode {
    /// Notes that the guest gets these attributes, or has made them so itself.
    pub(super) fn reported(&mut self, stat: &Stat) {
        self.known = version(stat);
        self.set_id = SetId::of(stat);
    }

    /// Notes that the guest has changed the object in a way that nobody can tell, or has taken its last name, so that there is
    /// none to look up.
    pub(super) fn changed(&mut self) {
        self.known = NOTHING;
    }

    /// Whether a guest that opens the object should look again first. Never so for what is a share's root and no more: no name
    /// leads there in the guest.
    pub(super) fn is_outdated(&self, stat: &Stat) -> bool {
        let changed = self.known != version(stat) || stat.stx_nlink == 0;
        let named = !self.pinned || self.parent != 0;
        named && self.known != NOTHING && changed
    }

    /// Whether the guest's pages of the object are still right; notes what they are right for from now on, which a `recent` change
    /// leaves open.
    pub(super) fn keeps_pages(&mut self, recent: bool, stat: &Stat) -> bool {
        self.keeps_version(recent, version(stat))
    }

    /// [`Inode::keeps_pages`] for the attributes that were reported last.
    pub(super) fn keeps_reported(&mut self, recent: bool) -> bool {
        self.keeps_version(recent, self.known)
    }

    fn keeps_version(&mut self, recent: bool, now: i64) -> bool {
        let before = self.opened_at;
        self.opened_at = if recent { UNKNOWN } else { now };
        before == now || before == NOTHING
    }
}

/// Opens that were answered with `ESTALE` lately, by nodeid and process. No process gets that answer twice in a row, so that
/// a file can be opened that changes all the time, or that is reached without looking up a name (`/proc/self/fd`, a bind
/// mount).
#[derive(Default)]
pub(super) struct Sent {
    latest: [(u64, u32); 16],
    next: usize,
}

impl Sent {
    /// Notes an open, and whether it is `outdated`. Returns whether to answer with `ESTALE`.
    pub fn again(&mut self, opener: (u64, u32), outdated: bool) -> bool {
        let before = self.latest.iter_mut().find(|sent| **sent == opener);
        let again = outdated && before.is_none();
        if let Some(sent) = before {
            *sent = (0, 0);
        } else if again && let Some(sent) = self.latest.get_mut(self.next) {
            *sent = opener;
            self.next = (self.next + 1) % self.latest.len();
        }
        again
    }
}

/// A number that changes with a file: of its change time and, as that may be the same after another change, its size. Neither
/// [`NOTHING`] nor [`UNKNOWN`].
fn version(stat: &Stat) -> i64 {
    match change_time(stat) ^ (stat.stx_size as i64).rotate_left(32) {
        NOTHING | UNKNOWN => 1,
        version => version,
    }
}

/// Change time in nanoseconds since 1970.
fn change_time(stat: &Stat) -> i64 {
    stat.stx_ctime.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(stat.stx_ctime.tv_nsec))
}

#[cfg(test)]
mod versions {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn differ_where_times_do_not() {
        // Kernels from 6.13 on give changes that somebody has looked at times of their own, so this one may not do it by itself.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let stat = sys::stat(file.as_fd()).unwrap();
        let mut changed = stat;
        changed.stx_size += 1;
        assert_eq!(change_time(&stat), change_time(&changed));
        assert_ne!(version(&stat), version(&changed));
    }
}
