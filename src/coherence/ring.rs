//! What this pod had logged lately, so that it can be logged again if the log's tail was lost.

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
    /// What the entry carries: hashes of the keys, or the hash of the entity.
    pub hashes: Vec<u64>,
    /// The physical keys, for an invalidation.
    pub keys: Vec<Bytes>,
    /// The entity, for a clear.
    pub entity: Arc<str>,
}

/// The acknowledged calls of the last while, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ring(VecDeque<(Position, Millis, Arc<Call>)>);

impl Ring {
    /// How long a call is remembered: longer than any failover that replication survives.
    pub const RETENTION: Duration = Duration::from_secs(60);
    /// How many calls a lane remembers at most.
    pub const CAPACITY: usize = 4096;

    /// Remembers a call that was logged at `at`.
    pub fn push(&mut self, at: Position, call: Arc<Call>, now: Millis) {
        while self.0.len() >= Self::CAPACITY
            || self
                .0
                .front()
                .is_some_and(|(_, then, _)| now > *then + Self::RETENTION)
        {
            self.0.pop_front();
        }
        self.0.push_back((at, now, call));
    }

    /// Keeps the calls that are on the timeline of `head`, and gives back those that its store lost.
    ///
    /// After a fence nothing that they removed can come back, so nothing is given back.
    pub fn take_lost(&mut self, head: &Head) -> Vec<Arc<Call>> {
        let mut lost = Vec::new();
        self.0.retain_mut(|(at, _, call)| {
            let shared = head.fork && at.epoch == head.prev_epoch && at.seq <= head.fork_seq;
            if shared {
                at.epoch = head.at.epoch;
            }
            let kept = at.epoch == head.at.epoch;
            if !kept && head.fork {
                lost.push(Arc::clone(call));
            }
            kept
        });
        lost
    }
}
