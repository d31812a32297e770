//! What the embedded store keeps, and its steps, as a pure state machine.
//!
//! Time is passed in and hints come back in a list, so the same steps run behind a lock in
//! production, in the seeded simulator and in the model checker. Nothing here counts what the
//! protocol does not need: two states that behave alike are equal.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

use super::rooms::{Now, Rooms};
use super::step::{LaneState, Step};
use crate::coherence::{Epoch, Head, Hint, Incarnation, Kind, Lane, LogEntry, Nonce};
use crate::store::{
    Fill, Found, Guarded, LeaseReply, LeaseRequest, Logged, Markers, Opening, Place, Polled, Put,
    Replaces, TagFloor, TagPlace,
};

/// How many entries of each lane's log are kept unless told otherwise: enough for a cache of the
/// same process to catch up after its queue of hints ran over.
pub const DEFAULT_RETENTION: usize = 1_024;

/// What a lane's epoch becomes when the server has a new life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Continuity {
    /// Nothing shows that no write was lost: every older value is dead.
    #[default]
    Fence,
    /// Values up to the fork point are still good: for stores that can show that all were kept.
    Fork,
}

/// The state of an embedded store for one namespace; each method is one atomic step of the
/// [`Link`](crate::store::Link) method of the same name.
///
/// `now_ms` is the server's clock. Hints to publish are pushed onto `hints`.
///
/// Public for simulators, model checkers and fault injection; may change in any minor version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MemoryState {
    incarnation: Incarnation,
    continuity: Continuity,
    retention: usize,
    lane_capacity: usize,
    record: Option<Bytes>,
    lanes: BTreeMap<Lane, LaneState>,
    rooms: Rooms,
}

impl MemoryState {
    /// An empty store in its life `incarnation`, without a bound on values.
    #[must_use]
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            continuity: Continuity::default(),
            retention: DEFAULT_RETENTION,
            lane_capacity: usize::MAX,
            record: None,
            lanes: BTreeMap::new(),
            rooms: Rooms::default(),
        }
    }

    /// The same with logs of at most `entries` entries; default [`DEFAULT_RETENTION`].
    #[must_use]
    pub fn with_retention(self, entries: usize) -> Self {
        Self {
            retention: entries,
            ..self
        }
    }

    /// The same with what happens to epochs in a new life of the server; default
    /// [`Continuity::Fence`].
    #[must_use]
    pub fn with_continuity(self, continuity: Continuity) -> Self {
        Self { continuity, ..self }
    }

    /// The same with at most `values` values (and leases) on each lane; the next one evicts another.
    #[must_use]
    pub fn with_lane_capacity(self, values: usize) -> Self {
        Self {
            lane_capacity: values.max(1),
            ..self
        }
    }

    /// The head of a lane.
    #[must_use]
    pub fn head(&self, lane: Lane) -> Option<Head> {
        self.lanes.get(&lane)?.head
    }

    /// How many values and leases are kept, expired ones that were not yet swept included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.values.len()).sum()
    }

    /// Whether nothing is kept under any key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `record` in the place of the namespace's record if that is `expected`.
    pub fn register(&mut self, expected: Option<&[u8]>, record: &[u8]) -> Option<Bytes> {
        if self.record.as_deref() == expected {
            self.record = Some(Bytes::copy_from_slice(record));
        }
        self.record.clone()
    }

    /// Opens or continues the epochs of `lanes`.
    pub fn touch(
        &mut self,
        lanes: &[(Lane, Opening)],
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Vec<Head> {
        let continuity = self.continuity;
        let touch = |&(lane, opening): &(Lane, Opening)| {
            let mut step = self.step(lane, now_ms, hints);
            let head = step.open(opening);
            if head.incarnation == step.incarnation {
                head
            } else {
                step.renew(head, continuity, opening)
            }
        };
        lanes.iter().map(touch).collect()
    }

    /// The heads of the lanes below `lanes`.
    #[must_use]
    pub fn poll(&self, lanes: u16, now_ms: u64) -> Polled {
        Polled {
            clocks: Vec::new(),
            heads: (0..lanes).map(|lane| self.head(Lane(lane))).collect(),
            silent: Vec::new(),
            incarnation: self.incarnation,
            server_ms: now_ms,
            record: self.record.clone(),
        }
    }

    /// At most `limit` entries of the log, from number `from` on.
    #[must_use]
    pub fn log_since(&self, lane: Lane, from: u64, limit: usize) -> Vec<LogEntry> {
        let entries = self.lanes.get(&lane).into_iter().flat_map(|lane| &lane.log);
        let wanted = entries.filter(|entry| entry.seq >= from).take(limit);
        wanted.cloned().collect()
    }

    /// A value with its lane's head and its entity's floor.
    #[must_use]
    pub fn read(&self, place: Place<'_>, now_ms: u64) -> Found {
        let lane = self.lanes.get(&place.lane);
        Found {
            head: lane.and_then(|lane| lane.head),
            value: lane.and_then(|lane| lane.values.get(place.key, now_ms).cloned()),
            floor: lane.and_then(|lane| lane.floors.get(place.entity).copied()),
        }
    }

    /// Takes the right to fill a key.
    pub fn lease(
        &mut self,
        place: Place<'_>,
        request: LeaseRequest<'_>,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> LeaseReply {
        let mut step = self.step(place.lane, now_ms, hints);
        let head = step.open(request.opening);
        let floor = step.floor(place.entity, head.at.seq);
        let minimum = step.lane.markers.minimum(place.hash, now_ms);
        LeaseReply {
            head,
            floor,
            server_ms: now_ms,
            state: step.lease((place.key, place.hash), request, head, floor),
            minimum,
        }
    }

    /// Stores a value in place of its lease or of the value it refreshes; whether it was stored.
    pub fn fill(
        &mut self,
        place: Place<'_>,
        fill: Fill<'_>,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> bool {
        let Some(mut step) = self.step_if_used(place.lane, now_ms, hints) else {
            return false;
        };
        let replaced = match fill.replaces {
            Replaces::Lease => step.leased(place.key, fill.token),
            Replaces::Value => step.holds_value(place.key, fill.token).then_some(false),
        };
        let waited = match (step.lane.head, replaced) {
            (Some(head), Some(waited)) if head.at.epoch == fill.epoch => waited,
            _ => return false,
        };
        step.store(place.key, Bytes::copy_from_slice(fill.envelope), fill.ttl);
        if waited {
            step.announce_filled(place.hash);
        }
        true
    }

    /// Gives a lease back.
    pub fn release(&mut self, place: Place<'_>, token: u64, now_ms: u64, hints: &mut Vec<Hint>) {
        let Some(mut step) = self.step_if_used(place.lane, now_ms, hints) else {
            return;
        };
        if let Some(waited) = step.leased(place.key, token) {
            step.lane.values.remove(place.key);
            if waited {
                step.announce_filled(place.hash);
            }
        }
    }

    /// Reads the floors of tags, and sets those that are missing.
    pub fn tag_floors(
        &mut self,
        tags: &[TagPlace],
        keep: Option<Duration>,
        now_ms: u64,
    ) -> Vec<Option<TagFloor>> {
        let mut hints = Vec::new();
        let floor = |tag: &TagPlace| {
            let mut step = self.step_if_used(tag.lane, now_ms, &mut hints)?;
            let head = step.lane.head?;
            let floors = [tag.name, tag.key].map(|it| step.tag_floor(it, head.at.seq, keep));
            let floor = floors[0].max(floors[1]);
            Some(TagFloor { head, floor })
        };
        tags.iter().map(floor).collect()
    }

    /// Removes values and leases, then logs and publishes.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of the port, and the step's own two"
    )]
    pub fn invalidate(
        &mut self,
        lane: Lane,
        keys: &[Bytes],
        hashes: &[u64],
        nonce: Nonce,
        opening: Opening,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Logged {
        let mut step = self.step(lane, now_ms, hints);
        for key in keys {
            step.lane.values.remove(key);
        }
        let head = step.open(opening);
        step.invalidated(head, nonce, hashes)
    }

    /// As [`invalidate`](Self::invalidate), and lifts or leaves markers.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of the port, and the step's own two"
    )]
    pub fn guard(
        &mut self,
        lane: Lane,
        keys: &[Bytes],
        hashes: &[u64],
        markers: Markers,
        nonce: Nonce,
        opening: Opening,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Guarded {
        let logged = self.invalidate(lane, keys, hashes, nonce, opening, now_ms, hints);
        let step = self.step(lane, now_ms, hints);
        let hashes = hashes.get(1..).unwrap_or_default();
        let stood = step.lane.markers.change(hashes, markers, now_ms);
        Guarded { logged, stood }
    }

    /// Leaves a value of a lower version replaced, one of the same or a higher version as it is, and
    /// nothing else; logs and publishes.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of the port, and the step's own two"
    )]
    pub fn put(
        &mut self,
        place: Place<'_>,
        put: Put<'_>,
        hashes: &[u64],
        nonce: Nonce,
        opening: Opening,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Logged {
        let mut step = self.step(place.lane, now_ms, hints);
        let head = step.open(opening);
        // Who puts in an epoch has come to know of it: what stands there is not in doubt.
        let there = step.version(place, head);
        match there.filter(|_| put.epoch == head.at.epoch) {
            Some(there) if there >= put.version => {}
            Some(_) => {
                step.store(place.key, Bytes::copy_from_slice(put.envelope), put.ttl);
            }
            None => {
                step.lane.values.remove(place.key);
            }
        }
        step.invalidated(head, nonce, hashes)
    }

    /// Raises the floor of an entity, logs and publishes.
    #[expect(
        clippy::too_many_arguments,
        reason = "those of the port, and the step's own two"
    )]
    pub fn clear(
        &mut self,
        lane: Lane,
        entity: &str,
        hash: u64,
        nonce: Nonce,
        opening: Opening,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Logged {
        let mut step = self.step(lane, now_ms, hints);
        let head = step.open(opening);
        let logged = step.append(head, Kind::Clear, nonce, vec![hash]);
        // Without a floor there is nothing usable to clear: the next lease sets one that is higher still.
        if let Some(floor) = step.lane.floors.get_mut(entity) {
            *floor = logged.at.seq;
        }
        step.raise(hash, logged.at.seq);
        logged
    }

    /// Opens an epoch that continues nothing, if the lane is still in `expected`.
    pub fn fence(
        &mut self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
        now_ms: u64,
        hints: &mut Vec<Hint>,
    ) -> Head {
        let mut step = self.step(lane, now_ms, hints);
        let head = step.open(opening);
        if head.at.epoch == expected {
            step.renew(head, Continuity::Fence, opening)
        } else {
            head
        }
    }

    /// The rooms, and what their steps go by.
    pub(super) fn rooms(&mut self, now_ms: u64) -> (&mut Rooms, Now) {
        let now = Now {
            ms: now_ms,
            incarnation: self.incarnation,
        };
        (&mut self.rooms, now)
    }

    /// A step that must not bring a lane into being.
    fn step_if_used<'a>(
        &'a mut self,
        id: Lane,
        now_ms: u64,
        hints: &'a mut Vec<Hint>,
    ) -> Option<Step<'a>> {
        let used = self.lanes.contains_key(&id);
        used.then(|| self.step(id, now_ms, hints))
    }

    fn step<'a>(&'a mut self, id: Lane, now_ms: u64, hints: &'a mut Vec<Hint>) -> Step<'a> {
        Step {
            id,
            now_ms,
            incarnation: self.incarnation,
            retention: self.retention,
            capacity: self.lane_capacity,
            lane: self.lanes.entry(id).or_default(),
            hints,
        }
    }
}

/// What may befall a server: for tests, the simulator and the model checker.
#[cfg(any(test, feature = "testing"))]
impl MemoryState {
    /// The server restarts and has lost everything.
    pub fn restart_empty(&mut self, incarnation: Incarnation) {
        self.flush_all();
        self.incarnation = incarnation;
    }

    /// The server restarts, or a replica is promoted, with what was kept in `snapshot`.
    pub fn restart_from(&mut self, snapshot: Self, incarnation: Incarnation) {
        *self = snapshot;
        self.incarnation = incarnation;
    }

    /// The node of one lane is replaced by its replica, which has what `replica` has of it: the next touch of
    /// the lane continues that in a new epoch.
    pub fn promote_lane(&mut self, lane: Lane, replica: &Self) {
        let mut there = replica.lanes.get(&lane).cloned().unwrap_or_default();
        if let Some(head) = &mut there.head {
            head.incarnation = Incarnation(0);
        }
        self.continuity = Continuity::Fork;
        self.lanes.insert(lane, there);
    }

    /// Somebody removes everything while the server lives on.
    pub fn flush_all(&mut self) {
        self.record = None;
        self.lanes.clear();
        self.rooms.clear();
    }

    /// The server evicts the namespace's record.
    pub fn drop_record(&mut self) {
        self.record = None;
    }

    /// The log of a lane is lost; its head stays.
    pub fn trim_log(&mut self, lane: Lane) {
        self.change(lane, |lane| lane.log.clear());
    }

    /// Stores a value whatever stands there: the fill of a store that knows no leases.
    pub fn plant(&mut self, place: Place<'_>, fill: Fill<'_>, now_ms: u64) {
        let mut hints = Vec::new();
        let mut step = self.step(place.lane, now_ms, &mut hints);
        step.store(place.key, Bytes::copy_from_slice(fill.envelope), fill.ttl);
    }

    /// The server evicts what stands under a key; whether there was anything.
    pub fn evict(&mut self, lane: Lane, key: &[u8]) -> bool {
        let mut evicted = false;
        self.change(lane, |lane| evicted = lane.values.remove(key));
        evicted
    }

    /// The version that the source has of a key at least, as far as is remembered.
    #[must_use]
    pub fn minimum(&self, lane: Lane, hash: u64, now_ms: u64) -> Option<u64> {
        self.lanes.get(&lane)?.markers.minimum(hash, now_ms)
    }

    /// What [`tag_floors`](Self::tag_floors) would answer, and nothing is set.
    #[must_use]
    pub fn tag_floor(&self, tag: &TagPlace, now_ms: u64) -> Option<TagFloor> {
        let lane = self.lanes.get(&tag.lane)?;
        let head = lane.head?;
        let floor = |hash: u64| {
            let bytes = lane.tag_floors.get(&hash.to_be_bytes(), now_ms)?;
            let floor = u64::from_be_bytes(bytes[..].try_into().ok()?);
            (floor <= head.at.seq).then_some(floor)
        };
        let floors = [tag.name, tag.key].map(|hash| floor(hash).unwrap_or(head.at.seq));
        let floor = floors[0].max(floors[1]);
        Some(TagFloor { head, floor })
    }

    /// The server evicts the markers of a lane.
    pub fn drop_markers(&mut self, lane: Lane) {
        self.change(lane, |lane| lane.markers = Default::default());
    }

    /// The server evicts the head of a lane.
    pub fn drop_head(&mut self, lane: Lane) {
        self.change(lane, |lane| lane.head = None);
    }

    /// The server evicts the floor of an entity on a lane.
    pub fn drop_floor(&mut self, lane: Lane, entity: &str) {
        self.change(lane, |lane| {
            lane.floors.remove(entity);
        });
    }

    /// The server evicts the floors of all tags.
    pub fn drop_tag_floors(&mut self) {
        let lanes: Vec<_> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.change(lane, |lane| lane.tag_floors = Default::default());
        }
    }

    /// Changes a lane that is there, and forgets it if nothing is left, so that a lane that lost
    /// everything equals one that was never used.
    fn change(&mut self, id: Lane, change: impl FnOnce(&mut LaneState)) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            change(lane);
            if *lane == LaneState::default() {
                self.lanes.remove(&id);
            }
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
