//! The local level as the benchmark sees it.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::{Capacity, Life, Local, LocalEngine, Slot};
use crate::coherence::Rank;
use crate::time::Millis;

/// The local level of an entity with string keys, hashed as the real one is. For measurements only.
#[derive(Debug)]
pub struct LocalProbe(Local<String, Slot<Arc<[u8]>>>);

impl LocalProbe {
    /// An empty map for so many entries.
    #[must_use]
    pub fn new(engine: LocalEngine, entries: u64) -> Self {
        let capacity = Capacity::Entries(entries);
        Self(Local::new(engine, capacity, Arc::new(|_, _| 1)))
    }

    /// The value of `key`.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &String) -> Option<Arc<[u8]>> {
        let slot = self.0.get(xxh3_64(key.as_bytes()), key)?;
        Some(slot.value)
    }

    /// Adds an entry.
    pub fn insert(&self, key: String, value: Arc<[u8]>) {
        let slot = Slot {
            value,
            rank: Rank::default(),
            generation: 0,
            load_start: Millis(0),
            loaded: Millis(0),
            load_ms: 0,
            tied: None,
            life: Life::until(Millis::NEVER),
        };
        self.0.insert(xxh3_64(key.as_bytes()), key, slot);
    }

    /// Removes the entry of `key`.
    pub fn remove(&self, key: &str) {
        self.0.remove(xxh3_64(key.as_bytes()));
    }

    /// The number of entries.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nothing measures emptiness")]
    pub fn len(&self) -> u64 {
        self.0.len()
    }
}
