//! One entity's local level: its map, its lane words and its flights, kept coherent by the bus.

use super::outcome::{Landed, Outcome};
use crate::bus::{AtomicWord, Bus, Member, Stripe, lock};
use crate::coherence::{EntryStamp, Lane, Mechanism, Rank, Rules, Word};
use crate::flight::Flights;
use crate::key::KeySpace;
use crate::local::{Local, Slot};
use crate::time::{Clock, Millis};
use std::sync::Mutex;

pub(super) struct Level<K, V, E> {
    entity: u64,
    space: KeySpace,
    rules: Rules,
    clock: Clock,
    words: Box<[AtomicWord]>,
    /// The newest clear that was carried out on each lane: hints of it come more than once.
    cleared: Box<[Mutex<Rank>]>,
    pub(super) map: Local<K, Slot<Outcome<V, E>>>,
    pub(super) flights: Flights<K, Landed<V, E>>,
}

fn stamp<T>(slot: &Slot<T>) -> EntryStamp {
    EntryStamp {
        rank: slot.rank,
        generation: slot.generation,
        start: slot.load_start,
    }
}

impl<K, V, E> Level<K, V, E>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) fn new(bus: &Bus, entity: u64, map: Local<K, Slot<Outcome<V, E>>>) -> Self {
        Self {
            entity,
            space: bus.space.clone(),
            rules: bus.rules,
            clock: bus.clock.clone(),
            words: bus
                .namespace
                .lanes()
                .map(|_| AtomicWord::default())
                .collect(),
            cleared: bus.namespace.lanes().map(|_| Mutex::default()).collect(),
            map,
            flights: Flights::new(),
        }
    }

    #[inline]
    pub(super) fn word(&self, lane: Lane) -> Word {
        self.words[usize::from(lane.0)].load()
    }

    /// The entry of `key`, if it may be served now.
    ///
    /// The order is the point (hole H11): first the lane's word, then the entry, then the clock. With
    /// the entry first:
    ///
    /// 1. a reader fetches the entry and is stopped for ten seconds;
    /// 2. the bus removes the entry and confirms the lane;
    /// 3. the reader finds the lane live, and serves what was removed.
    #[inline]
    pub(super) fn hit(&self, hash: u64, key: &K) -> Option<(Slot<Outcome<V, E>>, Millis)> {
        let lane = self.space.lane_of(hash);
        let word = self.word(lane);
        let slot = self.map.get(hash, key)?;
        let word = if self.rules.mechanisms.on(Mechanism::CheckOrder) {
            word
        } else {
            self.word(lane)
        };
        let now = self.clock.now();
        (now < slot.expires && self.rules.may_serve(word, stamp(&slot), now)).then_some((slot, now))
    }

    /// As [`hit`](Self::hit), without counting as a use.
    pub(super) fn peek(&self, hash: u64, key: &K) -> Option<Slot<Outcome<V, E>>> {
        let word = self.word(self.space.lane_of(hash));
        let slot = self.map.peek(hash, key)?;
        let now = self.clock.now();
        (now < slot.expires && self.rules.may_serve(word, stamp(&slot), now)).then_some(slot)
    }

    /// Keeps `slot`, unless an invalidation that it may not reflect was applied (hole H2), or has begun
    /// in this pod, which `untouched` tells. It is asked under the lock that such an invalidation takes:
    ///
    /// 1. a reader sees that its load is still attached, and is stopped;
    /// 2. an invalidation begins: it finds no entry to remove, and waits for the store;
    /// 3. the reader inserts what the invalidation was about.
    pub(super) fn insert(
        &self,
        bus: &Bus,
        hash: u64,
        key: K,
        slot: Slot<Outcome<V, E>>,
        untouched: impl FnOnce(&Stripe) -> bool,
    ) -> bool {
        let lane = self.space.lane_of(hash);
        let stripe = bus.stripe(lane, hash);
        let existing = self.map.peek_hash(hash).map(|slot| stamp(&slot));
        let allowed = untouched(&stripe)
            && self
                .rules
                .may_insert(self.word(lane), stripe.last, existing, stamp(&slot));
        if allowed {
            self.map.insert(hash, key, slot);
        }
        allowed
    }

    /// Forgets every entry. Loads under way are not kept either.
    pub(super) fn clear_all(&self, bus: &Bus) {
        bus.namespace.lanes().for_each(|lane| self.flush(lane));
        self.map.clear();
    }
}

impl<K, V, E> Member for Level<K, V, E>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn entity(&self) -> u64 {
        self.entity
    }

    fn evict(&self, hash: u64, below: Rank) {
        if self
            .map
            .peek_hash(hash)
            .is_some_and(|slot| slot.rank < below)
        {
            self.map.remove(hash);
        }
        self.flights.detach(hash, |flight| flight.rank < below);
    }

    fn flush(&self, lane: Lane) {
        self.words[usize::from(lane.0)].update(Word::flushed);
        self.flights
            .detach_all(|hash| self.space.lane_of(hash) == lane);
        // Ranks start again, and so does this.
        *lock(&self.cleared[usize::from(lane.0)]) = Rank::default();
    }

    fn clear(&self, lane: Lane, rank: Rank) {
        {
            let mut cleared = lock(&self.cleared[usize::from(lane.0)]);
            if *cleared >= rank {
                return;
            }
            *cleared = rank;
        }
        self.words[usize::from(lane.0)].update(Word::flushed);
        self.flights
            .detach_all(|hash| self.space.lane_of(hash) == lane);
    }

    fn confirm(&self, lane: Lane, until: Millis) {
        self.words[usize::from(lane.0)].update(|word| word.confirmed(until));
    }
}
