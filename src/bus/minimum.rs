//! Which versions the source is known to have of keys, at least: what this pod said itself, and what the
//! store told it with leases.
//!
//! The store's word is what counts. This is for when the store cannot be asked, and so that an invalidation
//! that is repeated says again what the first attempt at it said.

use super::attempt::Extra;
use super::guard::{MAX_GUARD_TTL, OwnedMarkers};
use super::{Bus, InvalidateError, Stamp, lock};
use crate::coherence::{Call, Lane};
use crate::store::Markers;
use crate::time::Millis;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long it is remembered which version the source has at least: as long as a pod that cannot ask the
/// store reckons with what it does not know, and longer than a replica should lag behind that anybody reads
/// from.
pub const MINIMUM_VERSION_TTL: Duration = MAX_GUARD_TTL;

/// Keys remembered in a pod at most: half a megabyte. Beyond that those go first that are over, and then
/// all.
const KEYS: usize = 16_384;

/// By the hashes of keys.
#[derive(Debug, Default)]
pub(super) struct Minimums {
    known: Mutex<HashMap<u64, Minimum>>,
    /// How many there are, for the many who only need to know that there is none.
    count: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Minimum {
    version: u64,
    until: Millis,
}

impl Minimums {
    fn note(&self, hash: u64, version: u64, now: Millis) {
        let mut known = lock(&self.known);
        if known.len() >= KEYS {
            known.retain(|_, minimum| now < minimum.until);
        }
        if known.len() >= KEYS {
            known.clear();
        }
        let there = known.get(&hash).filter(|there| now < there.until);
        let version = there.map_or(version, |there| there.version.max(version));
        let until = now + MINIMUM_VERSION_TTL;
        known.insert(hash, Minimum { version, until });
        self.count.store(known.len(), Ordering::Release);
    }

    fn of(&self, hash: u64, now: Millis) -> Option<u64> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let known = lock(&self.known);
        let minimum = known.get(&hash).filter(|minimum| now < minimum.until)?;
        Some(minimum.version)
    }
}

impl Bus {
    /// Has the keys of `calls` invalidated, and it remembered that the source has this version of them at
    /// least.
    pub(crate) async fn announce_minimum(
        self: &Arc<Self>,
        calls: Vec<(Lane, Call)>,
        version: u64,
    ) -> Result<Stamp, InvalidateError> {
        // Before the fences: a load that begins behind those knows of it.
        for hash in calls.iter().flat_map(|(_, call)| call.key_hashes()) {
            self.note_minimum(*hash, version);
        }
        self.announce_with(calls, || minimum(version)).await
    }

    /// The source has this version of a key at least.
    pub(crate) fn note_minimum(&self, hash: u64, version: u64) {
        self.minimums.note(hash, version, self.clock.now());
    }

    /// The version that the source has of a key at least, as far as this pod knows.
    pub(crate) fn minimum(&self, hash: u64) -> Option<u64> {
        self.minimums.of(hash, self.clock.now())
    }

    /// What goes with a call that is repeated, by this pod or for another life of the store.
    pub(super) fn extra_again(&self, call: &Call) -> Extra {
        match call.key_hashes() {
            [hash] => self.minimum(*hash).map_or(Extra::Nothing, minimum),
            _ => Extra::Nothing,
        }
    }
}

fn minimum(version: u64) -> Extra {
    let markers = Markers {
        minimum: Some((version, MINIMUM_VERSION_TTL)),
        ..Markers::default()
    };
    OwnedMarkers::extra(markers, &Arc::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_counts_until_its_time_is_over() {
        let minimums = Minimums::default();
        assert_eq!(minimums.of(1, Millis(0)), None);
        minimums.note(1, 7, Millis(0));
        minimums.note(1, 5, Millis(1000));
        let end = Millis(1000) + MINIMUM_VERSION_TTL;
        assert_eq!(minimums.of(1, Millis(end.0 - 1)), Some(7));
        assert_eq!(
            (minimums.of(1, end), minimums.of(2, Millis(0))),
            (None, None)
        );
        minimums.note(1, 3, end);
        assert_eq!(minimums.of(1, end), Some(3));
    }

    #[test]
    fn the_memory_is_bounded_and_lets_go_of_what_is_over_first() {
        let minimums = Minimums::default();
        let late = Millis(0) + MINIMUM_VERSION_TTL;
        minimums.note(0, 1, Millis(1));
        for hash in 1..KEYS as u64 {
            minimums.note(hash, 1, Millis(0));
        }
        minimums.note(u64::MAX, 1, late);
        assert_eq!(minimums.of(0, late), Some(1));
        assert_eq!(lock(&minimums.known).len(), 2);
    }
}
