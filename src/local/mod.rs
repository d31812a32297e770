//! The local level: a bounded map in the process, and nothing more.
//!
//! What may be served, inserted or evicted is decided by those who keep entries here (entities, by the
//! coherence rules, and memos); this room only keeps slots and chooses, when it is full, which to let
//! go. Two engines stand behind one private port
//! and pass one suite; `docs/decisions/local-engine.md` says why [`LocalEngine::Quick`] is the
//! default.
//!
//! An entity's key is found by a 64-bit hash that the caller computed, then compared in full. The map
//! holds one entry per hash: see [`StoredKey`]. A memo's key is an ordinary one, hashed by the map.

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
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use quick_cache::Equivalent;

use self::key::{ByHash, Prehashed, Query, StoredKey};
pub(crate) use self::life::{Life, Phase};
#[cfg(feature = "moka")]
use self::moka::Moka;
use self::quick::Quick;
use crate::coherence::Rank;
use crate::tags::Dependency;
use crate::time::Millis;

/// Which map keeps the local entries of an entity or a memo.
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

/// An entity's local entry: the value with what the coherence rules ask about it.
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
    /// The tags that the value is invalidated with beside its key, if it has any.
    pub(crate) tied: Option<Arc<Dependency>>,
}

/// An entry's key as a map holds it. Maps compare and hash it under their locks.
pub(crate) trait Stored<S>: Eq + Hash + Send + Sync + 'static {
    /// What the entry weighs: at least one, for what weighs nothing could never be evicted, and always
    /// the same, or a policy's sums would go wrong.
    fn weight(&self, slot: &S) -> u32;
}

/// The port: what the local level asks of a map. Entries are found by what hashes as their key does and
/// is equivalent to it.
///
/// Each call takes effect at once for every thread, but the policy may let an entry go at any time,
/// at once after its insert too.
///
/// Reads need no order, but the caller lets **inserts and removals of one key take turns**, as entities
/// and memos do anyway. moka 0.12.16 would lose capacity for good:
///
/// 1. Thread A inserts a new entry into the table, and is about to queue "+1" for the policy.
/// 2. Thread B replaces the entry and queues "-1 +1".
/// 3. A queues its "+1".
/// 4. The policy admits the entry at B's message, counting 1, and adds A's 1 as an update of it.
/// 5. The removal of the entry takes off 1. The other 1 belongs to no entry and stays.
pub(crate) trait Engine<P, S> {
    /// A clone of the slot of this key; counts as a use.
    fn get<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S>;
    /// As [`get`](Self::get), but not a use, where the engine can tell the two apart.
    fn peek<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S>;
    /// Adds the entry, or replaces that of an equal key.
    fn insert(&self, key: P, slot: S) -> Displaced<P, S>;
    /// Removes the entry of this key, and gives its slot.
    fn take<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S>;
    /// Whether an insert tells all that it displaced.
    fn tells_displaced(&self) -> bool;
    /// The number of entries. For reports: its cost grows with the number of shards, or with the
    /// work that the engine had put off.
    fn len(&self) -> u64;
    /// The sum of the weights; the number of entries if that is what bounds the map.
    fn weight(&self) -> u64;
    /// Removes all that was there when the call began.
    fn clear(&self);
}

/// What an insert removed from the map, as far as the engine tells: what it replaced, what was evicted
/// for its sake, itself if it is too heavy. For the caller to drop once its locks are free.
#[derive(Debug)]
pub(crate) struct Displaced<P, S> {
    /// One as a rule, which allocates nothing.
    first: Option<(P, S)>,
    rest: Vec<(P, S)>,
}

impl<P, S> Displaced<P, S> {
    fn push(&mut self, key: P, slot: S) {
        match &mut self.first {
            first @ None => *first = Some((key, slot)),
            Some(_) => self.rest.push((key, slot)),
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &P> {
        self.first.iter().chain(&self.rest).map(|(key, _)| key)
    }
}

impl<P, S> Default for Displaced<P, S> {
    fn default() -> Self {
        Self {
            first: None,
            rest: Vec::new(),
        }
    }
}

/// A bounded map on the engine that was chosen.
pub(crate) enum Map<P, S, B> {
    Quick(Quick<P, S, B>),
    #[cfg(feature = "moka")]
    Moka(Moka<P, S, B>),
}

/// Calls the chosen engine. A branch that is always taken the same way, not a virtual call, so that
/// the hit is inlined.
macro_rules! on_engine {
    ($map:expr, $engine:ident => $call:expr) => {
        match $map {
            Map::Quick($engine) => $call,
            #[cfg(feature = "moka")]
            Map::Moka($engine) => $call,
        }
    };
}

impl<P, S, B> Map<P, S, B>
where
    P: Stored<S>,
    S: Clone + Send + Sync + 'static,
    B: BuildHasher + Clone + Send + Sync + 'static,
{
    /// An empty map that hashes keys by `hasher`.
    pub(crate) fn new(engine: LocalEngine, capacity: Capacity, hasher: B) -> Self {
        match engine {
            LocalEngine::Quick => Self::Quick(Quick::new(capacity, hasher)),
            #[cfg(feature = "moka")]
            LocalEngine::Moka => Self::Moka(Moka::new(capacity, hasher)),
        }
    }
}

impl<P, S, B> Engine<P, S> for Map<P, S, B>
where
    P: Stored<S>,
    S: Clone + Send + Sync + 'static,
    B: BuildHasher + Clone + Send + Sync + 'static,
{
    #[inline]
    fn get<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        on_engine!(self, engine => engine.get(key))
    }

    fn peek<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        on_engine!(self, engine => engine.peek(key))
    }

    fn insert(&self, key: P, slot: S) -> Displaced<P, S> {
        on_engine!(self, engine => engine.insert(key, slot))
    }

    fn take<Q: Hash + Equivalent<P>>(&self, key: &Q) -> Option<S> {
        on_engine!(self, engine => engine.take(key))
    }

    fn tells_displaced(&self) -> bool {
        on_engine!(self, engine => engine.tells_displaced())
    }

    fn len(&self) -> u64 {
        on_engine!(self, engine => engine.len())
    }

    fn weight(&self) -> u64 {
        on_engine!(self, engine => engine.weight())
    }

    fn clear(&self) {
        on_engine!(self, engine => engine.clear());
    }
}

/// The map of one entity's local level, whose keys are found by a hash that the caller computed.
pub(crate) struct Local<K, S> {
    map: Map<StoredKey<K>, S, Prehashed>,
    /// None if entries are counted, each as one.
    weigher: Option<Weigher<K, S>>,
    /// What weighs more is not kept.
    max_weight: u32,
}

impl<K, S> Local<K, S>
where
    K: Eq + Send + Sync + 'static,
    S: Clone + Send + Sync + 'static,
{
    /// An empty map. The weigher is asked only if the capacity counts bytes; an entry weighs at
    /// least one.
    pub(crate) fn new(engine: LocalEngine, capacity: Capacity, weigher: Weigher<K, S>) -> Self {
        let weigher = match capacity {
            Capacity::Entries(_) => None,
            Capacity::Weight(_) => Some(weigher),
        };
        Self {
            map: Map::new(engine, capacity, Prehashed),
            weigher,
            max_weight: u32::MAX,
        }
    }

    /// Keeps no entry that weighs more than this.
    pub(crate) fn up_to(self, max_weight: u32) -> Self {
        Self { max_weight, ..self }
    }

    /// See [`Engine::get`].
    #[inline]
    pub(crate) fn get(&self, hash: u64, key: &K) -> Option<S> {
        self.map.get(&Query { hash, key })
    }

    /// See [`Engine::peek`].
    pub(crate) fn peek(&self, hash: u64, key: &K) -> Option<S> {
        self.map.peek(&Query { hash, key })
    }

    /// As [`peek`](Self::peek), of whichever key has this hash: no more than one does.
    pub(crate) fn peek_hash(&self, hash: u64) -> Option<S> {
        self.map.peek(&ByHash(hash))
    }

    /// Adds the entry, or replaces that of the same hash, with nothing if it is too heavy. Gives how many
    /// others had to go.
    pub(crate) fn insert(&self, hash: u64, key: K, slot: S) -> usize {
        let weight = match &self.weigher {
            Some(weigh) => weigh(&key, &slot).max(1),
            None => 1,
        };
        if weight > self.max_weight {
            self.remove(hash);
            return 0;
        }
        let key = StoredKey { hash, weight, key };
        let displaced = self.map.insert(key, slot);
        displaced.keys().filter(|key| key.hash != hash).count()
    }

    /// Removes the entry with this hash, and tells whether there was one.
    pub(crate) fn remove(&self, hash: u64) -> bool {
        self.map.take(&ByHash(hash)).is_some()
    }

    /// See [`Engine::tells_displaced`].
    pub(crate) fn tells_displaced(&self) -> bool {
        self.map.tells_displaced()
    }

    /// See [`Engine::len`].
    pub(crate) fn len(&self) -> u64 {
        self.map.len()
    }

    /// See [`Engine::weight`].
    pub(crate) fn weight(&self) -> u64 {
        self.map.weight()
    }

    /// See [`Engine::clear`].
    pub(crate) fn clear(&self) {
        self.map.clear();
    }
}

impl<K, S> fmt::Debug for Local<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_tuple("Local");
        on_engine!(&self.map, engine => out.field(engine)).finish()
    }
}
