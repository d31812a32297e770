//! What a load gives, how long it is kept, and what a reader is told of it.

use super::tagging::Tagged;
use crate::error::CacheError;
use crate::local::Slot;
use crate::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// What is cached: a value, or how its load failed.
pub(crate) type Outcome<V, E> = Result<Arc<V>, Arc<E>>;
/// An outcome as the local level keeps it.
pub(super) type Kept<V, E> = Slot<Outcome<V, E>>;

/// Where a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In this process.
    Local,
    /// In the backing store.
    Store,
    /// At the source, by the loader.
    Loader,
}

/// A value with how it was served; see [`Entity::get_with`](crate::Entity::get_with).
#[derive(Debug)]
#[non_exhaustive]
pub struct Served<V> {
    /// The value.
    pub value: Arc<V>,
    /// Where it was found.
    pub origin: Origin,
    /// How long ago its load from the source began, as far as this process can tell.
    pub age: Duration,
    /// Whether its time to live is over, and what is known of it.
    pub freshness: Freshness,
}

/// Whether a value is within its time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Freshness {
    /// It is.
    Fresh {
        /// How much of the source's recent past it may miss: an invalidation that was acknowledged
        /// longer ago than this is reflected.
        bound: Duration,
    },
    /// It is not, but within [grace](crate::EntityBuilder::grace), or no older than the call
    /// [allows](crate::ReadOptions::max_stale). Within grace it was not invalidated, as far as this pod
    /// may rely on. How much it misses is not known better than by its [age](Served::age).
    Stale {
        /// How long ago its time to live ended; zero if it has not.
        overdue: Duration,
        /// Why nothing fresh is served.
        reason: StaleReason,
    },
}

/// Why a stale value is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StaleReason {
    /// It is being refreshed behind the caller, by this pod or another one.
    Refreshing,
    /// The last attempt to load the key failed; the next one comes after
    /// [`retry_after`](crate::EntityBuilder::retry_after).
    LoadFailed,
    /// The last load outlasted its time limit: the soft one, the hard one, or the call's deadline.
    LoadTimedOut,
    /// Its time to live is over, and the call [allows](crate::ReadOptions::max_stale) it.
    Expired,
    /// This pod cannot tell whether it was invalidated, because the store has not answered within the
    /// bound, and the call [allows](crate::ReadOptions::max_stale) it.
    Unconfirmed,
    /// Its entity was cleared, or the log of its lane was lost, and the call
    /// [allows](crate::ReadOptions::max_stale) it.
    Invalidated,
}

impl Freshness {
    /// Of a value of which nothing else is said, or `stale`.
    pub(super) fn of(stale: Option<Stale>, bound: Duration) -> Self {
        match stale {
            Some(Stale { overdue, reason }) => Self::Stale { overdue, reason },
            None => Self::Fresh { bound },
        }
    }
}

impl<V> Served<V> {
    /// How much of the source's recent past the value may miss; `None` if it is stale, of which nothing
    /// such is said.
    #[must_use]
    pub fn bound(&self) -> Option<Duration> {
        match self.freshness {
            Freshness::Fresh { bound } => Some(bound),
            Freshness::Stale { .. } => None,
        }
    }

    /// Whether the value is past its time to live.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self.freshness, Freshness::Stale { .. })
    }
}

/// When a value is loaded anew that is past its time to live and within
/// [grace](crate::EntityBuilder::grace).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refresh {
    /// Behind the callers: they get the stale value at once, while one load runs in the background.
    #[default]
    Behind,
    /// Ahead of serving: callers wait for the load, and get the stale value only if it fails or
    /// outlasts [`soft_timeout`](crate::EntityBuilder::soft_timeout).
    Ahead,
}

/// Whether values that are read often are loaded anew shortly before their time to live ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EarlyRefresh {
    /// Yes, at random, the more likely the closer the end and the longer the load (XFetch).
    #[default]
    On,
    /// No.
    Off,
}

/// What is said of a stale value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub(super) overdue: Duration,
    pub(super) reason: StaleReason,
}

impl<V> Clone for Served<V> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            ..*self
        }
    }
}

/// How a flight ends, for everybody on board.
pub(super) struct Landed<V, E> {
    pub(super) outcome: Result<Arc<V>, CacheError<E>>,
    pub(super) origin: Origin,
    pub(super) age: Duration,
    /// Every invalidation that was acknowledged before this is reflected.
    pub(super) as_of: Millis,
    pub(super) stale: Option<Stale>,
    /// It is kept, or a value: no stale value may be served in its place.
    pub(super) settled: bool,
    /// The tags that it has, if it has any, and comes from a flight.
    pub(super) tagged: Option<Tagged>,
    /// It has tags: the lane of its key alone says nothing of how much it misses.
    pub(super) tied: bool,
}

impl<V, E> Clone for Landed<V, E> {
    fn clone(&self) -> Self {
        Self {
            outcome: self.outcome.clone(),
            tagged: self.tagged.clone(),
            ..*self
        }
    }
}

impl<V, E> Landed<V, E> {
    pub(super) fn new(
        outcome: &Outcome<V, E>,
        origin: Origin,
        age: Duration,
        as_of: Millis,
    ) -> Self {
        let outcome = outcome.clone().map_err(CacheError::Load);
        Self {
            outcome,
            origin,
            age,
            as_of,
            stale: None,
            settled: true,
            tagged: None,
            tied: false,
        }
    }

    /// A stale value.
    pub(super) fn into_stale(self, overdue: Duration, reason: StaleReason) -> Self {
        let stale = Some(Stale { overdue, reason });
        Self { stale, ..self }
    }

    pub(super) fn failed(error: CacheError<E>) -> Self {
        Self {
            outcome: Err(error),
            origin: Origin::Loader,
            age: Duration::ZERO,
            as_of: Millis::default(),
            stale: None,
            settled: false,
            tagged: None,
            tied: false,
        }
    }
}
