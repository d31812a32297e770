//! The engine on `quick_cache`: a sharded map with a Clock-PRO policy much like S3-FIFO [1].
//!
//! A hit takes the shard's lock for reading and sets a counter; nothing is queued, so no later call
//! pays for it. No code of the caller's runs under a write lock: keys compare by hash on insert,
//! weights are carried, and what a call displaces is dropped after the lock.
//!
//! [1]: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZero;
use std::thread;

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::key::{ByHash, Prehashed, Query, StoredKey};
use super::{Capacity, Engine};

/// Shards per core: enough that two cores seldom want the same one.
const SHARDS_PER_CORE: u64 = 4;
/// A shard is not worth having below this many entries: its share of the capacity is its own, and
/// the policy of a small share is a poor one.
const MIN_SHARD_ENTRIES: u64 = 32;
/// A shard of a weighed map holds at least this many bytes, because an entry heavier than its
/// shard cannot be kept.
const MIN_SHARD_BYTES: u64 = 1 << 20;
/// What an entry of a weighed map is taken to weigh when the history of evicted keys is sized;
/// being wrong by ten times either way hardly matters.
const ASSUMED_ENTRY_BYTES: u64 = 1 << 10;

/// The local level on `quick_cache`.
pub(crate) struct Quick<K, S>(
    Cache<StoredKey<K>, S, CarriedWeight, Prehashed, DropAfterUnlock<K, S>>,
);

impl<K: Eq, S: Clone> Quick<K, S> {
    pub(crate) fn new(capacity: Capacity) -> Self {
        let (limit, min_per_shard, assumed_weight) = match capacity {
            Capacity::Entries(entries) => (entries, MIN_SHARD_ENTRIES, 1),
            Capacity::Weight(bytes) => (bytes, MIN_SHARD_BYTES, ASSUMED_ENTRY_BYTES),
        };
        let shards = shards(limit / min_per_shard);
        let entries = (limit / assumed_weight).max(shards * MIN_SHARD_ENTRIES);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(usize::MAX))
            // Each shard gets an equal share, rounded up: rounding down first keeps the sum within.
            .weight_capacity(limit - limit % shards)
            .estimated_items_capacity(usize::try_from(entries).unwrap_or(usize::MAX))
            .build()
            .expect("both required options were just set");
        Self(Cache::with_options(
            options,
            CarriedWeight,
            Prehashed,
            DropAfterUnlock(PhantomData),
        ))
    }
}

/// A power of two up to what the cores ask for, and to `at_most` so that shards stay large enough.
fn shards(at_most: u64) -> u64 {
    let cores = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let wanted = (cores * SHARDS_PER_CORE).next_power_of_two();
    let largest = 1 << at_most.max(1).ilog2();
    wanted.min(largest)
}

impl<K, S> Engine<K, S> for Quick<K, S>
where
    K: Eq + Send + Sync + 'static,
    S: Clone + Send + Sync + 'static,
{
    #[inline]
    fn get(&self, hash: u64, key: &K) -> Option<S> {
        self.0.get(&Query { hash, key })
    }

    fn peek(&self, hash: u64, key: &K) -> Option<S> {
        self.0.peek(&Query { hash, key })
    }

    fn peek_hash(&self, hash: u64) -> Option<S> {
        self.0.peek(&ByHash(hash))
    }

    fn insert(&self, key: StoredKey<K>, slot: S) {
        self.0.insert(key, slot);
    }

    fn remove(&self, hash: u64) -> bool {
        self.0.remove(&ByHash(hash)).is_some()
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn weight(&self) -> u64 {
        self.0.weight()
    }

    fn clear(&self) {
        // Not `Cache::clear`, which drops every entry under its shard's lock.
        self.0.drain().for_each(drop);
    }
}

impl<K, S> fmt::Debug for Quick<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quick").finish_non_exhaustive()
    }
}

/// Reads the weight that the key carries.
#[derive(Clone)]
struct CarriedWeight;

impl<K, S> Weighter<StoredKey<K>, S> for CarriedWeight {
    #[inline]
    fn weight(&self, key: &StoredKey<K>, _slot: &S) -> u64 {
        u64::from(key.weight)
    }
}

/// Keeps what a call displaces until its lock is free.
///
/// The library's own lifecycle keeps two and drops the rest under the lock, where a value whose
/// `Drop` calls this cache would wait for itself.
struct DropAfterUnlock<K, S>(PhantomData<fn() -> (K, S)>);

impl<K, S> Clone for DropAfterUnlock<K, S> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<K, S> Lifecycle<StoredKey<K>, S> for DropAfterUnlock<K, S> {
    type RequestState = Displaced<K, S>;

    #[inline]
    fn on_evict(&self, displaced: &mut Displaced<K, S>, key: StoredKey<K>, slot: S) {
        match &mut displaced.first {
            first @ None => *first = Some((key, slot)),
            Some(_) => displaced.rest.push((key, slot)),
        }
    }
}

/// Entries waiting to be dropped: one as a rule, which allocates nothing.
struct Displaced<K, S> {
    first: Option<(StoredKey<K>, S)>,
    rest: Vec<(StoredKey<K>, S)>,
}

impl<K, S> Default for Displaced<K, S> {
    fn default() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
        }
    }
}
