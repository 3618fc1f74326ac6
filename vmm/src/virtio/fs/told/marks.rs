//! Which objects the guest watches.

use std::collections::BTreeMap;

use super::group::Object;

/// Most objects that a guest may watch: the host's kernel allows a user 8192 or, with much memory, more for all containers.
pub const MOST: usize = 8192;

/// Watched objects, by what the host calls them and by nodeid. The guest may know one object of the host by several nodeids.
#[derive(Default)]
pub struct Marks {
    objects: BTreeMap<Object, Vec<u64>>,
    nodes: BTreeMap<u64, (Object, u32)>,
}

impl Marks {
    /// Whether anything is watched.
    pub fn any(&self) -> bool {
        !self.nodes.is_empty()
    }

    /// Whether a nodeid is watched.
    pub fn has(&self, nodeid: u64) -> bool {
        self.nodes.contains_key(&nodeid)
    }

    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        self.nodes.len() < MOST
    }

    /// Notes that this nodeid is watched for these events; whether it was not before.
    pub fn set(&mut self, nodeid: u64, object: Object, mask: u32) -> bool {
        if let Some((_, known)) = self.nodes.get_mut(&nodeid) {
            *known = mask;
            return false;
        }
        self.objects.entry(object.clone()).or_default().push(nodeid);
        self.nodes.insert(nodeid, (object, mask));
        true
    }

    /// Takes a nodeid out; whether nothing of its object is watched any more. `None` when it was not watched.
    pub fn remove(&mut self, nodeid: u64) -> Option<bool> {
        let (object, _) = self.nodes.remove(&nodeid)?;
        let others = self.objects.get_mut(&object)?;
        others.retain(|&other| other != nodeid);
        let last = others.is_empty();
        if last {
            self.objects.remove(&object);
        }
        Some(last)
    }

    /// Takes all out.
    pub fn take_all(&mut self) -> Vec<u64> {
        self.objects.clear();
        std::mem::take(&mut self.nodes).into_keys().collect()
    }

    /// Nodeids by which an object is watched.
    pub fn of(&self, object: &Object) -> &[u64] {
        self.objects.get(object).map_or(&[], Vec::as_slice)
    }

    /// For which events a nodeid is watched.
    pub fn mask(&self, nodeid: u64) -> u32 {
        self.nodes.get(&nodeid).map_or(0, |&(_, mask)| mask)
    }

    /// All nodeids that are watched.
    pub fn all(&self) -> impl Iterator<Item = u64> {
        self.nodes.keys().copied()
    }
}
