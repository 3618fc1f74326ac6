//! A bounded table with stable keys that are never valid twice.

/// Entries in slots. A key is the slot's index in the low half and the slot's generation in the high
/// half, so that a key of a removed entry doesn't find the next one in its slot.
pub struct Slab<T> {
    entries: Vec<Option<T>>,
    /// Generation of each slot. Apart from the entries, where padding would make eight bytes of four.
    generations: Vec<u32>,
    free: Vec<u32>,
    limit: usize,
}

/// The slots of a table that is about to be made, with their generations.
pub struct Slots<T> {
    /// Entries of the slots; `None` in free ones.
    pub entries: Vec<Option<T>>,
    generations: Vec<u32>,
}

impl<T> Slots<T> {
    /// No slots, with room for `count`.
    pub fn with_capacity(count: usize) -> Self {
        Self { entries: Vec::with_capacity(count), generations: Vec::with_capacity(count) }
    }

    /// Adds the next slot.
    pub fn push(&mut self, generation: u32, entry: Option<T>) {
        self.entries.push(entry);
        self.generations.push(generation);
    }

    /// Empties a slot; the slot's next entry will have another key.
    pub fn clear(&mut self, slot: usize) {
        if let (Some(entry), Some(generation)) = (self.entries.get_mut(slot), self.generations.get_mut(slot)) {
            (*entry, *generation) = (None, generation.wrapping_add(1));
        }
    }

    /// Slots of the same generations whose entries are what `change` makes of these, unless `change` fails.
    pub fn map<U, E>(self, mut change: impl FnMut(T) -> Result<U, E>) -> Result<Slots<U>, E> {
        let entries = self.entries.into_iter().map(|entry| entry.map(&mut change).transpose());
        Ok(Slots { entries: entries.collect::<Result<_, E>>()?, generations: self.generations })
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl<T> Slab<T> {
    /// An empty table of at most `limit` entries (and less than 2³¹).
    pub fn new(limit: usize) -> Self {
        Self { entries: Vec::new(), generations: Vec::new(), free: Vec::new(), limit: limit.min(1 << 31) }
    }

    /// A table of these slots, as [`Slab::all`] gave them: the keys are the same again. `None` when they
    /// are more than `limit`.
    pub fn of(limit: usize, slots: Slots<T>) -> Option<Self> {
        let mut slab = Self::new(limit);
        if slots.entries.len() > slab.limit {
            return None;
        }
        (slab.generations, slab.entries) = (slots.generations, slots.entries);
        let empty = slab.entries.iter().enumerate().rev().filter(|(_, entry)| entry.is_none());
        slab.free = empty.map(|(slot, _)| slot as u32).collect();
        Some(slab)
    }

    /// All slots in order, free ones too, with their generations.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (u32, Option<&T>)> {
        self.generations.iter().copied().zip(self.entries.iter().map(Option::as_ref))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether [`Slab::insert`] would refuse.
    fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// Most entries that the table takes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Adds an entry and returns its key, or gives the entry back when the table is full.
    pub fn insert(&mut self, entry: T) -> Result<u64, T> {
        if self.is_full() {
            return Err(entry);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None => {
                self.entries.push(None);
                self.generations.push(0);
                self.entries.len() - 1
            }
        };
        match (self.entries.get_mut(slot), self.generations.get(slot)) {
            (Some(place), Some(&generation)) => {
                *place = Some(entry);
                Ok(key(slot, generation))
            }
            _ => Err(entry),
        }
    }

    /// Whether a key is of its slot's generation.
    fn is_current(&self, key: u64) -> bool {
        self.generations.get(slot(key)) == Some(&generation(key))
    }

    /// The entry of a key.
    pub fn get(&self, key: u64) -> Option<&T> {
        if self.is_current(key) { self.at(slot(key)) } else { None }
    }

    /// The entry of a key, to change it.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        if self.is_current(key) { self.at_mut(slot(key)) } else { None }
    }

    /// Takes the entry of a key out.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        if !self.is_current(key) {
            return None;
        }
        let entry = self.entries.get_mut(slot(key))?.take()?;
        let generation = self.generations.get_mut(slot(key))?;
        *generation = generation.wrapping_add(1);
        self.free.push(key as u32);
        Some(entry)
    }

    /// Number of slots, used or free.
    pub fn slots(&self) -> usize {
        self.entries.len()
    }

    /// The entry in a slot, to go through all of them in steps.
    pub fn at(&self, slot: usize) -> Option<&T> {
        self.entries.get(slot)?.as_ref()
    }

    /// [`Slab::at`], to change it.
    pub fn at_mut(&mut self, slot: usize) -> Option<&mut T> {
        self.entries.get_mut(slot)?.as_mut()
    }

    /// The key of the entry in a slot.
    pub fn key_at(&self, slot: usize) -> Option<u64> {
        self.at(slot)?;
        self.generations.get(slot).map(|&generation| key(slot, generation))
    }

    /// All entries with their keys, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let slots = self.all().enumerate();
        slots.filter_map(|(slot, (generation, entry))| entry.map(|entry| (key(slot, generation), entry)))
    }
}

fn key(slot: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | slot as u64
}

/// The slot of a key.
pub fn slot(key: u64) -> usize {
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

    #[test]
    fn a_table_made_of_the_slots_of_another_has_its_keys() {
        let mut slab = Slab::new(5);
        let keys: Vec<u64> = "abcde".chars().map(|entry| slab.insert(entry).unwrap()).collect();
        slab.remove(keys[1]);
        slab.remove(keys[3]);
        let late = slab.insert('f').unwrap();
        let slots = || {
            let mut slots = Slots::with_capacity(5);
            slab.all().for_each(|(generation, entry)| slots.push(generation, entry.copied()));
            slots
        };
        let mut same = Slab::of(5, slots()).unwrap();
        assert_eq!((same.get(keys[0]), same.get(late), same.len()), (Some(&'a'), Some(&'f'), 4));
        assert!(slab.iter().eq(same.iter()));
        let next = same.insert('g').unwrap();
        assert!(!keys.contains(&next) && same.get(keys[1]).is_none() && same.get(keys[3]).is_none());
        assert_eq!(same.insert('h'), Err('h'));
        assert!(Slab::of(4, slots()).is_none());
    }
}
