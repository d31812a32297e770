//! What this pod itself had logged lately, so that it can be logged again if the log's tail was lost.

use super::wire::Change;
use super::{Head, Kind, Position};
use crate::time::Millis;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// One call that is logged on a lane: an invalidation of keys, or a clear of an entity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// [`Kind::Invalidate`] or [`Kind::Clear`].
    pub kind: Kind,
    /// What the entry carries: the hash of the entity's name, then those of the keys.
    pub hashes: Vec<u64>,
    /// The physical keys, for an invalidation.
    pub keys: Vec<Bytes>,
    /// The entity's name.
    pub entity: Arc<str>,
}

impl Call {
    /// An invalidation of `keys`, which are of one lane and at most
    /// [`MAX_KEYS`](super::wire::MAX_KEYS): hash and physical key of each.
    #[must_use]
    pub fn invalidate(entity: &Arc<str>, hash: u64, keys: &[(u64, Bytes)]) -> Self {
        Self {
            kind: Kind::Invalidate,
            hashes: [hash].into_iter().chain(keys.iter().map(|k| k.0)).collect(),
            keys: keys.iter().map(|(_, key)| key.clone()).collect(),
            entity: Arc::clone(entity),
        }
    }

    /// A clear of all keys of `entity` on one lane.
    #[must_use]
    pub fn clear(entity: &Arc<str>, hash: u64) -> Self {
        Self {
            kind: Kind::Clear,
            hashes: vec![hash],
            keys: Vec::new(),
            entity: Arc::clone(entity),
        }
    }

    /// The hash of the entity's name.
    #[must_use]
    pub fn entity_hash(&self) -> u64 {
        self.hashes.first().copied().unwrap_or_default()
    }

    /// The hashes of the keys.
    #[must_use]
    pub fn key_hashes(&self) -> &[u64] {
        self.hashes.get(1..).unwrap_or_default()
    }

    /// What it makes invalid.
    #[must_use]
    pub fn change(&self) -> Change {
        Change {
            entity: self.entity_hash(),
            keys: self.key_hashes().to_vec(),
        }
    }
}

/// The acknowledged calls of the last while, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ring {
    calls: VecDeque<(Position, Millis, Arc<Call>)>,
    /// The newest one that is not remembered any more.
    forgotten: Option<Position>,
}

impl Ring {
    /// How long a call is remembered: longer than any failover that replication survives.
    pub const RETENTION: Duration = Duration::from_secs(60);
    /// How many calls a lane remembers at most.
    pub const CAPACITY: usize = 4096;

    /// Remembers a call that was logged at `at`.
    pub fn push(&mut self, at: Position, call: Arc<Call>, now: Millis) {
        while let Some(&(at, then, _)) = self.calls.front() {
            if self.calls.len() < Self::CAPACITY && now <= then + Self::RETENTION {
                break;
            }
            self.forgotten = Some(at);
            self.calls.pop_front();
        }
        self.calls.push_back((at, now, call));
    }

    /// Keeps the calls that are on the timeline of `head`, and gives back those that its store lost;
    /// `None` if calls may be among them that are not remembered any more.
    ///
    /// After a fence nothing that they removed can come back: they are as good as logged where it stands. But a
    /// fence can be lost itself:
    ///
    /// 1. Epoch A is continued by B, which this pod never hears of, and a replica has B.
    /// 2. The primary is fenced, as it lost its data or its head. This pod follows epoch C.
    /// 3. The replica is promoted, and opens D, which continues B.
    pub fn take_lost(&mut self, head: &Head) -> Option<Vec<Arc<Call>>> {
        // Gives whether the position is on the timeline of `head`, and moves it there.
        let is_kept = |at: &mut Position| {
            if head.fork && at.epoch == head.prev_epoch && at.seq <= head.fork_seq {
                at.epoch = head.at.epoch;
            }
            at.epoch == head.at.epoch
        };
        if !head.fork {
            let all = self.calls.iter_mut().map(|(at, ..)| at);
            all.chain(&mut self.forgotten).for_each(|at| *at = head.at);
            return Some(Vec::new());
        }
        let mut lost = Vec::new();
        self.calls.retain_mut(|(at, _, call)| {
            let kept = is_kept(at);
            if !kept {
                lost.push(Arc::clone(call));
            }
            kept
        });
        let reaches = self.forgotten.as_mut().is_none_or(is_kept);
        if !reaches {
            self.forgotten = None;
        }
        reaches.then_some(lost)
    }
}
