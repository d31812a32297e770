//! What can be pending: a key, an entity on a lane, or a lane.

use crate::bus::fences::Fenced;
use crate::coherence::{Call, Kind, Lane};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// An entity or group, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) text: Arc<str>,
    pub(crate) hash: u64,
}

/// One thing to be invalidated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    /// One key: its hash and physical key.
    Key {
        lane: Lane,
        of: Name,
        hash: u64,
        key: Bytes,
    },
    /// Every key of an entity on a lane.
    Entity { lane: Lane, of: Name },
    /// Everything on a lane.
    Lane { lane: Lane },
}

impl Item {
    /// What `call` invalidates.
    pub(in crate::bus) fn of(lane: Lane, call: &Call) -> Vec<Self> {
        let of = Name {
            text: Arc::clone(&call.entity),
            hash: call.entity_hash(),
        };
        if call.kind == Kind::Clear {
            return vec![Self::Entity { lane, of }];
        }
        let keys = call.key_hashes().iter().zip(&call.keys);
        let item = |(&hash, key): (&u64, &Bytes)| Self::Key {
            lane,
            of: of.clone(),
            hash,
            key: key.clone(),
        };
        keys.map(item).collect()
    }

    /// The call that invalidates it; there is none for a whole lane.
    pub(in crate::bus) fn call(&self) -> Option<Call> {
        match self {
            Self::Key { of, hash, key, .. } => {
                let keys = [(*hash, key.clone())];
                Some(Call::invalidate(&of.text, of.hash, &keys))
            }
            Self::Entity { of, .. } => Some(Call::clear(&of.text, of.hash)),
            Self::Lane { .. } => None,
        }
    }

    pub(crate) fn lane(&self) -> Lane {
        let (Self::Key { lane, .. } | Self::Entity { lane, .. } | Self::Lane { lane }) = self;
        *lane
    }

    pub(in crate::bus) fn fenced(&self) -> Fenced {
        match self {
            Self::Key { lane, hash, .. } => Fenced::Key(*lane, *hash),
            Self::Entity { lane, of } => Fenced::Entity(*lane, of.hash),
            Self::Lane { lane } => Fenced::Lane(*lane),
        }
    }

    /// What is invalid when this is and more, the least first.
    pub(in crate::bus) fn covers(&self) -> [Option<Self>; 2] {
        let lane = Self::Lane { lane: self.lane() };
        match self {
            Self::Key { lane: on, of, .. } => {
                let entity = Self::Entity {
                    lane: *on,
                    of: of.clone(),
                };
                [Some(entity), Some(lane)]
            }
            Self::Entity { .. } => [Some(lane), None],
            Self::Lane { .. } => [None, None],
        }
    }
}

/// As the tag that names it, as far as it has one.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, .. } => f.write_str(&String::from_utf8_lossy(key)),
            Self::Entity { lane, of } => write!(f, "{} (lane {})", of.text, lane.0),
            Self::Lane { lane } => write!(f, "everything (lane {})", lane.0),
        }
    }
}
