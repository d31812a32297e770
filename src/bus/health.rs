//! How the cache is doing: what it tells operators.

use super::pace::Pace;
use super::{Bus, CircuitState, JournalHealth, lock};
use crate::coherence::Incarnation;
use crate::error::{StoreError, StoreErrorKind};
use crate::store::ServerReport;
use crate::time::Millis;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Whether the backing store can be used.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StoreState {
    /// Connected, subscribed and synced.
    Up,
    /// Not in use: reads go on from the local level within the bound and then from the loader, and
    /// invalidations wait. Attempts to connect go on for ever.
    Down {
        /// The last failure.
        reason: StoreError,
    },
}

/// A snapshot of how a cache is doing; see [`Cache::health`](crate::Cache::health).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Health {
    /// The backing store.
    pub store: StoreState,
    /// Whether reads ask the store, or go to the loaders at once because it gave several of them no
    /// answer. Invalidations and polls are made all the same.
    pub circuit: CircuitState,
    /// How often the circuit opened.
    pub circuit_openings: u64,
    /// Lanes that are confirmed and may be served from the local level.
    pub live_lanes: usize,
    /// Lanes in all.
    pub lanes: usize,
    /// How long ago the poll was sent that confirmed the lane which has waited longest; `None` if
    /// some lane was never confirmed.
    pub confirmed: Option<Duration>,
    /// The staleness bound: no read that is served as fresh misses an invalidation acknowledged
    /// longer ago than this.
    pub bound: Duration,
    /// What the server was found to be when the link in use, or the last one, was opened; `None` before
    /// the first.
    pub server: Option<Arc<ServerReport>>,
    /// Invalidations of this pod that the store has not acknowledged: calls that are made for the first
    /// time, and keys that are repeated, each counted once however often it was invalidated.
    pub pending: usize,
    /// How long the oldest of them has waited.
    pub oldest_pending: Option<Duration>,
    /// Pending invalidations that were merged into coarser ones, because there were more than
    /// [`CacheBuilder::max_pending`](crate::CacheBuilder::max_pending).
    pub merged_pending: u64,
    /// The file that keeps them over the end of the process, if there is one.
    pub journal: Option<JournalHealth>,
    /// Links that went up since the cache was built: 1 if the connection never broke.
    pub links: u64,
    /// Lanes whose local entries were dropped because their history was lost.
    pub flushes: u64,
    /// Hints received and carried out.
    pub hints: u64,
    /// Messages on the bus that were none of ours.
    pub rubbish_hints: u64,
    /// Messages of a kind that this version does not know, from pods of a later one. They do nothing.
    pub unknown_hints: u64,
    /// Times the log was read because hints were missing.
    pub catch_ups: u64,
    /// Stored values that could not be used and were taken for a miss.
    pub unusable_values: u64,
    /// Write guards of this pod that had ended before they were finished: see
    /// [`Finished::Lapsed`](crate::Finished::Lapsed).
    pub lapsed_guards: u64,
    /// Times that the store's clock had gone on by more than the bound further than this pod's: the
    /// machine was paused with its clock, or that is slow, or the store's was set. What was served
    /// meanwhile may have been as old as the pause.
    pub clock_stalls: u64,
}

impl Health {
    /// The staleness bound while one server takes over from another: Δ + G. `None` if nobody knows, or
    /// there is none: see [`FailoverWindow`](crate::store::FailoverWindow).
    #[must_use]
    pub fn failover_bound(&self) -> Option<Duration> {
        let window = self.server.as_ref()?.failover_window.bound()?;
        Some(self.bound + window)
    }
}

/// What the driver notes for others.
#[derive(Debug, Default)]
pub(super) struct Observed {
    server: Mutex<Option<Arc<ServerReport>>>,
    joined: AtomicBool,
    failure: Mutex<Option<StoreError>>,
    server_clock: ServerClock,
    poll_wanted: AtomicBool,
    flushes: AtomicU64,
    circuit_openings: AtomicU64,
    pub(super) hints: AtomicU64,
    pub(super) rubbish: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) catch_ups: AtomicU64,
    pub(super) unusable: AtomicU64,
    lapsed_guards: AtomicU64,
    pace: Mutex<Pace>,
    clock_stalls: AtomicU64,
}

/// How far the server's clock is ahead of the local one, in wrapping milliseconds: one word, because
/// each read of the store asks for it.
#[derive(Debug)]
struct ServerClock(AtomicU64);

impl ServerClock {
    /// Half of all time ahead or behind: no clock is.
    const UNKNOWN: u64 = 1 << 63;

    fn set(&self, server_ms: u64, local: Millis) {
        let ahead = server_ms.wrapping_sub(local.0);
        self.0.store(ahead, Ordering::Release);
    }

    fn at(&self, now: Millis) -> Option<u64> {
        let ahead = self.0.load(Ordering::Acquire);
        (ahead != Self::UNKNOWN).then(|| now.0.wrapping_add(ahead))
    }
}

impl Default for ServerClock {
    fn default() -> Self {
        Self(AtomicU64::new(Self::UNKNOWN))
    }
}

impl Observed {
    pub(super) fn failed(&self, error: StoreError) {
        *lock(&self.failure) = Some(error);
    }

    pub(super) fn inspected(&self, report: ServerReport) {
        *lock(&self.server) = Some(Arc::new(report));
    }

    pub(super) fn server(&self) -> Option<Arc<ServerReport>> {
        lock(&self.server).clone()
    }

    /// This pod has gone by the namespace's record.
    pub(super) fn joined(&self) {
        self.joined.store(true, Ordering::Release);
    }

    pub(super) fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire)
    }

    /// Why there is no link.
    pub(super) fn why_down(&self) -> StoreError {
        let failure = lock(&self.failure).clone();
        failure.unwrap_or_else(|| StoreError::new(StoreErrorKind::Unavailable, "connect"))
    }

    pub(super) fn polled(&self, server_ms: u64, sent: Millis) {
        // The server read its clock after the poll was sent, so counting from then errs late.
        self.server_clock.set(server_ms, sent);
    }

    pub(super) fn server_now(&self, now: Millis) -> Option<u64> {
        self.server_clock.at(now)
    }

    pub(super) fn ask_for_poll(&self) {
        self.poll_wanted.store(true, Ordering::Release);
    }

    pub(super) fn take_poll_wanted(&self) -> bool {
        self.poll_wanted.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_poll_wanted(&self) -> bool {
        self.poll_wanted.load(Ordering::Acquire)
    }

    pub(super) fn count_opening(&self) {
        self.circuit_openings.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bus {
    /// Counts a stored value that was of no use.
    pub(crate) fn count_unusable(&self) {
        self.observed.unusable.fetch_add(1, Ordering::Relaxed);
    }

    /// A poll was answered: compares the store's clock with this pod's.
    pub(super) fn compare_clocks(&self, server: (Incarnation, u64), sent: Millis) {
        let here = (sent, self.clock.now());
        let ahead = lock(&self.observed.pace).polled(server, here, self.bound());
        if let Some(ahead) = ahead {
            self.observed.clock_stalls.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(namespace = %self.namespace.name, ?ahead,
                "the store's clock went on further than this machine's, which may have been paused: \
                what was served meanwhile may be as old");
        }
    }

    pub(super) fn count_lapsed_guard(&self) {
        self.observed.lapsed_guards.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn health(&self) -> Health {
        let now = self.clock.now();
        let untils: Vec<_> = self
            .namespace
            .lanes()
            .map(|lane| self.live_until(lane))
            .collect();
        let oldest = untils.iter().min().copied().unwrap_or_default();
        let (pending, since) = self.calls.pending();
        Health {
            store: match self.link() {
                Ok(_) => StoreState::Up,
                Err(reason) => StoreState::Down { reason },
            },
            circuit: self.circuit(),
            circuit_openings: self.observed.circuit_openings.load(Ordering::Relaxed),
            live_lanes: untils.iter().filter(|&&until| now < until).count(),
            lanes: untils.len(),
            confirmed: (oldest.0 > 0).then(|| (now + self.rules.lease).since(oldest)),
            bound: self.bound(),
            server: self.observed.server(),
            pending,
            oldest_pending: since.map(|since| now.since(since)),
            merged_pending: self.calls.merged(),
            journal: self.journal_health(),
            links: *self.link_up.borrow(),
            flushes: self.observed.flushes.load(Ordering::Relaxed),
            hints: self.observed.hints.load(Ordering::Acquire),
            unknown_hints: self.observed.unknown.load(Ordering::Relaxed),
            rubbish_hints: self.observed.rubbish.load(Ordering::Relaxed),
            catch_ups: self.observed.catch_ups.load(Ordering::Relaxed),
            unusable_values: self.observed.unusable.load(Ordering::Relaxed),
            lapsed_guards: self.observed.lapsed_guards.load(Ordering::Relaxed),
            clock_stalls: self.observed.clock_stalls.load(Ordering::Relaxed),
        }
    }

    /// Δ: the length of a confirmation and what the coarse clock may lag.
    pub(crate) fn bound(&self) -> Duration {
        self.rules.lease + self.clock.slack()
    }
}
