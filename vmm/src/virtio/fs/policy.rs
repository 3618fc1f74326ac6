//! What the guest may do to the files of a share, whatever its kernel says.
//!
//! The guest's kernel checks the permissions of its processes, and nobody else knows their groups and capabilities. But a
//! container may own its kernel, and the server has root's rights over files. So each share has a [`Policy`]: what the most
//! powerful process may do that the container can ever have. Every request that gives something to a file asks it here:
//!
//! | request | asks |
//! |---|---|
//! | `MKNOD`, `MKDIR`, `SYMLINK`, `CREATE`, `TMPFILE` | [`Policy::check_maker`], [`Policy::new_mode`], [`Policy::check_node`] |
//! | `SETATTR` of owner, group and mode | [`Policy::check_change`] |
//! | `SETXATTR`, `REMOVEXATTR` | [`Policy::check_xattr`] |
//! | whatever changes content | [`Policy::drops_set_id`] |
//!
//! Left to the guest's kernel is who may read, write, rename and remove what, since a hostile one has all of it from any
//! process that may: the share's content is the guest's.

use std::ops::RangeInclusive;

use super::fuse::{SetattrIn, fattr};
use super::request::{Errno, Served};
use super::sys::{self, Stat};

/// What the guest may do to the files of a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether it may make device nodes (`CAP_MKNOD`). Anybody may make a whiteout of overlayfs, character device 0:0.
    pub device_nodes: bool,
    /// Whether it may give files capabilities (`CAP_SETFCAP`).
    pub file_capabilities: bool,
    /// Whether it may change mode and ACL of files that are not its own (`CAP_FOWNER`).
    pub any_owner: bool,
    /// Whether setuid and setgid outlast a change of content, and setgid may be of any group (`CAP_FSETID`).
    pub keeps_set_id: bool,
    /// Whether files may be setuid and setgid at all.
    pub set_id: bool,
    /// Users and groups that exist: in a user namespace those that are mapped.
    pub known: Ids,
    /// Users and groups that new files may have.
    pub makers: Ids,
    /// Users and groups that it may give files, and whose files are its own.
    pub own: Ids,
}

/// Users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub uids: IdSet,
    /// Groups.
    pub gids: IdSet,
}

/// A set of user or group ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdSet(Vec<RangeInclusive<u32>>);

/// Bits that have a program run as its file's owner or group.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

impl Policy {
    /// All that root of the host may do.
    pub fn unrestricted() -> Self {
        Self {
            device_nodes: true,
            file_capabilities: true,
            any_owner: true,
            keeps_set_id: true,
            set_id: true,
            known: Ids::all(),
            makers: Ids::all(),
            own: Ids::all(),
        }
    }

    /// Nothing that a policy can allow.
    pub(super) const NOTHING: Self = Self {
        device_nodes: false,
        file_capabilities: false,
        any_owner: false,
        keeps_set_id: false,
        set_id: false,
        known: Ids { uids: IdSet::NONE, gids: IdSet::NONE },
        makers: Ids { uids: IdSet::NONE, gids: IdSet::NONE },
        own: Ids { uids: IdSet::NONE, gids: IdSet::NONE },
    };

    /// What a guest may do that may do this or the other.
    pub(super) fn either(&self, other: &Self) -> Self {
        Self {
            device_nodes: self.device_nodes || other.device_nodes,
            file_capabilities: self.file_capabilities || other.file_capabilities,
            any_owner: self.any_owner || other.any_owner,
            keeps_set_id: self.keeps_set_id || other.keeps_set_id,
            set_id: self.set_id || other.set_id,
            known: self.known.with(&other.known),
            makers: self.makers.with(&other.makers),
            own: self.own.with(&other.own),
        }
    }

    /// Checks that the guest may make something that belongs to this user and group.
    pub(super) fn check_maker(&self, uid: u32, gid: u32) -> Served {
        permit(self.makers.uids.contains(uid) && self.makers.gids.contains(gid))
    }

    /// Checks that the guest may make a node of this kind and, for a device, number.
    pub(super) fn check_node(&self, kind: u32, device: u64) -> Served {
        let whiteout = kind == libc::S_IFCHR && device == 0;
        permit(self.device_nodes || whiteout || kind != libc::S_IFCHR && kind != libc::S_IFBLK)
    }

    /// The mode of something new that is to have this one. In a directory that is setgid it gets a group that may be another's.
    pub(super) fn new_mode(&self, mode: u32) -> u32 {
        let group = libc::S_ISGID | libc::S_IXGRP;
        match mode {
            _ if !self.set_id => mode & !SET_ID,
            _ if self.drops_set_id() && mode & group == group => mode & !libc::S_ISGID,
            _ => mode,
        }
    }

    /// Whether a change of content takes setuid and setgid away, also where the guest's kernel does not ask for that.
    pub(super) fn drops_set_id(&self) -> bool {
        !self.keeps_set_id && self.depends_on_owner()
    }

    /// Whether what may be done to a file depends on whose it is.
    pub(super) fn depends_on_owner(&self) -> bool {
        !(self.own.uids.is_all() && self.own.gids.is_all())
    }

    /// Checks a change of owner, group and mode of an object; returns the mode to set.
    pub(super) fn check_change(&self, change: &SetattrIn, stat: &Stat) -> Served<u32> {
        let asked = |bit, id: u32| (change.valid & bit != 0 && id != u32::MAX).then_some(id);
        let (uid, gid) = (asked(fattr::UID, change.uid), asked(fattr::GID, change.gid));
        let given =
            uid.is_none_or(|uid| self.own.uids.contains(uid)) && gid.is_none_or(|gid| self.own.gids.contains(gid));
        if uid.or(gid).is_some() {
            permit(given && self.is_own(stat))?;
        }
        if change.valid & fattr::MODE == 0 {
            return Ok(0);
        }
        // A kernel may take away what it finds dangerous, whoever writes.
        let adds = change.mode & 0o7777 & !sys::permissions(stat) != 0;
        permit(!adds || self.may_change_mode(stat))?;
        if sys::kind(stat) == libc::S_IFDIR {
            return Ok(change.mode);
        }
        let of_own_group = self.keeps_set_id || self.own.gids.contains(gid.unwrap_or(stat.stx_gid));
        Ok(change.mode
            & !match () {
                () if !self.set_id => SET_ID,
                () if !of_own_group => libc::S_ISGID,
                () => 0,
            })
    }

    /// Checks that an extended attribute may be set to this value, or removed, as the host has its name.
    pub(super) fn check_xattr(&self, name: &[u8], value: Option<&[u8]>, stat: impl FnOnce() -> Served<Stat>) -> Served {
        match (name, value) {
            // Any change of content removes it.
            (b"security.capability", None) => Ok(()),
            (b"security.capability", Some(value)) => permit(self.allows_capability(value)),
            (name, value) if self.depends_on_owner() && name.starts_with(b"system.posix_acl_") => {
                permit(self.may_change_mode(&stat()?) && value.is_none_or(|acl| self.knows_ids(acl)))
            }
            _ => Ok(()),
        }
    }

    fn is_own(&self, stat: &Stat) -> bool {
        self.own.uids.contains(stat.stx_uid)
    }

    fn may_change_mode(&self, stat: &Stat) -> bool {
        let known = self.known.uids.contains(stat.stx_uid) && self.known.gids.contains(stat.stx_gid);
        self.is_own(stat) || self.any_owner && known
    }

    /// Whether this value of `security.capability` may be written. One that names the root of a user namespace counts there
    /// only, and whoever is that user can make such a namespace, with all capabilities in it.
    fn allows_capability(&self, value: &[u8]) -> bool {
        const REVISION: u32 = 0xff00_0000;
        const NAMESPACED: u32 = 0x0300_0000;
        let word = |at: usize| value.get(at..at + 4).and_then(|word| Some(u32::from_le_bytes(word.try_into().ok()?)));
        let Some(head) = word(0) else { return false };
        let root = if head & REVISION == NAMESPACED { word(20) } else { Some(0) };
        root.is_some_and(|root| {
            let own = root != 0 && self.own.uids.contains(root);
            self.known.uids.contains(root) && (self.file_capabilities || own)
        })
    }

    /// Whether the users and groups of an ACL (`linux/posix_acl_xattr.h`) exist. A malformed one is for the host to refuse.
    fn knows_ids(&self, acl: &[u8]) -> bool {
        const USER: u16 = 0x02;
        const GROUP: u16 = 0x08;
        let entries = acl.get(4..).unwrap_or_default().chunks_exact(8);
        entries.map(|entry| u64::from_le_bytes(entry.try_into().unwrap_or_default())).all(|entry| {
            let (tag, id) = (entry as u16, (entry >> 32) as u32);
            match tag {
                USER => self.known.uids.contains(id),
                GROUP => self.known.gids.contains(id),
                _ => true,
            }
        })
    }
}

impl Ids {
    /// All that there are.
    pub fn all() -> Self {
        Self { uids: IdSet::all(), gids: IdSet::all() }
    }

    fn with(&self, other: &Self) -> Self {
        Self { uids: self.uids.with(&other.uids), gids: self.gids.with(&other.gids) }
    }
}

impl IdSet {
    const NONE: Self = Self(Vec::new());
    /// The last id: the number after it stands for none.
    const LAST: u32 = u32::MAX - 1;

    /// All ids.
    pub fn all() -> Self {
        Self::of([0..=Self::LAST])
    }

    /// The ids of these ranges, in any order.
    pub fn of(ranges: impl IntoIterator<Item = RangeInclusive<u32>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u32>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    fn with(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).cloned())
    }

    fn contains(&self, id: u32) -> bool {
        let after = self.0.partition_point(|range| *range.start() <= id);
        let before = self.0.get(..after).and_then(<[_]>::last);
        id != u32::MAX && before.is_some_and(|range| range.contains(&id))
    }

    fn is_all(&self) -> bool {
        matches!(self.0.as_slice(), [range] if *range.start() == 0 && *range.end() >= Self::LAST)
    }
}

fn permit(allowed: bool) -> Served {
    if allowed { Ok(()) } else { Err(Errno(libc::EPERM)) }
}
