//! Three small memories: what a load usually takes, how much of a list the store usually lacks, and what
//! was logged lately.

use crate::bus::lock;
use crate::time::Millis;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// An exponentially weighted mean of load times; the newest counts an eighth.
#[derive(Debug, Default)]
pub(super) struct UsualLoad(AtomicU64);

impl UsualLoad {
    pub(super) fn add(&self, took: Duration) {
        let took = u64::try_from(took.as_micros())
            .unwrap_or(u64::MAX / 8)
            .max(1);
        let mean = |old: u64| {
            if old == 0 {
                took
            } else {
                old - old / 8 + took / 8
            }
        };
        // Never fails: the closure always gives a value.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(mean(old)));
    }

    /// `None` before the first load.
    pub(super) fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }
}

/// What part of the keys of lists the store has, of those it was asked for lately: in parts of
/// [`ALL`](Self::ALL), so that to begin with, when nothing is known, there is nothing.
#[derive(Debug, Default)]
pub(super) struct UsualMisses(AtomicU32);

impl UsualMisses {
    const ALL: u64 = 1 << 16;
    /// A list of so many keys counts as much as all before it together.
    const KEYS: u64 = 100;
    /// From here on lists are read before what is missing is leased. Leases of keys that are there cost
    /// 4.2 reads, and leases of those that are not a trip less (`docs/decisions/batch-reads.md`): even is
    /// where three quarters are missing.
    const FEW: u64 = Self::ALL / 4;

    /// Takes note of how many keys of a list of `all` the store did not have.
    pub(super) fn add(&self, missing: usize, all: usize) {
        let (missing, all) = (missing as u64, all as u64);
        let mean = |old: u32| {
            let sum = u64::from(old) * Self::KEYS + (all - missing) * Self::ALL;
            u32::try_from(sum / (Self::KEYS + all)).unwrap_or(u32::MAX)
        };
        // Never fails: the closure always gives a value.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some(mean(old)));
    }

    /// Whether most of a list is likely to be missing.
    pub(super) fn are_most(&self) -> bool {
        u64::from(self.0.load(Ordering::Relaxed)) <= Self::FEW
    }
}

/// Lets one message per key and minute through.
#[derive(Debug, Default)]
pub(super) struct LogGate(Mutex<HashMap<u64, Millis>>);

impl LogGate {
    const PAUSE: Duration = Duration::from_secs(60);
    /// Keys remembered at most; then all are forgotten.
    const KEYS: usize = 1024;

    pub(super) fn may_log(&self, key: u64, now: Millis) -> bool {
        let mut logged = lock(&self.0);
        if logged
            .get(&key)
            .is_some_and(|&then| now < then + Self::PAUSE)
        {
            return false;
        }
        if logged.len() >= Self::KEYS {
            logged.clear();
        }
        logged.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_load_follows_what_loads_take() {
        let usual = UsualLoad::default();
        assert_eq!(usual.get(), None);
        usual.add(Duration::from_millis(80));
        assert_eq!(usual.get(), Some(Duration::from_millis(80)));
        for _ in 0..100 {
            usual.add(Duration::from_millis(8));
        }
        let settled = usual.get().map_or(0, |usual| usual.as_millis());
        assert!((7..=9).contains(&settled), "{settled}");
        usual.add(Duration::MAX);
    }

    #[test]
    fn misses_are_most_until_lists_are_found_and_again_when_they_are_not() {
        let misses = UsualMisses::default();
        assert!(misses.are_most());
        misses.add(100, 100);
        misses.add(10, 10);
        assert!(misses.are_most());
        misses.add(1, 100);
        assert!(!misses.are_most());
        for _ in 0..1_000 {
            misses.add(0, 1_000);
        }
        misses.add(100, 100);
        assert!(
            !misses.are_most(),
            "one list of as many keys is half of what counts"
        );
        misses.add(100, 100);
        assert!(misses.are_most());
        misses.add(0, 1);
        assert!(!misses.are_most());
        misses.add(0, 0);
        misses.add(usize::MAX >> 20, usize::MAX >> 20);
        assert!(misses.are_most());
    }

    #[test]
    fn a_key_is_logged_once_a_minute() {
        let gate = LogGate::default();
        assert!(gate.may_log(1, Millis(5)));
        assert!(!gate.may_log(1, Millis(60_004)));
        assert!(gate.may_log(2, Millis(6)));
        assert!(gate.may_log(1, Millis(60_005)));
    }
}
