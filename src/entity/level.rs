//! One entity's local level: its map, its lane words and its flights, kept coherent by the bus.

use super::course::Flights;
use super::outcome::{Kept, Landed, Origin, StaleReason};
use crate::bus::{Bus, Member, Stripe, lock};
use crate::coherence::{EntryStamp, Lane, Rank, Rules, Word};
use crate::fence::{self, AtomicWord};
use crate::key::KeySpace;
use crate::local::{Local, Phase, Slot};
use crate::tags::Standing;
use crate::telemetry::{self, EntityTelemetry};
use crate::time::{Clock, Millis};
use std::sync::Mutex;
use std::time::Duration;

pub(super) struct Level<K, V, E> {
    entity: u64,
    space: KeySpace,
    rules: Rules,
    clock: Clock,
    words: Box<[AtomicWord]>,
    /// The newest clear that was carried out on each lane: hints of it come more than once.
    cleared: Box<[Mutex<Rank>]>,
    pub(super) map: Local<K, Kept<V, E>>,
    /// Reads that have missed.
    pub(super) flights: Flights<K, V, E>,
    pub(super) telemetry: EntityTelemetry,
    /// Refreshes, apart from them: a reader who finds a value need not wait for a better one.
    pub(super) refreshes: Flights<K, V, E>,
}

/// An entry that may be served, and what says so.
pub(super) struct Hit<V, E> {
    pub(super) slot: Kept<V, E>,
    /// The lane's word as it was *before* the entry was fetched.
    word: Word,
    pub(super) now: Millis,
    /// A soft tag was invalidated.
    expired: bool,
}

impl<V, E> Hit<V, E> {
    /// The entry reflects every invalidation that was acknowledged before this: the lane's last
    /// confirmation, or the entry's own youth, whichever says more; of its tags, too.
    pub(super) fn as_of(&self, rules: &Rules) -> Millis {
        let as_of = self
            .word
            .confirmed_at(rules.lease)
            .max(self.slot.load_start);
        match &self.slot.tied {
            None => as_of,
            Some(tied) => as_of.min(tied.as_of()),
        }
    }
}

impl<V, E> Hit<V, E> {
    fn phase(&self) -> Phase {
        match self.expired {
            false => self.slot.life.phase(self.now),
            true => self.slot.life.expired(self.now).phase(self.now),
        }
    }

    /// What a reader is served of it.
    pub(super) fn landed(&self, rules: &Rules) -> Landed<V, E> {
        let age = self.now.since(self.slot.loaded);
        let landed = Landed::new(&self.slot.value, Origin::Local, age, self.as_of(rules));
        let tied = self.slot.tied.is_some();
        Landed { tied, ..landed }
    }
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
    pub(super) fn new(
        bus: &Bus,
        entity: u64,
        map: Local<K, Kept<V, E>>,
        telemetry: EntityTelemetry,
    ) -> Self {
        Self {
            telemetry,
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
            refreshes: Flights::new(),
        }
    }

    #[inline]
    pub(super) fn word(&self, lane: Lane) -> Word {
        self.words[usize::from(lane.0)].load()
    }

    /// The entry of `key`, if it may be served now and there is nothing more to think of. Counts.
    #[inline]
    pub(super) fn hit(&self, hash: u64, key: &K) -> Option<Hit<V, E>> {
        let hit = self.found(hash, key)?;
        self.telemetry.hit();
        Some(hit)
    }

    /// As [`hit`](Self::hit), for whoever counts otherwise.
    #[inline]
    pub(super) fn found(&self, hash: u64, key: &K) -> Option<Hit<V, E>> {
        self.look(hash, || self.map.get(hash, key))
            .filter(|hit| !hit.expired && hit.slot.life.is_plain(hit.now))
    }

    /// As [`hit`](Self::hit) for an entry in a later phase, which it comes with.
    #[cold]
    pub(super) fn late(&self, hash: u64, key: &K) -> Option<(Hit<V, E>, Phase)> {
        let hit = self.look(hash, || self.map.get(hash, key))?;
        let phase = hit.phase();
        (phase != Phase::Over).then_some((hit, phase))
    }

    /// A fresh entry, without counting as a use.
    pub(super) fn peek(&self, hash: u64, key: &K) -> Option<Kept<V, E>> {
        let hit = self.look(hash, || self.map.peek(hash, key))?;
        let fresh = matches!(hit.phase(), Phase::Plain | Phase::Late(_));
        fresh.then_some(hit.slot)
    }

    /// The value that is kept of `key`, whether or not the rules let it be served, if its load from the
    /// source began at most `age` ago.
    ///
    /// That is a bound of its own: a load sees everything that was committed before it began. It needs no
    /// lane, no generation and no life, but the clock must be looked at after the entry is fetched:
    ///
    /// 1. a reader looks at the clock and is stopped for ten seconds;
    /// 2. it fetches an entry that was loaded just before 1;
    /// 3. by its clock the entry is young, and is served ten seconds old.
    pub(super) fn kept(&self, hash: u64, key: &K, age: Duration) -> Option<Landed<V, E>> {
        let slot = self.map.get(hash, key)?;
        let (word, now) = (self.word(self.space.lane_of(hash)), self.clock.now());
        let loaded = slot.loaded.min(slot.load_start);
        if now.since(loaded) > age || slot.value.is_err() {
            return None;
        }
        let overdue = slot.life.overdue(now);
        let unchanged = slot.tied.as_ref().is_none_or(|tied| tied.is_unchanged());
        let reason = match unchanged && slot.generation == word.generation() {
            false => StaleReason::Invalidated,
            true if now >= word.until() => StaleReason::Unconfirmed,
            true => StaleReason::Expired,
        };
        let landed = Landed::new(&slot.value, Origin::Local, now.since(loaded), loaded);
        Some(landed.into_stale(overdue, reason))
    }

    /// What is kept of `key`, whether or not it may be served: not what was invalidated.
    pub(super) fn remembered(&self, hash: u64, key: &K) -> Option<Kept<V, E>> {
        let slot = self.map.peek(hash, key)?;
        let stands = slot.tied.as_ref().is_none_or(|tied| tied.is_unchanged());
        stands.then_some(slot)
    }

    /// What `get` finds, if the coherence rules and its tags let it be served now.
    #[inline]
    fn look(&self, hash: u64, get: impl FnOnce() -> Option<Kept<V, E>>) -> Option<Hit<V, E>> {
        let word = &self.words[usize::from(self.space.lane_of(hash).0)];
        let seen = fence::look(&self.rules, word, get, |slot| {
            let (standing, now) = match &slot.tied {
                None => (Standing::Current, self.clock.now()),
                Some(tied) => tied.standing(&self.clock),
            };
            (stamp(slot), standing, now)
        })?;
        (seen.aside != Standing::Gone).then_some(Hit {
            slot: seen.entry,
            word: seen.word,
            now: seen.now,
            expired: seen.aside == Standing::Expired,
        })
    }

    /// Keeps `slot`, unless an invalidation that it may not reflect was applied (hole H2).
    ///
    /// `stands` tells under the stripe's lock whether this pod's own invalidations allow it, too. Asked
    /// before, it would leave a gap:
    ///
    /// 1. a load ends, and nothing speaks against keeping its outcome;
    /// 2. this pod invalidates the key: it removes what is there, which is nothing yet;
    /// 3. the outcome is kept, and served until the store has acknowledged the invalidation.
    pub(super) fn insert(
        &self,
        bus: &Bus,
        hash: u64,
        key: K,
        slot: Kept<V, E>,
        stands: impl FnOnce(&Stripe) -> bool,
    ) -> bool {
        let lane = self.space.lane_of(hash);
        let stripe = bus.stripe(lane, hash);
        let existing = self.map.peek_hash(hash).map(|slot| stamp(&slot));
        let allowed = self
            .rules
            .may_insert(self.word(lane), stripe.last, existing, stamp(&slot));
        let allowed = allowed && stands(&stripe);
        if allowed {
            let others = self.map.insert(hash, key, slot);
            self.telemetry.evicted(others);
        }
        allowed
    }

    /// The newest invalidation that this pod has come to know of which may concern the key, applied in its
    /// turn or not.
    pub(super) fn last_change(&self, bus: &Bus, hash: u64) -> Rank {
        let lane = self.space.lane_of(hash);
        let cleared = *lock(&self.cleared[usize::from(lane.0)]);
        bus.stripe(lane, hash).last.max(cleared)
    }

    /// Forgets what `rank` outranks or equals under `hash`: there is an outcome in its place that is not
    /// to be kept.
    pub(super) fn forget(&self, bus: &Bus, hash: u64, rank: Rank) {
        let _stripe = bus.stripe(self.space.lane_of(hash), hash);
        let there = self.map.peek_hash(hash);
        if there.is_some_and(|slot| slot.rank <= rank) {
            self.map.remove(hash);
        }
    }

    /// Forgets every entry. Loads under way are not kept either.
    pub(super) fn clear_all(&self, bus: &Bus) {
        bus.namespace.lanes().for_each(|lane| self.flush(lane));
        self.map.clear();
    }
}

impl<K, V, E> Level<K, V, E> {
    fn detach_all(&self, lane: Lane) {
        for flights in [&self.flights, &self.refreshes] {
            flights.detach_all(|hash| self.space.lane_of(hash) == lane);
        }
    }
}

impl<K, V, E> telemetry::Kept for Level<K, V, E>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn entries(&self) -> u64 {
        self.map.len()
    }

    fn weight(&self) -> u64 {
        self.map.weight()
    }

    fn tells_evicted(&self) -> bool {
        self.map.tells_displaced()
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
            && self.map.remove(hash)
        {
            self.telemetry.invalidated();
        }
        for flights in [&self.flights, &self.refreshes] {
            flights.detach(hash, |course| course.meta.rank < below);
        }
    }

    fn flush(&self, lane: Lane) {
        self.words[usize::from(lane.0)].update(Word::flushed);
        self.detach_all(lane);
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
        self.detach_all(lane);
    }

    #[cfg(feature = "testing")]
    fn flights(&self) -> usize {
        self.flights.len() + self.refreshes.len()
    }

    fn confirm(&self, lane: Lane, until: Millis) {
        self.words[usize::from(lane.0)].update(|word| word.confirmed(until));
    }
}
