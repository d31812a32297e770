//! What one step does on one lane.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::layout::{Front, State, mark_waited};
use super::markers::MarkedKeys;
use super::state::Continuity;
use super::values::Values;
use crate::coherence::{Epoch, Head, Hint, Incarnation, Kind, Lane, LogEntry, Nonce, Position};
use crate::envelope::version_of;
use crate::store::{LeaseRequest, LeaseState, Logged, Opening, Place};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LaneState {
    pub(super) head: Option<Head>,
    pub(super) log: VecDeque<LogEntry>,
    pub(super) values: Values,
    pub(super) floors: BTreeMap<String, u64>,
    /// The floors of tags, by the bytes of their hashes.
    pub(super) tag_floors: Values,
    pub(super) markers: MarkedKeys,
}

/// One step on one lane.
pub(super) struct Step<'a> {
    pub(super) id: Lane,
    pub(super) now_ms: u64,
    pub(super) incarnation: Incarnation,
    pub(super) retention: usize,
    pub(super) capacity: usize,
    pub(super) lane: &'a mut LaneState,
    pub(super) hints: &'a mut Vec<Hint>,
}

impl Step<'_> {
    /// The lane's head; opens an epoch if it has none.
    pub(super) fn open(&mut self, opening: Opening) -> Head {
        if let Some(head) = self.lane.head {
            return head;
        }
        self.lane.log.clear();
        let head = Head {
            at: Position {
                epoch: opening.epoch,
                seq: 1,
            },
            nonce: opening.nonce,
            incarnation: self.incarnation,
            prev_epoch: Epoch(0),
            fork_seq: 0,
            last_pub_ms: self.now_ms,
            fork: false,
            forked_s: 0,
        };
        self.log(head, Kind::Fence, Nonce(0), Vec::new());
        head
    }

    /// Opens a new epoch behind `old`.
    pub(super) fn renew(&mut self, old: Head, continuity: Continuity, opening: Opening) -> Head {
        let (kind, fork) = match continuity {
            Continuity::Fence => (Kind::Fence, false),
            Continuity::Fork => (Kind::Fork, true),
        };
        let head = Head {
            at: Position {
                epoch: opening.epoch,
                seq: old.at.seq + 1,
            },
            nonce: opening.nonce,
            incarnation: self.incarnation,
            prev_epoch: old.at.epoch,
            fork_seq: old.at.seq,
            last_pub_ms: self.now_ms,
            fork,
            forked_s: match fork {
                true => Head::fork_time(self.now_ms),
                false => 0,
            },
        };
        self.log(head, kind, old.nonce, Vec::new());
        head
    }

    pub(super) fn append(
        &mut self,
        old: Head,
        kind: Kind,
        nonce: Nonce,
        hashes: Vec<u64>,
    ) -> Logged {
        let at = Position {
            seq: old.at.seq + 1,
            ..old.at
        };
        let head = Head {
            at,
            nonce,
            last_pub_ms: self.now_ms,
            ..old
        };
        self.log(head, kind, old.nonce, hashes);
        Logged {
            at,
            prev: old.nonce,
        }
    }

    /// Logs an invalidation of keys, and raises the floors of the tags that they are.
    pub(super) fn invalidated(&mut self, old: Head, nonce: Nonce, hashes: &[u64]) -> Logged {
        let logged = self.append(old, Kind::Invalidate, nonce, hashes.to_vec());
        for &hash in hashes.iter().skip(1) {
            self.raise(hash, logged.at.seq);
        }
        logged
    }

    /// Makes `head` the lane's head, logs the entry that leads to it, and publishes it.
    fn log(&mut self, head: Head, kind: Kind, prev: Nonce, hashes: Vec<u64>) {
        let entry = LogEntry {
            seq: head.at.seq,
            kind,
            prev,
            nonce: head.nonce,
            hashes,
        };
        self.lane.head = Some(head);
        self.lane.log.push_back(entry.clone());
        let excess = self.lane.log.len().saturating_sub(self.retention);
        self.lane.log.drain(..excess);
        self.publish(head.at.epoch, entry);
    }

    /// Tells those who wait for a lease that it has ended. A hint only: it is not logged and has no
    /// nonce. Without a head nobody could place it.
    pub(super) fn announce_filled(&mut self, hash: u64) {
        if let Some(head) = self.lane.head {
            let entry = LogEntry {
                seq: head.at.seq,
                kind: Kind::Filled,
                prev: Nonce(0),
                nonce: Nonce(0),
                hashes: vec![hash],
            };
            self.publish(head.at.epoch, entry);
        }
    }

    fn publish(&mut self, epoch: Epoch, entry: LogEntry) {
        self.hints.push(Hint {
            lane: self.id,
            epoch,
            server_ms: self.now_ms,
            entry,
        });
    }

    /// The floor of an entity. One that is missing, or of a log that had grown longer before it was
    /// lost, is set to where the log stands: what was filled before cannot be told from what was
    /// cleared.
    pub(super) fn floor(&mut self, entity: &str, seq: u64) -> u64 {
        match self.lane.floors.get(entity) {
            Some(floor) if *floor <= seq => *floor,
            _ => {
                self.lane.floors.insert(entity.to_owned(), seq);
                seq
            }
        }
    }

    /// The floor of a tag, which is set as [`floor`](Self::floor) is, and stays for `keep` at least.
    pub(super) fn tag_floor(&mut self, hash: u64, seq: u64, keep: Option<Duration>) -> u64 {
        let key = hash.to_be_bytes();
        let found = self.lane.tag_floors.get(&key, self.now_ms);
        let found = found.and_then(|bytes| Some(u64::from_be_bytes(bytes[..].try_into().ok()?)));
        let floor = found.filter(|floor| *floor <= seq);
        if floor.is_some() && self.lane.tag_floors.outlives(&key, keep, self.now_ms) {
            return floor.unwrap_or(seq);
        }
        let floor = floor.unwrap_or(seq);
        let (bytes, capacity) = (Bytes::copy_from_slice(&floor.to_be_bytes()), self.capacity);
        let floors = &mut self.lane.tag_floors;
        floors.insert(&key, bytes, keep, self.now_ms, capacity);
        floor
    }

    /// Raises the floor of a tag, if there is one.
    pub(super) fn raise(&mut self, hash: u64, seq: u64) {
        let floor = Bytes::copy_from_slice(&seq.to_be_bytes());
        self.lane.tag_floors.replace(&hash.to_be_bytes(), floor);
    }

    pub(super) fn lease(
        &mut self,
        (key, hash): (&[u8], u64),
        request: LeaseRequest<'_>,
        head: Head,
        floor: u64,
    ) -> LeaseState {
        if self.lane.markers.stands(hash, self.now_ms) {
            return LeaseState::Guarded;
        }
        let continued = |epoch| epoch == head.at.epoch || head.fork && epoch == head.prev_epoch;
        let found = self.lane.values.get(key, self.now_ms).cloned();
        let found = found.and_then(|bytes| Some((Front::read(&bytes)?, bytes)));
        let found = found.filter(|(front, _)| continued(front.epoch) && front.seq >= floor);
        match found {
            Some((front, bytes)) if matches!(front.state, State::Lease { .. }) => {
                self.lane.values.replace(key, mark_waited(&bytes));
                return LeaseState::Held;
            }
            Some((_, bytes)) if request.unusable != Some(&bytes[..]) => {
                return LeaseState::Present(bytes);
            }
            _ => {}
        }
        let lease = Front {
            state: State::Lease { waited: false },
            token: request.token,
            epoch: head.at.epoch,
            seq: head.at.seq,
        };
        let bytes = Bytes::copy_from_slice(&lease.write());
        self.store(key, bytes, Some(request.ttl));
        LeaseState::Granted
    }

    /// The version of the value at `place`, if the head continues its timeline, it was not cleared, and
    /// has no tags.
    pub(super) fn version(&self, place: Place<'_>, head: Head) -> Option<u64> {
        let bytes = self.lane.values.get(place.key, self.now_ms)?;
        let floor = *self.lane.floors.get(place.entity)?;
        let front = Front::read(bytes)?;
        let continued = front.epoch == head.at.epoch || head.fork && front.epoch == head.prev_epoch;
        let counts = continued && floor <= head.at.seq && front.seq >= floor;
        version_of(bytes).filter(|_| counts)
    }

    /// Whether somebody waits for the lease with this token; `None` if it is not there.
    pub(super) fn leased(&self, key: &[u8], token: u64) -> Option<bool> {
        let front = Front::read(self.lane.values.get(key, self.now_ms)?)?;
        match front.state {
            State::Lease { waited } if front.token == token => Some(waited),
            _ => None,
        }
    }

    /// Whether the value with this token is there.
    pub(super) fn holds_value(&self, key: &[u8], token: u64) -> bool {
        let bytes = self.lane.values.get(key, self.now_ms);
        bytes
            .and_then(|bytes| Front::read(bytes))
            .is_some_and(|front| front.state == State::Value && front.token == token)
    }

    pub(super) fn store(&mut self, key: &[u8], bytes: Bytes, ttl: Option<Duration>) {
        let (now_ms, capacity) = (self.now_ms, self.capacity);
        self.lane.values.insert(key, bytes, ttl, now_ms, capacity);
    }
}
