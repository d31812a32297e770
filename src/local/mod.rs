//! The local level: a bounded map in the process, and nothing more.
//!
//! What may be served, inserted or evicted is decided by the coherence rules; this room only keeps
//! slots and chooses, when it is full, which to let go. Two engines stand behind one private port
//! and pass one suite; `docs/decisions/local-engine.md` says why [`LocalEngine::Quick`] is the
//! default.
//!
//! A key is found by a 64-bit hash that the caller computed, then compared in full. The map holds
//! one entry per hash: see [`StoredKey`].

mod key;
mod life;
#[cfg(feature = "moka")]
mod moka;
#[cfg(feature = "testing")]
pub mod probe;
mod quick;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use self::key::StoredKey;
pub(crate) use self::life::{Life, Phase};
#[cfg(feature = "moka")]
use self::moka::Moka;
use self::quick::Quick;
use crate::coherence::Rank;
use crate::time::Millis;

/// Which map keeps the local entries of an entity.
///
/// Both obey the same rules and differ only in cost: coherence, expiry and single flight do not
/// depend on the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LocalEngine {
    /// `quick_cache`: a hit takes a shard's read lock and touches a counter. The cheaper on every
    /// count that was measured, hence the default.
    ///
    /// The capacity is divided between shards, of at least 1 MiB each if it counts bytes; an entry
    /// heavier than its shard is not kept locally.
    #[default]
    Quick,
    /// `moka`: W-TinyLFU over the whole map, so that one entry may take up all of the capacity.
    /// A hit costs several times as much, and the bound may be passed by some hundred entries for
    /// a moment.
    #[cfg(feature = "moka")]
    #[cfg_attr(docsrs, doc(cfg(feature = "moka")))]
    Moka,
}

/// What the map is bounded by. Zero of either keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// At most this many entries.
    Entries(u64),
    /// At most this many bytes, as the weigher counts them.
    Weight(u64),
}

/// Tells how many bytes an entry takes up. Called once per insert, under no lock.
pub(crate) type Weigher<K, S> = Arc<dyn Fn(&K, &S) -> u32 + Send + Sync>;

/// A local entry: the value with what the coherence rules ask about it.
#[derive(Clone, Debug)]
pub(crate) struct Slot<T> {
    /// The value; cheap to clone, for each hit does.
    pub(crate) value: T,
    /// Every invalidation up to here is contained in the value.
    pub(crate) rank: Rank,
    /// The lane's generation at the insert; another one means that the lane was flushed since.
    pub(crate) generation: u32,
    /// When the read that brought the value began.
    pub(crate) load_start: Millis,
    /// When the value was loaded from its source, for reporting its age.
    pub(crate) loaded: Millis,
    /// How long the load took, in milliseconds, saturating.
    pub(crate) load_ms: u32,
    /// When the value's time to live ends, and what comes before and after.
    pub(crate) life: Life,
}

/// The port: what the local level asks of a map.
///
/// Each call takes effect at once for every thread, but the policy may let an entry go at any time,
/// at once after its insert too.
///
/// Reads need no order, but the caller lets **inserts and removals of one hash take turns**, as the
/// stripe locks of the coherence rules do anyway. moka 0.12.16 would lose capacity for good:
///
/// 1. Thread A inserts a new entry into the table, and is about to queue "+1" for the policy.
/// 2. Thread B replaces the entry and queues "-1 +1".
/// 3. A queues its "+1".
/// 4. The policy admits the entry at B's message, counting 1, and adds A's 1 as an update of it.
/// 5. The removal of the entry takes off 1. The other 1 belongs to no entry and stays.
pub(crate) trait Engine<K, S> {
    /// A clone of the slot of `key`; counts as a use.
    fn get(&self, hash: u64, key: &K) -> Option<S>;
    /// As [`get`](Self::get), but not a use, where the engine can tell the two apart.
    fn peek(&self, hash: u64, key: &K) -> Option<S>;
    /// As [`peek`](Self::peek), of whichever key has this hash: no more than one does.
    fn peek_hash(&self, hash: u64) -> Option<S>;
    /// Adds the entry, or replaces that of the same hash.
    fn insert(&self, key: StoredKey<K>, slot: S);
    /// Removes the entry with this hash, and tells whether there was one.
    fn remove(&self, hash: u64) -> bool;
    /// The number of entries. For reports: its cost grows with the number of shards, or with the
    /// work that the engine had put off.
    fn len(&self) -> u64;
    /// The sum of the weights; the number of entries if that is what bounds the map.
    fn weight(&self) -> u64;
    /// Removes all that was there when the call began.
    fn clear(&self);
}

/// The map of one entity's local level, on the engine that was chosen.
pub(crate) struct Local<K, S> {
    map: Map<K, S>,
    /// None if entries are counted, each as one.
    weigher: Option<Weigher<K, S>>,
}

enum Map<K, S> {
    Quick(Quick<K, S>),
    #[cfg(feature = "moka")]
    Moka(Moka<K, S>),
}

/// Calls the chosen engine. A branch that is always taken the same way, not a virtual call, so that
/// the hit is inlined.
macro_rules! on_engine {
    ($local:expr, $engine:ident => $call:expr) => {
        match &$local.map {
            Map::Quick($engine) => $call,
            #[cfg(feature = "moka")]
            Map::Moka($engine) => $call,
        }
    };
}

impl<K, S> Local<K, S>
where
    K: Eq + Send + Sync + 'static,
    S: Clone + Send + Sync + 'static,
{
    /// An empty map. The weigher is asked only if the capacity counts bytes; an entry weighs at
    /// least one, since one without weight could never be evicted.
    pub(crate) fn new(engine: LocalEngine, capacity: Capacity, weigher: Weigher<K, S>) -> Self {
        let map = match engine {
            LocalEngine::Quick => Map::Quick(Quick::new(capacity)),
            #[cfg(feature = "moka")]
            LocalEngine::Moka => Map::Moka(Moka::new(capacity)),
        };
        let weigher = match capacity {
            Capacity::Entries(_) => None,
            Capacity::Weight(_) => Some(weigher),
        };
        Self { map, weigher }
    }

    /// See [`Engine::get`].
    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<S> {
        on_engine!(self, engine => engine.get(hash, key))
    }

    /// See [`Engine::peek`].
    pub(crate) fn peek(&self, hash: u64, key: &K) -> Option<S> {
        on_engine!(self, engine => engine.peek(hash, key))
    }

    /// See [`Engine::peek_hash`].
    pub(crate) fn peek_hash(&self, hash: u64) -> Option<S> {
        on_engine!(self, engine => engine.peek_hash(hash))
    }

    /// See [`Engine::insert`].
    pub(crate) fn insert(&self, hash: u64, key: K, slot: S) {
        let weight = match &self.weigher {
            Some(weigh) => weigh(&key, &slot).max(1),
            None => 1,
        };
        let key = StoredKey { hash, weight, key };
        on_engine!(self, engine => engine.insert(key, slot));
    }

    /// See [`Engine::remove`].
    pub(crate) fn remove(&self, hash: u64) -> bool {
        on_engine!(self, engine => engine.remove(hash))
    }

    /// See [`Engine::len`].
    pub(crate) fn len(&self) -> u64 {
        on_engine!(self, engine => engine.len())
    }

    /// See [`Engine::weight`].
    pub(crate) fn weight(&self) -> u64 {
        on_engine!(self, engine => engine.weight())
    }

    /// See [`Engine::clear`].
    pub(crate) fn clear(&self) {
        on_engine!(self, engine => engine.clear());
    }
}

impl<K, S> fmt::Debug for Local<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_tuple("Local");
        on_engine!(self, engine => out.field(engine)).finish()
    }
}
