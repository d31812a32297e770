//! What a memo remembers: its map and the computations under way.

use super::slot::Slot;
use crate::bus::lock;
use crate::error::CacheError;
use crate::flight::{self, Boarding, Flights};
use crate::local::{Capacity, Engine, LocalEngine, Map, Stored};
use crate::tags::Dependency;
use crate::time::{Clock, Millis};
use foldhash::fast::RandomState;
use quick_cache::Equivalent;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How many locks order inserts against removals; a power of two.
const TURNS: usize = 64;

/// A key as the map holds it: itself.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Argument<K>(K);

impl<K, V, E> Stored<Slot<V, E>> for Argument<K>
where
    K: Hash + Eq + Send + Sync + 'static,
{
    #[inline]
    fn weight(&self, slot: &Slot<V, E>) -> u32 {
        slot.weight()
    }
}

/// Finds the entry of a key without cloning it.
#[derive(Hash)]
struct Asked<'a, K>(&'a K);

impl<K: Eq> Equivalent<Argument<K>> for Asked<'_, K> {
    #[inline]
    fn equivalent(&self, stored: &Argument<K>) -> bool {
        *self.0 == stored.0
    }
}

/// What a computation started from: who may join it is judged by this.
pub(super) struct Began {
    at: Millis,
    dependency: Option<Dependency>,
}

/// How a flight ends, for everybody on board. Behind an `Arc` because waiters copy it under the
/// flight's lock, where a user's `clone` has no business.
pub(super) type Landed<V, E> = Arc<Result<V, CacheError<E>>>;
pub(super) type Guard<K, V, E> = flight::Guard<K, Landed<V, E>, Began>;
pub(super) type Waiter<K, V, E> = flight::Waiter<K, Landed<V, E>, Began>;

pub(super) struct Level<K, V, E> {
    pub(super) map: Map<Argument<K>, Slot<V, E>, RandomState>,
    flights: Flights<K, Landed<V, E>, Began>,
    turns: Box<[Mutex<()>]>,
    pub(super) clock: Clock,
    /// Whether anything was ever kept that has a life which ends.
    values_end: AtomicBool,
    seeded: RandomState,
}

impl<K, V, E> Level<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) fn new(engine: LocalEngine, capacity: Capacity, clock: Clock) -> Self {
        let seeded = RandomState::default();
        Self {
            map: Map::new(engine, capacity, seeded.clone()),
            flights: Flights::new(),
            turns: (0..TURNS).map(|_| Mutex::default()).collect(),
            clock,
            values_end: AtomicBool::new(false),
            seeded,
        }
    }

    /// What is remembered of `key`, if it may be served now.
    #[inline]
    pub(super) fn hit(&self, key: &K) -> Option<Result<V, Arc<E>>> {
        let began = self.began();
        self.map.get(&Asked(key))?.current(began, &self.clock)
    }

    /// As [`hit`](Self::hit), without counting as a use.
    pub(super) fn peek(&self, key: &K) -> Option<Result<V, Arc<E>>> {
        let began = self.began();
        self.map.peek(&Asked(key))?.current(began, &self.clock)
    }

    /// The time, if anything depends on it; some moment in the past if not.
    ///
    /// Looked at *before* the map, which takes a lock: a core reads the clock while it hashes the key, but
    /// not while it waits for a lock. So a value whose life ends during a call may be served by it.
    #[inline]
    fn began(&self) -> Millis {
        match self.values_end.load(Ordering::Relaxed) {
            true => self.clock.now(),
            false => Millis(0),
        }
    }

    /// By which computations are found, and take turns.
    pub(super) fn hash(&self, key: &K) -> u64 {
        self.seeded.hash_one(key)
    }

    /// Joins the computation under way, or gives the lead of a new one.
    ///
    /// One that has outlived `lead` is not joined. Its own timer ends it by then; but a computation that
    /// blocks its thread keeps its timer from being looked at. Nor is one whose outcome will depend on
    /// what was invalidated since it began.
    pub(super) fn board(
        &self,
        hash: u64,
        key: &K,
        lead: Duration,
        dependency: Option<Dependency>,
    ) -> Boarding<K, Landed<V, E>, Began> {
        let at = self.clock.now();
        let may_join = |began: &Began| {
            let current = began.dependency.as_ref().is_none_or(Dependency::is_current);
            at < began.at + lead && current
        };
        self.flights
            .board(hash, key, Began { at, dependency }, may_join)
    }

    /// Remembers `slot`, unless its computation was detached, and gives how many others were evicted.
    ///
    /// That is asked under the lock that removals share. Asked before, it would leave a gap:
    ///
    /// 1. a computation ends, and nothing has detached it;
    /// 2. the key is invalidated: that removes what is there, which is nothing yet;
    /// 3. the outcome is remembered, from before the invalidation.
    pub(super) fn keep(
        &self,
        guard: &Guard<K, V, E>,
        hash: u64,
        key: K,
        slot: Slot<V, E>,
    ) -> usize {
        let displaced = {
            let _turn = self.turn(hash);
            if guard.is_detached() {
                return 0; // drops key and slot after the lock
            }
            if slot.ends() {
                self.values_end.store(true, Ordering::Relaxed);
            }
            self.map.insert(Argument(key), slot)
        };
        let others = displaced.keys().filter(|key| self.hash(&key.0) != hash);
        others.count()
    }

    /// Removes what an outcome replaces that is not kept itself, unless its computation was detached.
    pub(super) fn supersede(&self, guard: &Guard<K, V, E>, hash: u64, key: &K) {
        let _older = {
            let _turn = self.turn(hash);
            if guard.is_detached() {
                return;
            }
            self.map.take(&Asked(key))
        };
    }

    /// Forgets what is remembered of `key`, and detaches the computation under way.
    pub(super) fn forget(&self, key: &K) {
        let hash = self.hash(key);
        self.flights.detach(hash, |_| true);
        let _older = {
            let _turn = self.turn(hash);
            self.map.take(&Asked(key))
        };
    }

    /// Forgets everything, and detaches every computation under way.
    pub(super) fn forget_all(&self) {
        self.flights.detach_all(|_| true);
        // Who found its computation attached, and is about to insert, has the lock of its turn.
        self.turns.iter().for_each(|turn| drop(lock(turn)));
        self.map.clear();
    }

    /// What orders this hash's inserts and removals. Nothing of the user's runs under it.
    fn turn(&self, hash: u64) -> MutexGuard<'_, ()> {
        lock(&self.turns[(hash >> 32) as usize % TURNS])
    }

    #[cfg(test)]
    pub(super) fn flights(&self) -> usize {
        self.flights.len()
    }
}
