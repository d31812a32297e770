//! The engine on `moka`: a concurrent hash table with a W-TinyLFU policy [1].
//!
//! Every read is queued for the policy and some later call works the queue off, so a hit costs
//! several times that of [`Quick`](super::quick::Quick). The bound is kept with a delay: until a
//! batch of writes is worked off, the map may hold some hundred entries too many.
//!
//! [1]: Einziger, Friedman, Manes, "TinyLFU: a highly efficient cache admission policy", 2017.

use std::fmt;
use std::hash::{BuildHasher, Hash};

use ::moka::sync::Cache;
use quick_cache::Equivalent;

use super::{Capacity, Displaced, Engine, Stored};

/// The local level on `moka`.
pub(crate) struct Moka<P, S, B>(Cache<P, S, B>);

impl<P, S, B> Moka<P, S, B>
where
    P: Stored<S>,
    S: Clone + Send + Sync + 'static,
    B: BuildHasher + Clone + Send + Sync + 'static,
{
    pub(crate) fn new(capacity: Capacity, hasher: B) -> Self {
        let (Capacity::Entries(limit) | Capacity::Weight(limit)) = capacity;
        let builder = Cache::builder().max_capacity(limit);
        let builder = match capacity {
            Capacity::Entries(_) => builder,
            Capacity::Weight(_) => builder.weigher(|key: &P, slot| key.weight(slot)),
        };
        Self(builder.build_with_hasher(hasher))
    }
}

impl<P, S, B> Engine<P, S> for Moka<P, S, B>
where
    P: Stored<S>,
    S: Clone + Send + Sync + 'static,
    B: BuildHasher + Clone + Send + Sync + 'static,
{
    #[inline]
    fn get<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.get(key)
    }

    // moka has no read that its policy does not see.
    fn peek<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.get(key)
    }

    fn insert(&self, key: P, slot: S) -> Displaced<P, S> {
        self.0.insert(key, slot);
        Displaced::default()
    }

    fn take<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.remove(key)
    }

    // It tells a listener, later.
    fn tells_displaced(&self) -> bool {
        false
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

impl<P, S, B> fmt::Debug for Moka<P, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moka").finish_non_exhaustive()
    }
}
