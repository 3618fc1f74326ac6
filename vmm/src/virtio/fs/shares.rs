//! The shares in use, and what holds for objects that are in several of them.
//!
//! An object of the host may be reached through several shares, and is one object to the guest. What the guest may do to it is then what
//! any of them allows, since it can go that way; what the guest may keep of it is what all of them allow.

use std::time::Duration;

use super::fuse::ROOT_ID;
use super::place::{Place, WayId};
use super::share::Common;
use super::{Cache, Policy};

/// Nodeid of the first directory of shares. The table of inodes has no slot of this number.
const FIRST_DIRECTORY: u64 = 1 << 31;
/// First of the [`Place`] numbers that are one share's alone.
const ALONE: u16 = 1 << 15;
/// Bit of the [`Place`] number of directories whose shares hear of what the host mounts.
const LIVE: u16 = 1 << 14;
/// Most shares, and most directories of shares.
const MOST: usize = LIVE as usize;
/// Most combinations of shares that objects are reached through.
const MOST_WAYS: usize = 1 << 12;

/// A share in use.
pub struct Root {
    /// Name in its directory.
    pub name: String,
    /// Nodeid of the share's root.
    pub nodeid: u64,
    /// With which other shares it has objects in common.
    pub common: Common,
    /// The directory of shares that it is in; `None` for the device's root directory.
    directory: Option<u16>,
}

/// Shares that an object is reached through, and what holds for such an object.
#[derive(Clone, Debug)]
struct Way {
    shares: Vec<u16>,
    rules: Rules,
}

/// What holds for an object.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether changes fail with `EROFS`.
    pub read_only: bool,
    /// What the guest may keep of it.
    pub cache: Cache,
    /// What the guest may do to it.
    pub policy: Policy,
    /// Whether it is on a file system of the host's own, where nobody else has to answer.
    pub local: bool,
}

impl Rules {
    /// What holds for what is in no share.
    const NOTHING: Self = Self {
        read_only: true,
        cache: Cache { valid: Duration::ZERO, exclusive: false, host_locks: false },
        policy: Policy::NOTHING,
        local: false,
    };

    fn merged(&self, other: &Self) -> Self {
        Self {
            read_only: self.read_only && other.read_only,
            cache: self.cache.strictest(&other.cache),
            policy: match (self.read_only, other.read_only) {
                // Nothing is done through a share that is read-only.
                (true, false) => other.policy.clone(),
                (false, true) => self.policy.clone(),
                _ => self.policy.either(&other.policy),
            },
            local: self.local && other.local,
        }
    }
}

/// The shares in use, their directories, and the ways to objects.
#[derive(Default)]
pub struct Shares {
    roots: Vec<Option<Root>>,
    /// Rules of each share.
    rules: Vec<Option<Rules>>,
    /// Names of the directories, and how many shares each has.
    directories: Vec<Option<(String, usize)>>,
    /// The ways, by number.
    ways: Vec<Option<Way>>,
}

impl Shares {
    /// All shares with their numbers.
    pub fn all(&self) -> impl Iterator<Item = (u16, &Root)> {
        self.roots.iter().enumerate().filter_map(|(number, root)| Some((number as u16, root.as_ref()?)))
    }

    /// All shares, each with what holds for it.
    pub fn into_all(self) -> impl Iterator<Item = (Root, Rules)> {
        self.roots.into_iter().zip(self.rules).filter_map(|(root, rules)| Some((root?, rules?)))
    }

    /// The share of this number.
    pub fn get(&self, number: u16) -> Option<&Root> {
        self.roots.get(usize::from(number))?.as_ref()
    }

    /// Number of the share of this name.
    pub fn named(&self, name: &str) -> Option<u16> {
        self.all().find(|(_, root)| root.name == name).map(|(number, _)| number)
    }

    /// Adds a share whose root has yet to be given its nodeid; returns its number. `None` when there are too many.
    pub fn add(&mut self, name: &str, common: Common, rules: Rules) -> Option<u16> {
        let free = self.roots.iter().position(Option::is_none).unwrap_or(self.roots.len());
        self.add_at(u16::try_from(free).ok()?, name, common, rules)
    }

    /// Adds a share of this number, which none has.
    pub fn add_at(&mut self, number: u16, name: &str, common: Common, rules: Rules) -> Option<u16> {
        let at = usize::from(number);
        if at >= MOST {
            return None;
        }
        let directory = match common.directory() {
            Some(name) => Some(self.enter(name)?),
            None => None,
        };
        if self.roots.len() <= at {
            self.roots.resize_with(at + 1, || None);
            self.rules.resize_with(at + 1, || None);
        }
        *self.roots.get_mut(at)? = Some(Root { name: name.to_owned(), nodeid: 0, common, directory });
        *self.rules.get_mut(at)? = Some(rules);
        Some(number)
    }

    /// Counts one more share in a directory, which is made if need be; returns its number.
    fn enter(&mut self, name: &str) -> Option<u16> {
        let known = self.directories.iter().position(|known| known.as_ref().is_some_and(|(known, _)| known == name));
        let free = || self.directories.iter().position(Option::is_none).unwrap_or(self.directories.len());
        let at = known.unwrap_or_else(free);
        if at >= MOST {
            return None;
        }
        if at == self.directories.len() {
            self.directories.push(None);
        }
        self.directories.get_mut(at)?.get_or_insert_with(|| (name.to_owned(), 0)).1 += 1;
        Some(at as u16)
    }

    /// Gives a share's root its nodeid.
    pub fn settle(&mut self, number: u16, nodeid: u64) {
        if let Some(root) = self.roots.get_mut(usize::from(number)).and_then(Option::as_mut) {
            root.nodeid = nodeid;
        }
    }

    /// Takes a share out; the ways that led through it are to be asked for with [`Shares::without`] before.
    pub fn remove(&mut self, number: u16) {
        let at = usize::from(number);
        let Some(root) = self.roots.get_mut(at).and_then(Option::take) else { return };
        if let Some(rules) = self.rules.get_mut(at) {
            *rules = None;
        }
        let directory = root.directory.and_then(|directory| self.directories.get_mut(usize::from(directory)));
        if let Some(directory) = directory
            && let Some((_, shares)) = directory
        {
            *shares -= 1;
            if *shares == 0 {
                *directory = None;
            }
        }
        let through = |way: &Way| way.shares.contains(&number);
        self.ways.iter_mut().filter(|way| way.as_ref().is_some_and(through)).for_each(|way| *way = None);
    }

    /// Where objects of a share count as the same.
    pub fn place(&self, number: u16) -> Place {
        let alone = ALONE | number;
        let Some(Root { common, directory: Some(directory), .. }) = self.get(number) else {
            return Place { files: alone, directories: alone };
        };
        let directories = match common {
            Common::All(_) => *directory,
            Common::Live(_) => *directory | LIVE,
            Common::Files(_) | Common::Nothing => alone,
        };
        Place { files: *directory, directories }
    }

    /// Whether all shares are on file systems of the host's own, with nothing mounted in them that is known.
    pub fn are_local(&self) -> bool {
        self.rules.iter().flatten().all(|rules| rules.local)
    }

    /// Whether a place may have objects that one share lets the guest change and another does not.
    pub fn is_mixed(&self, files: u16) -> bool {
        let here = |(_, root): &(u16, &Root)| root.directory == Some(files);
        let read_only = |(number, _): (u16, &Root)| self.rule(number).is_none_or(|rules| rules.read_only);
        let mut kinds = self.all().filter(here).map(read_only);
        kinds.next().is_some_and(|first| kinds.any(|kind| kind != first))
    }

    fn rule(&self, number: u16) -> Option<&Rules> {
        self.rules.get(usize::from(number))?.as_ref()
    }

    /// Has another policy hold for a share.
    pub fn set_policy(&mut self, number: u16, policy: Policy) {
        self.change_rules(number, |rules| rules.policy = policy);
    }

    /// Notes that file systems are mounted inside of the shares of a way: somebody else may have to answer there.
    pub fn has_mounts(&mut self, way: WayId) {
        if self.rules(way).local {
            for number in self.shares_of(way).to_vec() {
                self.change_rules(number, |rules| rules.local = false);
            }
        }
    }

    fn change_rules(&mut self, number: u16, change: impl FnOnce(&mut Rules)) {
        if let Some(rules) = self.rules.get_mut(usize::from(number)).and_then(Option::as_mut) {
            change(rules);
        }
        for at in 0..self.ways.len() {
            let shares = self.ways.get(at).and_then(Option::as_ref).map(|way| way.shares.clone());
            if let Some(shares) = shares.filter(|shares| shares.contains(&number)) {
                let way = self.way(shares);
                self.ways.get_mut(at).into_iter().for_each(|slot| *slot = way.clone());
            }
        }
    }

    fn way(&self, shares: Vec<u16>) -> Option<Way> {
        let mut rules = shares.iter().filter_map(|&number| self.rule(number));
        let first = rules.next()?.clone();
        Some(Way { rules: rules.fold(first, |all, rules| all.merged(rules)), shares })
    }

    /// The way through these shares, each once and in order.
    fn way_through(&mut self, shares: Vec<u16>) -> Option<WayId> {
        let same = |way: &Option<Way>| way.as_ref().is_some_and(|way| way.shares == shares);
        if let Some(known) = self.ways.iter().position(same) {
            return Some(known as WayId);
        }
        let free = self.ways.iter().position(Option::is_none).unwrap_or(self.ways.len());
        if free >= MOST_WAYS + self.roots.len() {
            return None;
        }
        let way = self.way(shares)?;
        if free == self.ways.len() {
            self.ways.push(None);
        }
        *self.ways.get_mut(free)? = Some(way);
        Some(free as WayId)
    }

    /// The way through one share.
    pub fn through(&mut self, number: u16) -> Option<WayId> {
        self.way_through(vec![number])
    }

    /// The way of an object that is reached in two ways. Where there are too many it is the first one.
    pub fn both(&mut self, one: WayId, other: WayId) -> WayId {
        if one == other {
            return one;
        }
        let mut shares: Vec<u16> = [one, other].iter().flat_map(|&way| self.shares_of(way)).copied().collect();
        shares.sort_unstable();
        shares.dedup();
        self.way_through(shares).unwrap_or(one)
    }

    /// What is left of a way without a share.
    pub fn without(&mut self, way: WayId, number: u16) -> Option<WayId> {
        if !self.shares_of(way).contains(&number) {
            return Some(way).filter(|&way| !self.shares_of(way).is_empty());
        }
        let left: Vec<u16> = self.shares_of(way).iter().copied().filter(|&share| share != number).collect();
        if left.is_empty() { None } else { self.way_through(left) }
    }

    /// Shares of a way.
    pub fn shares_of(&self, way: WayId) -> &[u16] {
        self.ways.get(usize::from(way)).and_then(Option::as_ref).map_or(&[], |way| &way.shares)
    }

    /// What holds for objects of a way.
    pub fn rules(&self, way: WayId) -> &Rules {
        static NOTHING: Rules = Rules::NOTHING;
        self.ways.get(usize::from(way)).and_then(Option::as_ref).map_or(&NOTHING, |way| &way.rules)
    }

    /// Number of positions for [`Shares::name_at`].
    pub fn positions(&self) -> usize {
        self.roots.len() + self.directories.len()
    }

    /// Names in the device's root directory or in a directory of shares, by position: `None` where there is none now.
    pub fn name_at(&self, directory: u64, at: usize) -> Option<&str> {
        let Some(at) = at.checked_sub(self.roots.len()) else {
            let root = self.roots.get(at)?.as_ref().filter(|root| nodeid(root.directory) == directory);
            return root.map(|root| root.name.as_str());
        };
        let below = self.directories.get(at)?.as_ref().filter(|_| directory == ROOT_ID);
        below.map(|(name, _)| name.as_str())
    }

    /// The share of a name in such a directory.
    pub fn find(&self, directory: u64, name: &[u8]) -> Option<&Root> {
        let here = |(_, root): &(u16, &Root)| nodeid(root.directory) == directory && root.name.as_bytes() == name;
        self.all().find(here).map(|(_, root)| root)
    }

    /// Nodeid of the directory of shares of a name.
    pub fn find_directory(&self, name: &[u8]) -> Option<u64> {
        let same = |known: &Option<(String, usize)>| known.as_ref().is_some_and(|(known, _)| known.as_bytes() == name);
        self.directories.iter().position(same).map(|at| nodeid(Some(at as u16)))
    }

    /// Shares in a directory of shares, or all for the device's root directory.
    pub fn below(&self, directory: u64) -> impl Iterator<Item = &Root> {
        self.all().map(|(_, root)| root).filter(move |root| directory == ROOT_ID || nodeid(root.directory) == directory)
    }
}

/// Nodeid of a directory of shares, or of the device's root directory.
fn nodeid(directory: Option<u16>) -> u64 {
    directory.map_or(ROOT_ID, |number| FIRST_DIRECTORY + u64::from(number))
}

/// Whether a nodeid is one of the device's own directories: its root directory, or one of shares in it.
pub fn is_own(nodeid: u64) -> bool {
    nodeid == ROOT_ID || (FIRST_DIRECTORY..FIRST_DIRECTORY + MOST as u64).contains(&nodeid)
}
