//! LRU cache of values that are expensive to create.

/// LRU cache by key. With [`CAPACITY`](Self::CAPACITY) values, a new one replaces the least recently used one.
#[derive(Debug)]
pub(super) struct LruCache<K, V> {
    /// In order of last use, the most recent at the end.
    entries: Vec<(K, V)>,
}

impl<K, V> LruCache<K, V> {
    /// Maximum number of values. Training, evaluation and generation alternate between two or three shapes each;
    /// many different shapes must not fill the memory with plans.
    pub(super) const CAPACITY: usize = 8;

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<K: PartialEq, V> LruCache<K, V> {
    /// Returns the value of a key, created by `make` if absent.
    pub(super) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &V {
        match self.entries.iter().position(|(held, _)| *held == key) {
            Some(index) => self.entries[index..].rotate_left(1),
            None => {
                if self.entries.len() == Self::CAPACITY {
                    self.entries.remove(0);
                }
                self.entries.push((key, make()));
            }
        }
        let (_, value) = self.entries.last().expect("the entry in use");
        value
    }
}

impl<K, V> Default for LruCache<K, V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_value_is_evicted() {
        const CAPACITY: usize = LruCache::<usize, usize>::CAPACITY;
        let mut cache = LruCache::default();
        for key in 0..CAPACITY {
            assert_eq!(*cache.get_or_insert_with(key, || 10 * key), 10 * key);
        }
        // A hit creates nothing and renews the entry, so that the next insertion evicts key 1.
        assert_eq!(*cache.get_or_insert_with(0, || unreachable!()), 0);
        assert_eq!(*cache.get_or_insert_with(CAPACITY, || 7), 7);
        for key in [0].into_iter().chain(2..CAPACITY) {
            assert_eq!(*cache.get_or_insert_with(key, || unreachable!()), 10 * key);
        }
        assert_eq!(*cache.get_or_insert_with(CAPACITY, || unreachable!()), 7);
        assert_eq!(*cache.get_or_insert_with(1, || 8), 8);
        assert_eq!(cache.len(), CAPACITY);
    }
}
