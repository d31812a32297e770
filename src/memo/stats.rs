//! What a memo counts.

use crate::bus::lock;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Threads that count their hits without meeting any other: all that run at a time, and as many again
/// that wait.
const SEATS_PER_CORE: usize = 2;

/// What a memo did since it was built, and what it holds; see [`Memo::stats`](crate::Memo::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoStats {
    /// Calls of `get` that were answered from memory.
    pub hits: u64,
    /// Calls of `get` that were not.
    pub misses: u64,
    /// Calls of `get` and `refresh` that joined a computation under way.
    pub joins: u64,
    /// Computations that ended, with a value or an error. Those that were dropped or panicked are not
    /// among them.
    pub loads: u64,
    /// Those of them that ended with an error.
    pub load_errors: u64,
    /// The time that they took together.
    pub load_time: Duration,
    /// Entries that had to make room for others; `None` if the engine does not tell.
    pub evictions: Option<u64>,
    /// Entries kept, the expired ones that nothing has replaced yet included.
    pub entries: u64,
    /// What the entries weigh together; their number if the memo is bounded by number.
    pub weight: u64,
}

#[derive(Debug)]
pub(super) struct Counters {
    /// One for each seat.
    hits: Box<[Padded]>,
    rare: Rare,
}

/// Two cache lines to itself, since they are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

/// What is counted where something was computed anyway.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Rare {
    /// Of threads without a seat.
    hits: AtomicU64,
    misses: AtomicU64,
    joins: AtomicU64,
    loads: AtomicU64,
    load_errors: AtomicU64,
    load_nanos: AtomicU64,
    evictions: AtomicU64,
}

impl Counters {
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            hits: (0..cores * SEATS_PER_CORE)
                .map(|_| Padded::default())
                .collect(),
            rare: Rare::default(),
        }
    }

    #[inline]
    pub(super) fn hit(&self) {
        match seat().and_then(|seat| self.hits.get(seat)) {
            // Nobody else writes it, so this loses nothing; and it is a quarter of the price.
            Some(Padded(hits)) => hits.store(hits.load(Relaxed) + 1, Relaxed),
            None => {
                self.rare.hits.fetch_add(1, Relaxed);
            }
        }
    }

    pub(super) fn missed(&self) {
        self.rare.misses.fetch_add(1, Relaxed);
    }

    pub(super) fn joined(&self) {
        self.rare.joins.fetch_add(1, Relaxed);
    }

    pub(super) fn loaded(&self, took: Duration, failed: bool) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.rare.load_nanos.fetch_add(nanos, Relaxed);
        self.rare.load_errors.fetch_add(failed.into(), Relaxed);
        self.rare.loads.fetch_add(1, Relaxed);
    }

    pub(super) fn evicted(&self, entries: u64) {
        self.rare.evictions.fetch_add(entries, Relaxed);
    }

    /// The counted part.
    pub(super) fn read(&self) -> MemoStats {
        let seated = self.hits.iter().map(|hits| hits.0.load(Relaxed));
        MemoStats {
            hits: self.rare.hits.load(Relaxed) + seated.sum::<u64>(),
            misses: self.rare.misses.load(Relaxed),
            joins: self.rare.joins.load(Relaxed),
            loads: self.rare.loads.load(Relaxed),
            load_errors: self.rare.load_errors.load(Relaxed),
            load_time: Duration::from_nanos(self.rare.load_nanos.load(Relaxed)),
            evictions: Some(self.rare.evictions.load(Relaxed)),
            ..MemoStats::default()
        }
    }
}

/// The number of this thread, which no other thread has at the same time; the lowest that was free.
///
/// What one thread wrote under a number is seen by the next to take it: the lock is between them.
#[inline]
fn seat() -> Option<usize> {
    struct Seat(usize);

    impl Seat {
        fn take() -> Self {
            let mut seats = lock(&SEATS);
            let free = seats.free.pop_first();
            Self(free.unwrap_or_else(|| {
                seats.taken += 1;
                seats.taken - 1
            }))
        }
    }

    impl Drop for Seat {
        fn drop(&mut self) {
            lock(&SEATS).free.insert(self.0);
        }
    }

    struct Seats {
        taken: usize,
        free: BTreeSet<usize>,
    }

    static SEATS: Mutex<Seats> = Mutex::new(Seats {
        taken: 0,
        free: BTreeSet::new(),
    });
    thread_local!(static SEAT: Seat = Seat::take());
    // A thread that is ending has none any more.
    SEAT.try_with(|seat| seat.0).ok()
}
