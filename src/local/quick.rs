//! The engine on `quick_cache`: a sharded map with a Clock-PRO policy much like S3-FIFO [1].
//!
//! A hit takes the shard's lock for reading and sets a counter; nothing is queued, so no later call
//! pays for it. Under a write lock keys are compared and hashed, and nothing else of the caller's runs:
//! weights are carried, and what a call displaces is dropped after the lock. An entity's keys compare by
//! the hash they carry.
//!
//! [1]: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::num::NonZero;
use std::thread;

use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::{Capacity, Displaced, Engine, Stored};

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
pub(crate) struct Quick<P, S, B>(Cache<P, S, StoredWeight, B, DropAfterUnlock<P, S>>);

impl<P: Stored<S>, S: Clone, B: BuildHasher + Clone> Quick<P, S, B> {
    pub(crate) fn new(capacity: Capacity, hasher: B) -> Self {
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
            StoredWeight,
            hasher,
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

impl<P, S, B> Engine<P, S> for Quick<P, S, B>
where
    P: Stored<S>,
    S: Clone + Send + Sync + 'static,
    B: BuildHasher + Clone + Send + Sync + 'static,
{
    #[inline]
    fn get<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.get(key)
    }

    fn peek<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.peek(key)
    }

    fn insert(&self, key: P, slot: S) -> Displaced<P, S> {
        let mut displaced = Displaced::default();
        self.0.insert_with_lifecycle(key, slot, &mut displaced);
        displaced
    }

    fn take<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        self.0.remove(key).map(|(_, slot)| slot)
    }

    fn tells_displaced(&self) -> bool {
        true
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

impl<P, S, B> fmt::Debug for Quick<P, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quick").finish_non_exhaustive()
    }
}

/// Asks the key, which tells what was decided when the entry was inserted.
#[derive(Clone)]
struct StoredWeight;

impl<P: Stored<S>, S> Weighter<P, S> for StoredWeight {
    #[inline]
    fn weight(&self, key: &P, slot: &S) -> u64 {
        u64::from(key.weight(slot))
    }
}

/// Keeps what a call displaces until its lock is free.
///
/// The library's own lifecycle keeps two and drops the rest under the lock, where a value whose
/// `Drop` calls this cache would wait for itself.
struct DropAfterUnlock<P, S>(PhantomData<fn() -> (P, S)>);

impl<P, S> Clone for DropAfterUnlock<P, S> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<P, S> Lifecycle<P, S> for DropAfterUnlock<P, S> {
    type RequestState = Displaced<P, S>;

    #[inline]
    fn on_evict(&self, displaced: &mut Displaced<P, S>, key: P, slot: S) {
        displaced.push(key, slot);
    }
}
