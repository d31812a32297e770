//! Which keys are being refreshed, and which are to be left alone for a while because that failed.

use super::outcome::StaleReason;
use crate::bus::lock;
use crate::time::Millis;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys remembered at most: half a megabyte. Beyond that some are tried sooner than they should be.
const KEYS: usize = 16_384;

/// The refreshes of one entity in this pod, under way or failed lately. Each mark ends by itself, so
/// that nothing depends on somebody taking it back.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    marks: Mutex<HashMap<u64, Mark>>,
    /// How many there are, for the many who only need to know that there is none.
    count: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    until: Millis,
    reason: StaleReason,
}

impl Attempts {
    /// Marks `hash` as being refreshed for that long, unless there is a mark already: then why there is.
    pub(super) fn begin(&self, hash: u64, now: Millis, until: Millis) -> Result<(), StaleReason> {
        let reason = StaleReason::Refreshing;
        let mut marks = lock(&self.marks);
        match marks.get(&hash) {
            Some(mark) if now < mark.until => return Err(mark.reason),
            _ => {}
        }
        self.set(&mut marks, hash, now, Mark { until, reason });
        Ok(())
    }

    /// Lets nobody begin until then.
    pub(super) fn rest(&self, hash: u64, now: Millis, until: Millis, reason: StaleReason) {
        self.set(&mut lock(&self.marks), hash, now, Mark { until, reason });
    }

    /// Why nobody may begin now, if so.
    pub(super) fn resting(&self, hash: u64, now: Millis) -> Option<StaleReason> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mark = lock(&self.marks).get(&hash).copied()?;
        (now < mark.until).then_some(mark.reason)
    }

    /// The key was loaded, or there is nothing to wait for.
    pub(super) fn clear(&self, hash: u64) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut marks = lock(&self.marks);
            marks.remove(&hash);
            self.count.store(marks.len(), Ordering::Relaxed);
        }
    }

    fn set(&self, marks: &mut HashMap<u64, Mark>, hash: u64, now: Millis, mark: Mark) {
        if marks.len() >= KEYS {
            marks.retain(|_, mark| now < mark.until);
        }
        if marks.len() >= KEYS {
            marks.clear();
        }
        marks.insert(hash, mark);
        self.count.store(marks.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_begun_once_and_again_when_its_mark_ends() {
        let attempts = Attempts::default();
        assert_eq!(attempts.begin(1, Millis(0), Millis(10)), Ok(()));
        let busy = Err(StaleReason::Refreshing);
        assert_eq!(attempts.begin(1, Millis(9), Millis(20)), busy);
        assert_eq!(attempts.begin(2, Millis(9), Millis(20)), Ok(()));
        assert_eq!(attempts.begin(1, Millis(10), Millis(20)), Ok(()));
    }

    #[test]
    fn a_key_that_failed_rests_and_says_why_until_it_is_cleared() {
        let attempts = Attempts::default();
        assert_eq!(attempts.resting(1, Millis(0)), None);
        attempts.rest(1, Millis(0), Millis(5), StaleReason::LoadFailed);
        assert_eq!(
            attempts.resting(1, Millis(4)),
            Some(StaleReason::LoadFailed)
        );
        assert_eq!(attempts.resting(1, Millis(5)), None);
        attempts.clear(1);
        assert_eq!(attempts.begin(1, Millis(1), Millis(9)), Ok(()));
    }

    #[test]
    fn the_memory_is_bounded_and_lets_go_of_what_is_over_first() {
        let attempts = Attempts::default();
        attempts.rest(0, Millis(0), Millis(100), StaleReason::LoadFailed);
        for hash in 1..KEYS as u64 {
            attempts.rest(hash, Millis(0), Millis(5), StaleReason::LoadFailed);
        }
        attempts.rest(u64::MAX, Millis(9), Millis(100), StaleReason::LoadFailed);
        assert!(attempts.resting(0, Millis(9)).is_some());
        assert_eq!(lock(&attempts.marks).len(), 2);
    }
}
