//! The part of the port that keeps raw data: bytes under keys, and hashes of fields. No coherence, no
//! log, no hints: a store does what it is told, and everybody sees it at once.

use super::{BoxFuture, StoreResult};
use crate::coherence::Lane;
use bytes::Bytes;
use std::time::Duration;

/// Where raw data lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawPlace<'a> {
    /// The lane of the key. It only spreads keys over the nodes of a store, yet is part of the place.
    pub lane: Lane,
    /// The prefix, percent-encoded: printable, without `:` and the characters of patterns.
    pub prefix: &'a str,
    /// Any bytes.
    pub key: &'a [u8],
}

/// A key that a scan found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawFound {
    /// The lane it stands on.
    pub lane: Lane,
    /// The key, without the prefix.
    pub key: Bytes,
}

impl RawFound {
    /// Where it stands.
    #[must_use]
    pub fn place<'a>(&'a self, prefix: &'a str) -> RawPlace<'a> {
        RawPlace {
            lane: self.lane,
            prefix,
            key: &self.key,
        }
    }
}

/// One step of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawPage<T> {
    /// What was found; may be empty before the end.
    pub items: Vec<T>,
    /// Where the next step begins, in the store's own terms; `None` at the end.
    pub next: Option<Bytes>,
}

/// Raw data of a [`Link`](super::Link). Each method is one round trip; one that takes many places makes
/// each change by itself, and no more than about a thousand come at once.
///
/// Under a key stands a value or a hash. What asks for one and finds the other fails as
/// [`WrongType`](crate::StoreErrorKind::WrongType). A time to live is at least a millisecond, its
/// remainders round up, and what has reached its end is gone; `None` is for ever.
///
/// # Errors
/// As those of [`Link`](super::Link), and `WrongType`.
///
/// # Cancel safety
/// As that of [`Link`](super::Link).
pub trait RawLink: Send + Sync {
    /// The values of `places`, in order.
    fn get<'a>(
        &'a self,
        places: &'a [RawPlace<'a>],
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>>;

    /// Stores values, whatever stands there: with `ttl`, and without what was left of the old one.
    fn set<'a>(
        &'a self,
        entries: &'a [(RawPlace<'a>, &'a [u8])],
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<()>>;

    /// Removes values and hashes; how many were there.
    fn remove<'a>(&'a self, places: &'a [RawPlace<'a>]) -> BoxFuture<'a, StoreResult<u64>>;

    /// Changes how long a value or hash is kept; whether it is there.
    fn expire<'a>(
        &'a self,
        place: RawPlace<'a>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<bool>>;

    /// Removes `removing` (keys of `prefix`) and gives their number, then some keys under `prefix` from
    /// where the last step ended. A key that is there from the first step to the last is given at least
    /// once. Bounded in what it looks at, however many keys there are.
    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a [u8]>,
        removing: &'a [RawFound],
    ) -> BoxFuture<'a, StoreResult<(u64, RawPage<RawFound>)>>;

    /// The value of a field.
    fn hash_get<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>>;

    /// Sets fields of a hash, all at once; how many are new. Neither an empty list nor a hash that is
    /// there already changes how long it is kept; a new hash is kept for ever.
    fn hash_set<'a>(
        &'a self,
        place: RawPlace<'a>,
        fields: &'a [(&'a [u8], &'a [u8])],
    ) -> BoxFuture<'a, StoreResult<u64>>;

    /// Removes a field, and with the last one the hash; whether it was there.
    fn hash_remove<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<bool>>;

    /// How many fields a hash has.
    fn hash_len<'a>(&'a self, place: RawPlace<'a>) -> BoxFuture<'a, StoreResult<u64>>;

    /// Some fields of a hash and their values, as [`scan`](Self::scan) gives keys.
    fn hash_scan<'a>(
        &'a self,
        place: RawPlace<'a>,
        from: Option<&'a [u8]>,
    ) -> BoxFuture<'a, StoreResult<RawPage<(Bytes, Bytes)>>>;
}
