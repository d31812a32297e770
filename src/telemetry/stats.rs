//! What was counted, as plain numbers.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

/// What a cache did in this process since it was built; see [`Cache::stats`](crate::Cache::stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// All entities together, those that are gone included.
    pub entities: EntityStats,
    /// All memos together, those that are gone included.
    pub memos: MemoStats,
    /// Invalidations.
    pub invalidations: InvalidationStats,
    /// Rooms, and this pod's members of them.
    pub presence: PresenceStats,
    /// Calls of the backing store, by operation.
    pub store: BTreeMap<&'static str, StoreCallStats>,
    /// Events that those who [follow](crate::Cache::events) them were too slow for, together.
    pub events_lost: u64,
}

/// What an entity did in this process since it was built, and what it holds; see
/// [`Entity::stats`](crate::Entity::stats).
///
/// Every read of a key is a hit or a miss of the local level. Of the misses some join a read that is
/// under way; each other one asks the store, where it is a hit or a miss again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntityStats {
    /// Reads that the local level answered.
    pub hits: u64,
    /// Reads that it did not.
    pub misses: u64,
    /// Those of them that shared another read's way.
    pub joins: u64,
    /// Those that the store answered.
    pub store_hits: u64,
    /// Those that it did not: they loaded, or waited for another pod's load, or failed.
    pub store_misses: u64,
    /// Loads from the source that ended, with a value or an error; refreshes are among them.
    pub loads: u64,
    /// Those of them that ended with an error.
    pub load_errors: u64,
    /// Loads that panicked.
    pub loads_aborted: u64,
    /// Loads that were given up because they took too long.
    pub loads_timed_out: u64,
    /// Loads that were made again, because the source was behind the version that it is
    /// [known](crate::Entity::invalidate_at) to have.
    pub loads_behind: u64,
    /// The time that the loads that ended took together.
    pub load_time: Duration,
    /// Outcomes that were stored.
    pub fills: u64,
    /// Outcomes that the store refused, because an invalidation or another load had overtaken them.
    pub fills_refused: u64,
    /// Outcomes that could not be brought to the store, or are [too long](crate::EntityBuilder::store_max_bytes)
    /// for it.
    pub fills_failed: u64,
    /// Stale values served while they were being refreshed.
    pub stale_while_refreshing: u64,
    /// Stale values served because their load had failed.
    pub stale_after_failure: u64,
    /// Stale values served because their load took too long.
    pub stale_after_timeout: u64,
    /// Stale values served at once because the call allowed them
    /// ([`ReadOptions::max_stale`](crate::ReadOptions::max_stale)).
    pub stale_as_allowed: u64,
    /// Stored values that could not be used and were taken for a miss.
    pub unusable: u64,
    /// Local entries that had to make room for others; `None` if the engine does not tell.
    pub evicted: Option<u64>,
    /// Local entries that an invalidation removed. What a clear or a flush voids is not counted: it
    /// stays until something takes its place.
    pub invalidated: u64,
    /// Local entries, those that may not be served any more included.
    pub entries: u64,
    /// What they weigh together; their number if the level is bounded by number.
    pub weight: u64,
}

impl AddAssign for EntityStats {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.joins += other.joins;
        self.store_hits += other.store_hits;
        self.store_misses += other.store_misses;
        self.loads += other.loads;
        self.load_errors += other.load_errors;
        self.loads_aborted += other.loads_aborted;
        self.loads_timed_out += other.loads_timed_out;
        self.loads_behind += other.loads_behind;
        self.load_time += other.load_time;
        self.fills += other.fills;
        self.fills_refused += other.fills_refused;
        self.fills_failed += other.fills_failed;
        self.stale_while_refreshing += other.stale_while_refreshing;
        self.stale_after_failure += other.stale_after_failure;
        self.stale_after_timeout += other.stale_after_timeout;
        self.stale_as_allowed += other.stale_as_allowed;
        self.unusable += other.unusable;
        self.evicted = both(self.evicted, other.evicted);
        self.invalidated += other.invalidated;
        self.entries += other.entries;
        self.weight += other.weight;
    }
}

impl AddAssign for MemoStats {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.joins += other.joins;
        self.loads += other.loads;
        self.load_errors += other.load_errors;
        self.load_time += other.load_time;
        self.evictions = both(self.evictions, other.evictions);
        self.entries += other.entries;
        self.weight += other.weight;
    }
}

/// The sum of what is known.
fn both(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().reduce(|a, b| a + b)
}

/// What a memo did since it was built, and what it holds; see [`Memo::stats`](crate::Memo::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoStats {
    /// Calls of `get` that were answered from memory.
    pub hits: u64,
    /// Calls of `get` that were not.
    pub misses: u64,
    /// Calls of `get` and `refresh` that joined a computation under way.
    pub joins: u64,
    /// Computations that ended, with a value or an error. Those that were dropped or panicked are not
    /// among them.
    pub loads: u64,
    /// Those of them that ended with an error.
    pub load_errors: u64,
    /// The time that they took together.
    pub load_time: Duration,
    /// Entries that had to make room for others; `None` if the engine does not tell.
    pub evictions: Option<u64>,
    /// Entries kept, the expired ones that nothing has replaced yet included.
    pub entries: u64,
    /// What the entries weigh together; their number if the memo is bounded by number.
    pub weight: u64,
}

/// Invalidations that this pod made and heard of. One of many keys is sent in pieces, by lane and 64
/// keys; pieces are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidationStats {
    /// Begun by this pod.
    pub sent: u64,
    /// Those of them that the store has acknowledged; the others are
    /// [pending](crate::Health::pending).
    pub acknowledged: u64,
    /// Of other pods, carried out here.
    pub received: u64,
    /// Times that an invalidation was found to be missing before those that had come.
    pub gaps: u64,
    /// How long ago the message that came last had been published, by the server's clock; its error is a
    /// round trip and a tick of the kernel.
    pub last_lag: Option<Duration>,
}

/// This pod's part in the [presence](crate::presence) of rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PresenceStats {
    /// Rooms that this pod has members in, or watches.
    pub rooms: u64,
    /// Members that it holds there, each room's its own.
    pub members: u64,
    /// Heartbeats, each for all rooms that were due.
    pub heartbeats: u64,
    /// Those of them that were not answered in time, or with an error; each is repeated.
    pub heartbeats_lost: u64,
    /// Rooms that a heartbeat had to come back to at once, because so many members had ended there.
    pub sweeps: u64,
    /// Rooms in which the store did not have this pod's members any more: they were brought again.
    pub losses: u64,
}

/// Calls of one operation of the backing store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCallStats {
    /// Calls that ended, failed or not. One call that carries many keys is one.
    pub calls: u64,
    /// Those that failed, or took too long.
    pub failed: u64,
    /// The time that they took together.
    pub time: Duration,
}
