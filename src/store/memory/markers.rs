//! The markers of one lane: which keys are being written, by which guards, and until when; and which version
//! the source has of a key at least.

use crate::store::Markers;
use std::collections::BTreeMap;

use super::values::expiry;

/// How many keys are looked at for ended markers by a step that leaves some: more than the one key that
/// most steps add, so that what dead writers left shrinks.
const SWEEP: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Marker {
    guard: u64,
    /// The millisecond at which it is gone.
    ends_ms: u64,
}

/// The version that the source has of a key at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Minimum {
    version: u64,
    /// The millisecond from which it is not known any more.
    ends_ms: u64,
}

/// The marked keys of a lane by their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct MarkedKeys {
    written: BTreeMap<u64, Vec<Marker>>,
    minimums: BTreeMap<u64, Minimum>,
}

impl MarkedKeys {
    /// Whether anybody is writing the key.
    pub(super) fn stands(&self, hash: u64, now_ms: u64) -> bool {
        let markers = self.written.get(&hash);
        markers.is_some_and(|markers| markers.iter().any(|marker| now_ms < marker.ends_ms))
    }

    /// The version that the source has of the key at least, if that is known.
    pub(super) fn minimum(&self, hash: u64, now_ms: u64) -> Option<u64> {
        let minimum = self.minimums.get(&hash)?;
        (now_ms < minimum.ends_ms).then_some(minimum.version)
    }

    /// Lifts and leaves markers for keys; gives how many of those that were to be lifted stood.
    pub(super) fn change(&mut self, hashes: &[u64], change: Markers, now_ms: u64) -> usize {
        let left = change.leave.and_then(|(guard, ttl)| {
            let ends_ms = expiry(now_ms, Some(ttl))?;
            Some(Marker { guard, ends_ms })
        });
        let mut stood = 0;
        for &hash in hashes {
            stood += usize::from(self.change_one(hash, change.lift, left, now_ms));
            if let Some((version, life)) = change.minimum
                && let Some(ends_ms) = expiry(now_ms, Some(life))
            {
                self.remember(hash, Minimum { version, ends_ms }, now_ms);
            }
        }
        if left.is_some() || change.minimum.is_some() {
            self.sweep(hashes, now_ms);
        }
        stood
    }

    /// Of two that stand the higher one counts, until the later end.
    fn remember(&mut self, hash: u64, minimum: Minimum, now_ms: u64) {
        let there = self.minimums.get(&hash);
        let there = there.filter(|there| now_ms < there.ends_ms);
        let both = there.map_or(minimum, |there| Minimum {
            version: there.version.max(minimum.version),
            ends_ms: there.ends_ms.max(minimum.ends_ms),
        });
        self.minimums.insert(hash, both);
    }

    fn change_one(
        &mut self,
        hash: u64,
        lift: Option<u64>,
        left: Option<Marker>,
        now_ms: u64,
    ) -> bool {
        let mut markers = self.written.remove(&hash).unwrap_or_default();
        markers.retain(|marker| now_ms < marker.ends_ms);
        let stood = lift.is_some_and(|lift| markers.iter().any(|marker| marker.guard == lift));
        let stays = |marker: &Marker| {
            Some(marker.guard) != lift && left.is_none_or(|left| left.guard != marker.guard)
        };
        markers.retain(stays);
        markers.extend(left);
        if !markers.is_empty() {
            self.written.insert(hash, markers);
        }
        stood
    }

    /// Drops what has ended of the keys that follow these in the order of hashes, around the end.
    fn sweep(&mut self, hashes: &[u64], now_ms: u64) {
        let after = hashes.last().copied().unwrap_or_default();
        let ended = |markers: &Vec<Marker>| markers.iter().all(|marker| marker.ends_ms <= now_ms);
        sweep(&mut self.written, after, ended);
        sweep(&mut self.minimums, after, |minimum| {
            minimum.ends_ms <= now_ms
        });
    }
}

fn sweep<T>(all: &mut BTreeMap<u64, T>, after: u64, ended: impl Fn(&T) -> bool) {
    let following = all.range(after..).chain(all.range(..after));
    let some = following.skip(1).take(SWEEP);
    let dead: Vec<_> = some
        .filter(|(_, one)| ended(one))
        .map(|(hash, _)| *hash)
        .collect();
    for hash in dead {
        all.remove(&hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn leave(guard: u64) -> Markers {
        Markers {
            leave: Some((guard, SECOND)),
            ..Markers::default()
        }
    }

    fn at_least(version: u64) -> Markers {
        Markers {
            minimum: Some((version, SECOND)),
            ..Markers::default()
        }
    }

    fn lift(guard: u64) -> Markers {
        Markers {
            lift: Some(guard),
            ..Markers::default()
        }
    }

    #[test]
    fn a_marker_stands_until_it_is_lifted_or_ends_whatever_others_do() {
        let mut marked = MarkedKeys::default();
        assert_eq!(marked.change(&[1, 2], leave(7), 0), 0);
        assert_eq!(marked.change(&[1], leave(8), 500), 0);
        assert_eq!(marked.change(&[1], lift(7), 600), 1);
        assert_eq!(marked.change(&[1], lift(7), 600), 0, "once");
        assert!(marked.stands(1, 1499) && !marked.stands(1, 1500));
        assert!(marked.stands(2, 999) && !marked.stands(2, 1000));
        assert_eq!(marked.change(&[2], lift(7), 1000), 0, "too late");
        assert_eq!(marked.change(&[1], lift(8), 1499), 1);
        assert_eq!(marked, MarkedKeys::default(), "nothing is left behind");
    }

    #[test]
    fn what_dead_writers_left_is_swept_by_those_who_write_other_keys() {
        let mut marked = MarkedKeys::default();
        for hash in 0..100 {
            marked.change(&[hash], leave(hash), 0);
        }
        for hash in 1000..1040 {
            marked.change(&[hash], leave(1), 5000);
        }
        let written = &marked.written;
        assert!(written.keys().all(|hash| *hash >= 1000), "{written:?}");
    }

    #[test]
    fn the_highest_minimum_counts_until_the_latest_end_and_lifts_no_marker() {
        let mut marked = MarkedKeys::default();
        marked.change(&[1], leave(7), 0);
        assert_eq!(marked.change(&[1], at_least(5), 0), 0);
        assert_eq!(marked.change(&[1], at_least(4), 500), 0);
        assert!(marked.stands(1, 999));
        assert_eq!(marked.minimum(1, 1499), Some(5));
        assert_eq!(
            (marked.minimum(1, 1500), marked.minimum(2, 0)),
            (None, None)
        );
        marked.change(&[1], at_least(3), 1500);
        assert_eq!(
            marked.minimum(1, 1500),
            Some(3),
            "what has ended is forgotten"
        );
    }

    #[test]
    fn minimums_that_have_ended_are_swept_by_those_who_write_other_keys() {
        let mut marked = MarkedKeys::default();
        for hash in 0..100 {
            marked.change(&[hash], at_least(1), 0);
        }
        for hash in 1000..1040 {
            marked.change(&[hash], at_least(1), 5000);
        }
        let minimums = &marked.minimums;
        assert!(minimums.keys().all(|hash| *hash >= 1000), "{minimums:?}");
    }
}
