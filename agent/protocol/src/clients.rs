//! Clients of a published UDP port.

/// Clients that sent a datagram last, by a key that tells them apart, with a value for each. Host and guest enter the same
/// clients in the same order, so they forget the same ones.
#[derive(Debug)]
pub struct Clients<K, V> {
    /// Keys and values, the client heard of last at the end.
    entries: Vec<(K, V)>,
}

impl<K, V> Default for Clients<K, V> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<K: PartialEq, V> Clients<K, V> {
    /// Number of clients that are remembered.
    pub const MOST: usize = 256;

    /// Value of a client that is heard of again; `None` for a new one.
    pub fn hear(&mut self, key: &K) -> Option<&V> {
        let at = self.entries.iter().rposition(|(known, _)| known == key)?;
        let entry = self.entries.remove(at);
        self.entries.push(entry);
        self.entries.last().map(|(_, value)| value)
    }

    /// Enters a client that is heard of for the first time, in place of the one not heard of for longest if there are
    /// [`Clients::MOST`].
    pub fn enter(&mut self, key: K, value: V) {
        if self.entries.len() >= Self::MOST {
            self.entries.remove(0);
        }
        self.entries.push((key, value));
    }

    /// Key of the first client whose value `is_it` accepts. The order stays.
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
