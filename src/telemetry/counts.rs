//! Numbers that only grow, and cost next to nothing to move.

use super::parts::Kept;
use super::stats::{EntityStats, InvalidationStats, MemoStats, PresenceStats};
use crate::StaleReason;
use crate::bus::lock;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that threads share: for what happens where something was done anyway.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Time that was spent, together.
#[derive(Debug, Default)]
pub(crate) struct TimeSpent(Count);

impl TimeSpent {
    pub(crate) fn add(&self, more: Duration) {
        let nanos = u64::try_from(more.as_nanos()).unwrap_or(u64::MAX);
        self.0.add(nanos);
    }

    pub(crate) fn get(&self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
}

/// The last of some durations.
#[derive(Debug)]
pub(crate) struct Last(AtomicU64);

impl Last {
    const NONE: u64 = u64::MAX;

    pub(crate) fn set(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(Self::NONE - 1);
        self.0.store(micros, Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        let micros = self.0.load(Relaxed);
        (micros != Self::NONE).then(|| Duration::from_micros(micros))
    }
}

impl Default for Last {
    fn default() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }
}

// --- what the bus counts -------------------------------------------------------------------------

#[derive(Debug, Default)]
pub(crate) struct BusCounts {
    pub(crate) sent: Count,
    pub(crate) acknowledged: Count,
    pub(crate) received: Count,
    pub(crate) gaps: Count,
    pub(crate) lag: Last,
}

impl BusCounts {
    pub(super) fn read(&self) -> InvalidationStats {
        InvalidationStats {
            sent: self.sent.get(),
            acknowledged: self.acknowledged.get(),
            received: self.received.get(),
            gaps: self.gaps.get(),
            last_lag: self.lag.get(),
        }
    }
}

// --- what rooms count ----------------------------------------------------------------------------

#[derive(Debug, Default)]
pub(crate) struct RoomCounts {
    pub(crate) beats: Count,
    pub(crate) lost: Count,
    pub(crate) sweeps: Count,
    pub(crate) losses: Count,
}

impl RoomCounts {
    /// What was counted, in `rooms` with so many `members` now.
    pub(crate) fn stats(&self, rooms: usize, members: usize) -> PresenceStats {
        PresenceStats {
            rooms: rooms as u64,
            members: members as u64,
            heartbeats: self.beats.get(),
            heartbeats_lost: self.lost.get(),
            sweeps: self.sweeps.get(),
            losses: self.losses.get(),
        }
    }
}

// --- what an entity counts -----------------------------------------------------------------------

#[derive(Debug, Default)]
pub(crate) struct EntityCounts {
    pub(crate) hits: Striped,
    pub(crate) misses: Count,
    pub(crate) joins: Count,
    pub(crate) store_hits: Count,
    pub(crate) store_misses: Count,
    pub(crate) loads: Count,
    pub(crate) load_errors: Count,
    pub(crate) loads_aborted: Count,
    pub(crate) loads_timed_out: Count,
    pub(crate) loads_behind: Count,
    pub(crate) load_time: TimeSpent,
    pub(crate) fills: Count,
    pub(crate) fills_refused: Count,
    pub(crate) fills_failed: Count,
    stale_while_refreshing: Count,
    stale_after_failure: Count,
    stale_after_timeout: Count,
    stale_as_allowed: Count,
    pub(crate) unusable: Count,
    pub(crate) evicted: Count,
    pub(crate) invalidated: Count,
}

impl EntityCounts {
    pub(crate) fn served_stale(&self, reason: StaleReason) {
        let count = match reason {
            StaleReason::Refreshing => &self.stale_while_refreshing,
            StaleReason::LoadFailed => &self.stale_after_failure,
            StaleReason::LoadTimedOut => &self.stale_after_timeout,
            StaleReason::Expired | StaleReason::Invalidated | StaleReason::Unconfirmed => {
                &self.stale_as_allowed
            }
        };
        count.add(1);
    }

    /// What was counted, and what is kept now.
    pub(crate) fn stats(&self, kept: &dyn Kept) -> EntityStats {
        let counted = self.read();
        EntityStats {
            entries: kept.entries(),
            weight: kept.weight(),
            evicted: counted.evicted.filter(|_| kept.tells_evicted()),
            ..counted
        }
    }

    /// The counted part.
    pub(super) fn read(&self) -> EntityStats {
        EntityStats {
            hits: self.hits.sum(),
            misses: self.misses.get(),
            joins: self.joins.get(),
            store_hits: self.store_hits.get(),
            store_misses: self.store_misses.get(),
            loads: self.loads.get(),
            load_errors: self.load_errors.get(),
            loads_aborted: self.loads_aborted.get(),
            loads_timed_out: self.loads_timed_out.get(),
            loads_behind: self.loads_behind.get(),
            load_time: self.load_time.get(),
            fills: self.fills.get(),
            fills_refused: self.fills_refused.get(),
            fills_failed: self.fills_failed.get(),
            stale_while_refreshing: self.stale_while_refreshing.get(),
            stale_after_failure: self.stale_after_failure.get(),
            stale_after_timeout: self.stale_after_timeout.get(),
            stale_as_allowed: self.stale_as_allowed.get(),
            unusable: self.unusable.get(),
            evicted: Some(self.evicted.get()),
            invalidated: self.invalidated.get(),
            ..EntityStats::default()
        }
    }
}

// --- what a memo counts --------------------------------------------------------------------------

#[derive(Debug, Default)]
pub(crate) struct MemoCounts {
    pub(crate) hits: Striped,
    pub(crate) misses: Count,
    pub(crate) joins: Count,
    loads: Count,
    load_errors: Count,
    load_time: TimeSpent,
    pub(crate) evicted: Count,
}

impl MemoCounts {
    pub(crate) fn loaded(&self, took: Duration, failed: bool) {
        self.load_time.add(took);
        self.load_errors.add(failed.into());
        self.loads.add(1);
    }

    /// What was counted, and what is kept now.
    pub(crate) fn stats(&self, kept: &dyn Kept) -> MemoStats {
        let counted = self.read();
        MemoStats {
            entries: kept.entries(),
            weight: kept.weight(),
            evictions: counted.evictions.filter(|_| kept.tells_evicted()),
            ..counted
        }
    }

    /// The counted part.
    pub(super) fn read(&self) -> MemoStats {
        MemoStats {
            hits: self.hits.sum(),
            misses: self.misses.get(),
            joins: self.joins.get(),
            loads: self.loads.get(),
            load_errors: self.load_errors.get(),
            load_time: self.load_time.get(),
            evictions: Some(self.evicted.get()),
            ..MemoStats::default()
        }
    }
}

// --- what every hit counts -----------------------------------------------------------------------

/// Threads that count without meeting any other: all that run at a time, and as many again that wait.
const SEATS_PER_CORE: usize = 2;

/// A number that each thread moves in a place of its own, so that hits of several threads do not wait
/// for each other.
#[derive(Debug)]
pub(crate) struct Striped {
    /// One for each seat.
    seats: Box<[Padded]>,
    /// Of threads without a seat.
    others: Padded,
}

/// Two cache lines to itself, since they are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

impl Default for Striped {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let seats = (0..cores * SEATS_PER_CORE).map(|_| Padded::default());
        Self {
            seats: seats.collect(),
            others: Padded::default(),
        }
    }
}

impl Striped {
    #[inline]
    pub(crate) fn add_one(&self) {
        match seat().and_then(|seat| self.seats.get(seat)) {
            // Nobody else writes it, so this loses nothing; and it is a quarter of the price.
            Some(Padded(mine)) => mine.store(mine.load(Relaxed) + 1, Relaxed),
            None => {
                self.others.0.fetch_add(1, Relaxed);
            }
        }
    }

    pub(crate) fn sum(&self) -> u64 {
        let seated = self.seats.iter().map(|count| count.0.load(Relaxed));
        self.others.0.load(Relaxed) + seated.sum::<u64>()
    }
}

/// The number of this thread, which no other thread has at the same time; the lowest that was free.
///
/// What one thread wrote under a number is seen by the next to take it: the lock is between them.
#[inline]
fn seat() -> Option<usize> {
    match NUMBER.get() {
        NONE => take_seat(),
        number => Some(number),
    }
}

/// No number.
const NONE: usize = usize::MAX;

thread_local! {
    /// The number of this thread's seat. Beside the seat itself, because asking something that has to be
    /// made first, and dropped at last, costs a hit more than counting it.
    static NUMBER: Cell<usize> = const { Cell::new(NONE) };
    static SEAT: Seat = Seat::take();
}

/// A thread that is ending has none any more.
#[cold]
fn take_seat() -> Option<usize> {
    SEAT.try_with(|seat| seat.0).ok()
}

struct Seat(usize);

struct Seats {
    taken: usize,
    free: BTreeSet<usize>,
}

static SEATS: Mutex<Seats> = Mutex::new(Seats {
    taken: 0,
    free: BTreeSet::new(),
});

impl Seat {
    fn take() -> Self {
        let mut seats = lock(&SEATS);
        let number = seats.free.pop_first().unwrap_or(seats.taken);
        seats.taken = seats.taken.max(number + 1);
        NUMBER.set(number);
        Self(number)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        NUMBER.set(NONE);
        lock(&SEATS).free.insert(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn no_count_of_many_threads_is_lost() {
        let count = Striped::default();
        // More threads than there are seats, and again when those of the first have been given back.
        for round in 1..=3 {
            thread::scope(|scope| {
                for _ in 0..count.seats.len() + 5 {
                    scope.spawn(|| (0..1000).for_each(|_| count.add_one()));
                }
            });
            assert_eq!(count.sum(), round * 1000 * (count.seats.len() as u64 + 5));
        }
    }

    #[test]
    fn the_last_of_no_durations_is_none() {
        let last = Last::default();
        assert_eq!(last.get(), None);
        last.set(Duration::from_millis(3));
        assert_eq!(last.get(), Some(Duration::from_millis(3)));
    }
}
