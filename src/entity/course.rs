//! The flights of an entity: what each started from, and by which levels it goes.

use super::outcome::Landed;
use crate::coherence::FlightMeta;
use crate::flight;

pub(super) type Flights<K, V, E> = flight::Flights<K, Landed<V, E>, Course>;
pub(super) type Boarding<K, V, E> = flight::Boarding<K, Landed<V, E>, Course>;
pub(super) type Guard<K, V, E> = flight::Guard<K, Landed<V, E>, Course>;
pub(super) type Waiter<K, V, E> = flight::Waiter<K, Landed<V, E>, Course>;

/// The levels that a read does not look into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Skips {
    pub(super) local: bool,
    pub(super) store: bool,
}

impl Skips {
    pub(super) const NONE: Self = Self {
        local: false,
        store: false,
    };

    /// Whether whoever skips `other` may be given what a read gives that skips these.
    pub(super) fn cover(self, other: Self) -> bool {
        self.local >= other.local && self.store >= other.store
    }
}

/// What a flight started from, and the way it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub(super) meta: FlightMeta,
    pub(super) skips: Skips,
}
