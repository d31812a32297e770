//! A key on its way through the store, and what was known before the store was asked.

use super::Inner;
use crate::bus::Moment;
use crate::coherence::{FlightMeta, Lane, Rank, View, Word};
use crate::key::{HashedKey, Key};
use crate::store::Place;
use crate::time::Millis;
use bytes::Bytes;
use std::time::Duration;

/// A key on its way through the store, with everything that is derived from it.
pub(super) struct Target<K> {
    pub(super) key: K,
    pub(super) hash: u64,
    pub(super) lane: Lane,
    /// Canonical bytes, where the physical key does not end with them.
    bytes: Option<Bytes>,
    /// How many bytes of the physical key come before the canonical ones.
    before: usize,
    /// Physical key within the lane.
    pub(super) name: Bytes,
}

impl<K> Target<K> {
    pub(super) fn hashed(&self) -> HashedKey<'_> {
        HashedKey {
            hash: self.hash,
            bytes: match &self.bytes {
                Some(bytes) => bytes,
                None => &self.name[self.before..],
            },
        }
    }

    /// The physical key beside this one where a refresh of the value with the token `over` is leased. No
    /// key is named so: in a key's name a `%` stands before two hexadecimal digits.
    pub(super) fn name_beside(&self, over: u64) -> Bytes {
        let mut name = Vec::with_capacity(self.name.len() + 18);
        name.extend_from_slice(&self.name);
        name.extend_from_slice(format!("%~{over:016x}").as_bytes());
        Bytes::from(name)
    }

    pub(super) fn place<'a>(&'a self, entity: &'a str) -> Place<'a> {
        Place {
            lane: self.lane,
            hash: self.hash,
            entity,
            key: &self.name,
        }
    }
}

/// What was known before the store or the source was asked.
#[derive(Clone, Copy)]
pub(super) struct Began {
    pub(super) view: Option<View>,
    pub(super) start: Millis,
    /// The lane as it was before the view: its generation, and until when it was live.
    pub(super) word: Word,
    /// What this pod came to know of before this, what is read from here on reflects.
    pub(super) moment: Moment,
    /// Every lane was live until then, so that no tag can have been missed before.
    pub(super) tags_until: Millis,
}

impl Began {
    /// The same for what a replica answers. It is as fresh as the lane (hole H25): it may miss what was
    /// acknowledged after the confirmation that stands, and so counts as read when that began.
    pub(super) fn at_replica(&self, lease: Duration) -> Self {
        Self {
            start: self.start.min(self.word.confirmed_at(lease)),
            ..*self
        }
    }

    /// The rank of a value that is loaded from the source from here on, whatever the store says.
    pub(super) fn rank(&self) -> Option<Rank> {
        self.view.map(|view| view.applied)
    }

    /// What a flight that begins here starts from.
    pub(super) fn meta(&self) -> FlightMeta {
        FlightMeta {
            rank: self.rank().unwrap_or_default(),
            start: self.start,
            uncovered: self.view.is_none(),
        }
    }
}

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) fn target(&self, key: &K, hash: u64) -> Target<K> {
        let mut name = String::new();
        let (before, bytes) = key.with_bytes(|bytes| {
            self.keys.push_name(HashedKey { hash, bytes }, &mut name);
            // Most keys are plain text, which the name repeats.
            let before = name.len().saturating_sub(bytes.len());
            let repeated = &name.as_bytes()[before..] == bytes;
            (before, (!repeated).then(|| Bytes::copy_from_slice(bytes)))
        });
        let lane = self.bus().space.lane_of(hash);
        Target {
            key: key.clone(),
            hash,
            lane,
            bytes,
            before,
            name: Bytes::from(name),
        }
    }

    pub(super) fn began(&self, lane: Lane) -> Began {
        // The generation first: a flush between the two must show. The clock last, as for a hit.
        let bus = self.bus();
        let (moment, tags_until) = (bus.moment(), bus.liveness.until());
        let word = self.level.word(lane);
        Began {
            view: bus.view(lane),
            word,
            moment,
            tags_until,
            start: bus.clock.now(),
        }
    }
}
