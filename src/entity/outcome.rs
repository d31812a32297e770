//! What a load gives, how long it is kept, and what a reader is told of it.

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
    /// How much of the source's recent past it may miss: an invalidation that was acknowledged longer
    /// ago than this is reflected.
    pub bound: Duration,
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
}

impl<V, E> Clone for Landed<V, E> {
    fn clone(&self) -> Self {
        Self {
            outcome: self.outcome.clone(),
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
        }
    }

    pub(super) fn failed(error: CacheError<E>) -> Self {
        Self {
            outcome: Err(error),
            origin: Origin::Loader,
            age: Duration::ZERO,
            as_of: Millis::default(),
        }
    }
}
