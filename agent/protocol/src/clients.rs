//! Clients of a published UDP port.

/// The clients that were heard of last, each by what tells it from others, with what is known of it. Host and guest have
/// heard of the same ones, and forget the same.
#[derive(Debug)]
pub struct Clients<K, V> {
    /// The latest last.
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Clients<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: PartialEq, V> Clients<K, V> {
    /// How many are known.
    pub const MOST: usize = 256;

    /// What is known of a client that is heard of again.
    pub fn hear(&mut self, key: &K) -> Option<&V> {
        let at = self.entries.iter().rposition(|(known, _)| known == key)?;
        let entry = self.entries.remove(at);
        self.entries.push(entry);
        self.entries.last().map(|(_, value)| value)
    }

    /// Enters one that is heard of for the first time. The one that was not heard of for longest may be forgotten.
    pub fn enter(&mut self, key: K, value: V) {
        if self.entries.len() >= Self::MOST {
            self.entries.remove(0);
        }
        self.entries.push((key, value));
    }

    /// Who has this; who was heard of last stays that.
    pub fn find(&self, is_it: impl Fn(&V) -> bool) -> Option<&K> {
        self.entries.iter().find(|(_, value)| is_it(value)).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_heard_of_for_longest_is_forgotten() {
        let mut clients = Clients::default();
        (0..Clients::<usize, usize>::MOST).for_each(|key| clients.enter(key, key * 2));
        assert_eq!(clients.hear(&0), Some(&0));
        clients.enter(1000, 2000);
        assert_eq!(clients.hear(&0), Some(&0));
        assert_eq!(clients.hear(&1), None);
        assert_eq!(clients.find(|value| *value == 2000), Some(&1000));
        assert_eq!(clients.find(|value| *value == 2), None);
    }
}
