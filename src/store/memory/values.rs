//! The values of one lane, with their expiry.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::layout::{Front, State};

/// How many expired values one write removes: more than the one it may add, so that what is dead
/// shrinks as long as anything is written.
const SWEEP: usize = 4;
/// How many leases an eviction steps over to find a value.
const SPARED_LEASES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    /// The millisecond at which it is gone.
    expires_ms: Option<u64>,
}

/// Values by key. `by_expiry` is derived from `by_key`; it adds no state of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Values {
    by_key: BTreeMap<Bytes, Stored>,
    by_expiry: BTreeSet<(u64, Bytes)>,
}

/// When something stored at `now_ms` for `ttl` is gone: the next whole millisecond, at least one.
pub(super) fn expiry(now_ms: u64, ttl: Option<Duration>) -> Option<u64> {
    let ms = ttl?.as_nanos().div_ceil(1_000_000).max(1);
    Some(now_ms.saturating_add(u64::try_from(ms).unwrap_or(u64::MAX)))
}

impl Values {
    pub(super) fn get(&self, key: &[u8], now_ms: u64) -> Option<&Bytes> {
        let stored = self.by_key.get(key)?;
        let gone = stored.expires_ms.is_some_and(|at| now_ms >= at);
        (!gone).then_some(&stored.bytes)
    }

    /// Replaces the bytes under a key that exists, leaving its expiry.
    pub(super) fn replace(&mut self, key: &[u8], bytes: Bytes) {
        if let Some(stored) = self.by_key.get_mut(key) {
            stored.bytes = bytes;
        }
    }

    /// Whether what stands under `key` stays as long as it would if it were stored now for `ttl`.
    pub(super) fn outlives(&self, key: &[u8], ttl: Option<Duration>, now_ms: u64) -> bool {
        let ends = |at: Option<u64>| at.unwrap_or(u64::MAX);
        let stored = self.by_key.get(key);
        stored.is_some_and(|stored| ends(stored.expires_ms) >= ends(expiry(now_ms, ttl)))
    }

    /// Stores, sweeps a few expired values, and evicts one if there are more than `capacity`.
    pub(super) fn insert(
        &mut self,
        key: &[u8],
        bytes: Bytes,
        ttl: Option<Duration>,
        now_ms: u64,
        capacity: usize,
    ) {
        self.sweep(now_ms);
        self.remove(key);
        let key = Bytes::copy_from_slice(key);
        let expires_ms = expiry(now_ms, ttl);
        if let Some(at) = expires_ms {
            self.by_expiry.insert((at, key.clone()));
        }
        self.by_key
            .insert(key.clone(), Stored { bytes, expires_ms });
        if self.by_key.len() > capacity {
            self.evict_beside(&key);
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        let Some((key, stored)) = self.by_key.remove_entry(key) else {
            return false;
        };
        if let Some(at) = stored.expires_ms {
            self.by_expiry.remove(&(at, key));
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEEP {
            match self.by_expiry.first() {
                Some((at, _)) if now_ms >= *at => {
                    let (_, key) = self.by_expiry.pop_first().expect("it has a first element");
                    self.by_key.remove(&key);
                }
                _ => return,
            }
        }
    }

    /// Evicts the value that follows `key` in the order of keys, around the end. That is the oldest
    /// for keys that grow, an arbitrary one for others, and needs no bookkeeping. Leases are spared:
    /// evicting one would refuse the fill of somebody who is loading.
    fn evict_beside(&mut self, key: &Bytes) {
        let after = (Bound::Excluded(key), Bound::Unbounded);
        let mut others = self
            .by_key
            .range::<Bytes, _>(after)
            .chain(self.by_key.range::<Bytes, _>(..key));
        let lease = |bytes: &[u8]| {
            Front::read(bytes).is_some_and(|front| matches!(front.state, State::Lease { .. }))
        };
        let first = others.clone().next().map(|(key, _)| key.clone());
        let victim = others
            .by_ref()
            .take(SPARED_LEASES)
            .find(|(_, stored)| !lease(&stored.bytes))
            .map(|(key, _)| key.clone())
            .or(first);
        if let Some(victim) = victim {
            self.remove(&victim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn put(values: &mut Values, key: &'static [u8], ttl: Option<Duration>, now: u64) {
        values.insert(key, Bytes::from_static(b"v"), ttl, now, 3);
    }

    #[test]
    fn expiry_is_inclusive_and_rounds_up() {
        assert_eq!(expiry(10, Some(Duration::ZERO)), Some(11));
        assert_eq!(expiry(10, Some(MS + Duration::from_nanos(1))), Some(12));
        assert_eq!(expiry(10, Some(Duration::MAX)), Some(u64::MAX));
        let mut values = Values::default();
        put(&mut values, b"k", Some(MS), 10);
        assert!(values.get(b"k", 10).is_some());
        assert!(values.get(b"k", 11).is_none());
    }

    #[test]
    fn writes_sweep_what_has_expired_wherever_it_stands() {
        let mut values = Values::default();
        put(&mut values, b"b", Some(MS), 0);
        put(&mut values, b"z", Some(MS), 0);
        put(&mut values, b"k", None, 1);
        assert_eq!((values.len(), values.by_expiry.len()), (1, 0));
    }

    #[test]
    fn a_full_lane_evicts_values_before_leases_and_never_the_newcomer() {
        let lease = Front {
            state: State::Lease { waited: false },
            token: 1,
            epoch: crate::coherence::Epoch(1),
            seq: 1,
        };
        let lease = Bytes::copy_from_slice(&lease.write());
        let mut values = Values::default();
        put(&mut values, b"a", None, 0);
        values.insert(b"c", lease.clone(), Some(MS), 0, 3);
        put(&mut values, b"d", None, 0);
        values.insert(b"b", lease, Some(MS), 0, 3);
        assert!(values.get(b"d", 0).is_none(), "the next value in order");
        put(&mut values, b"e", None, 0);
        assert!(values.get(b"a", 0).is_none(), "around the end");
        assert_eq!(values.len(), 3);
        assert!(values.get(b"e", 0).is_some());
    }

    #[test]
    fn replacing_bytes_keeps_the_expiry() {
        let mut values = Values::default();
        put(&mut values, b"k", Some(MS), 0);
        values.replace(b"k", Bytes::from_static(b"w"));
        assert_eq!(values.get(b"k", 0), Some(&Bytes::from_static(b"w")));
        assert!(values.get(b"k", 1).is_none());
    }
}
