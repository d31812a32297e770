//! The engine on `moka`: a concurrent hash table with a W-TinyLFU policy [1].
//!
//! Every read is queued for the policy and some later call works the queue off, so a hit costs
//! several times that of [`Quick`](super::quick::Quick). The bound is kept with a delay: until a
//! batch of writes is worked off, the map may hold some hundred entries too many.
//!
//! [1]: Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy", 2017.

use std::fmt;

use ::moka::sync::Cache;

use super::key::{ByHash, Prehashed, Query, StoredKey};
use super::{Capacity, Engine};

/// The local level on `moka`.
pub(crate) struct Moka<K, S>(Cache<StoredKey<K>, S, Prehashed>);

impl<K, S> Moka<K, S>
where
    K: Eq + Send + Sync + 'static,
    S: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(capacity: Capacity) -> Self {
        let (Capacity::Entries(limit) | Capacity::Weight(limit)) = capacity;
        let builder = Cache::builder().max_capacity(limit);
        let builder = match capacity {
            Capacity::Entries(_) => builder,
            Capacity::Weight(_) => builder.weigher(|key: &StoredKey<K>, _| key.weight),
        };
        Self(builder.build_with_hasher(Prehashed))
    }
}

impl<K, S> Engine<K, S> for Moka<K, S>
where
    K: Eq + Send + Sync + 'static,
    S: Clone + Send + Sync + 'static,
{
    #[inline]
    fn get(&self, hash: u64, key: &K) -> Option<S> {
        self.0.get(&Query { hash, key })
    }

    // moka has no read that its policy does not see.
    fn peek(&self, hash: u64, key: &K) -> Option<S> {
        self.get(hash, key)
    }

    fn peek_hash(&self, hash: u64) -> Option<S> {
        self.0.get(&ByHash(hash))
    }

    fn insert(&self, key: StoredKey<K>, slot: S) {
        self.0.insert(key, slot);
    }

    fn remove(&self, hash: u64) -> bool {
        self.0.remove(&ByHash(hash)).is_some()
    }

    fn len(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }

    fn weight(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }

    fn clear(&self) {
        self.0.invalidate_all();
        self.0.run_pending_tasks();
    }
}

impl<K, S> fmt::Debug for Moka<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moka").finish_non_exhaustive()
    }
}
