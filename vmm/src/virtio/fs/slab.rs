//! A bounded table with stable keys that are never valid twice.

/// Entries in slots. A key is the slot's index in the low half and the slot's generation in the high
/// half, so that a key of a removed entry doesn't find the next one in its slot.
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

struct Slot<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Slab<T> {
    /// An empty table of at most `limit` entries (and less than 2³¹).
    pub fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit: limit.min(1 << 31) }
    }

    /// Entries in the table.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether [`Slab::insert`] would refuse.
    fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Most entries.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Adds an entry and returns its key, or gives the entry back when the table is full.
    pub fn insert(&mut self, entry: T) -> Result<u64, T> {
        if self.is_full() {
            return Err(entry);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, entry: None });
                (self.slots.len() - 1) as u32
            }
        };
        match self.slots.get_mut(index as usize) {
            Some(slot) => {
                slot.entry = Some(entry);
                Ok(u64::from(slot.generation) << 32 | u64::from(index))
            }
            None => Err(entry),
        }
    }

    /// The entry of a key.
    pub fn get(&self, key: u64) -> Option<&T> {
        let slot = self.slots.get(index(key)).filter(|slot| slot.generation == generation(key))?;
        slot.entry.as_ref()
    }

    /// The entry of a key, to change it.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(index(key)).filter(|slot| slot.generation == generation(key))?;
        slot.entry.as_mut()
    }

    /// Takes the entry of a key out.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let slot = self.slots.get_mut(index(key)).filter(|slot| slot.generation == generation(key))?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key as u32);
        Some(entry)
    }

    /// Slots, used or free.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry in a slot, to go through all of them in steps.
    pub fn at(&self, slot: usize) -> Option<&T> {
        self.slots.get(slot)?.entry.as_ref()
    }

    /// [`Slab::at`], to change it.
    pub fn at_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.slots.get_mut(slot)?.entry.as_mut()
    }

    /// All entries with their keys, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let key = u64::from(slot.generation) << 32 | index as u64;
            slot.entry.as_ref().map(|entry| (key, entry))
        })
    }
}

fn index(key: u64) -> usize {
    (key & u64::from(u32::MAX)) as usize
}

fn generation(key: u64) -> u32 {
    (key >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_never_valid_twice_and_the_limit_holds() {
        let mut slab = Slab::new(2);
        let first = slab.insert('a').unwrap();
        let second = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!(slab.remove(first), Some('a'));
        assert_eq!(slab.remove(first), None);
        let third = slab.insert('d').unwrap();
        assert_ne!(first, third);
        assert_eq!((slab.get(first), slab.get(second), slab.get(third)), (None, Some(&'b'), Some(&'d')));
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.iter().count(), 2);
        assert_eq!(slab.get(u64::MAX), None);
    }
}
