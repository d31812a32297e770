//! Two small memories: what a load usually takes, and what was logged lately.

use crate::bus::lock;
use crate::time::Millis;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
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
    fn a_key_is_logged_once_a_minute() {
        let gate = LogGate::default();
        assert!(gate.may_log(1, Millis(5)));
        assert!(!gate.may_log(1, Millis(60_004)));
        assert!(gate.may_log(2, Millis(6)));
        assert!(gate.may_log(1, Millis(60_005)));
    }
}
