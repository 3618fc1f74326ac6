//! Finds the slot of an object by the object's key.
//!
//! The index is a table of slot numbers only: the keys are in the slots. So it takes five bytes for each place where a
//! map from keys to nodeids takes 33.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::inode::{Inode, Key};
use super::slab::{self, Slab};

/// Finds entries of a slab by their keys. The hash is a secret of this process, since guests have some
/// say in which inode numbers there are.
#[derive(Default)]
pub struct Index {
    slots: HashTable<u32>,
    secret: RandomState,
}

impl Index {
    /// The slab's key of the object with this key.
    pub fn get(&self, key: &Key, slab: &Slab<Inode>) -> Option<u64> {
        let slot = self.slots.find(self.secret.hash_one(key), |&slot| has_key(slab, slot, key))?;
        slab.key_at(*slot as usize)
    }

    /// Makes an entry, named by the slab's key, the one that is found by its object's key.
    pub fn set(&mut self, entry: u64, slab: &Slab<Inode>) {
        let slot = slab::slot(entry) as u32;
        let Some(inode) = slab.at(slot as usize) else { return };
        let Self { slots, secret } = self;
        let hash = secret.hash_one(inode.key);
        if let Some(known) = slots.find_mut(hash, |&known| has_key(slab, known, &inode.key)) {
            *known = slot;
            return;
        }
        let rehash = |&slot: &u32| slab.at(slot as usize).map_or(0, |inode| secret.hash_one(inode.key));
        slots.insert_unique(hash, slot, rehash);
    }

    /// Forgets an entry that is still in the slab, if it is the one of its key.
    pub fn remove(&mut self, entry: u64, slab: &Slab<Inode>) {
        let slot = slab::slot(entry) as u32;
        let Some(inode) = slab.at(slot as usize) else { return };
        if let Ok(found) = self.slots.find_entry(self.secret.hash_one(inode.key), |&known| known == slot) {
            found.remove();
        }
    }
}

fn has_key(slab: &Slab<Inode>, slot: u32, key: &Key) -> bool {
    slab.at(slot as usize).is_some_and(|inode| inode.key == *key)
}
