//! What this pod had logged lately, so that it can be logged again if the log's tail was lost.

use super::{Epoch, Kind, Position};
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

    /// Forgets everything, giving back what was logged in `epoch` after `fork_seq`: the calls that a
    /// successor who forked off there does not know.
    pub fn take_orphans(&mut self, epoch: Epoch, fork_seq: u64) -> Vec<Arc<Call>> {
        self.0
            .drain(..)
            .filter(|(at, _, _)| at.epoch == epoch && at.seq > fork_seq)
            .map(|(_, _, call)| call)
            .collect()
    }
}
