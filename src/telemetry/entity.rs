//! What one entity tells: each thing once, as a count, an event and a time.

use super::counts::EntityCounts;
use super::parts::Kept;
use super::stats::EntityStats;
use super::{Event, LoadFailure, PartCounts, Telemetry};
use crate::StaleReason;
use std::sync::Arc;
use std::time::Duration;

/// The counts of an entity, and the way to whoever follows the events.
pub(crate) struct EntityTelemetry {
    name: Arc<str>,
    counts: Arc<EntityCounts>,
    cache: Arc<Telemetry>,
    /// Whether hits are counted: for a bench that shows what that costs.
    #[cfg(feature = "testing")]
    counts_hits: bool,
}

impl EntityTelemetry {
    pub(crate) fn new(cache: &Arc<Telemetry>, name: &Arc<str>) -> Self {
        Self {
            #[cfg(feature = "testing")]
            counts_hits: true,
            name: Arc::clone(name),
            counts: Arc::default(),
            cache: Arc::clone(cache),
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn counting(self, counts_hits: bool) -> Self {
        Self {
            counts_hits,
            ..self
        }
    }

    /// Has all of it told with the cache's, as long as `kept` lives.
    pub(crate) fn begin(&self, kept: &Arc<impl Kept + 'static>) {
        let counts = PartCounts::Entity(Arc::clone(&self.counts));
        self.cache.add(&self.name, counts, kept);
    }

    pub(crate) fn stats(&self, kept: &dyn Kept) -> EntityStats {
        self.counts.stats(kept)
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// A read was answered by the local level.
    #[inline]
    pub(crate) fn hit(&self) {
        #[cfg(feature = "testing")]
        if !self.counts_hits {
            return;
        }
        self.counts.hits.add_one();
    }

    /// So many reads were not.
    pub(crate) fn missed(&self, reads: usize) {
        self.counts.misses.add(reads as u64);
    }

    /// A read that missed shares the way of another one.
    pub(crate) fn joined(&self) {
        self.counts.joins.add(1);
    }

    /// A read that missed was answered by the store.
    pub(crate) fn store_hit(&self) {
        self.counts.store_hits.add(1);
    }

    /// So many reads were answered by neither: they load.
    pub(crate) fn store_missed(&self, reads: usize) {
        self.counts.store_misses.add(reads as u64);
    }

    /// A read was given a value past its time to live.
    pub(crate) fn served_stale(&self, reason: StaleReason) {
        self.counts.served_stale(reason);
        self.cache.tell(|| Event::StaleServed {
            entity: self.name(),
            reason,
        });
    }

    /// A call of the loader ended, for one key or for many.
    pub(crate) fn load_took(&self, took: Duration) {
        self.counts.load_time.add(took);
        #[cfg(feature = "metrics")]
        self.cache.export.loaded(&self.name, took);
    }

    /// It gave a key a value or an error.
    pub(crate) fn loaded(&self, failed: bool) {
        self.counts.loads.add(1);
        if failed {
            self.counts.load_errors.add(1);
            self.load_failed(LoadFailure::Error);
        }
    }

    /// A loader panicked.
    pub(crate) fn load_aborted(&self) {
        self.counts.loads_aborted.add(1);
        self.load_failed(LoadFailure::Panicked);
    }

    /// A load was given up.
    pub(crate) fn load_timed_out(&self) {
        self.counts.loads_timed_out.add(1);
        self.load_failed(LoadFailure::TimedOut);
    }

    /// The source was behind what it is known to have: it is asked once more.
    pub(crate) fn load_behind(&self) {
        self.counts.loads_behind.add(1);
    }

    fn load_failed(&self, failure: LoadFailure) {
        self.cache.tell(|| Event::LoadFailed {
            entity: self.name(),
            failure,
        });
    }

    /// The store has taken an outcome, or refused it; or nobody knows.
    pub(crate) fn filled(&self, stored: Option<bool>) {
        match stored {
            Some(true) => self.counts.fills.add(1),
            Some(false) => {
                self.counts.fills_refused.add(1);
                self.cache.tell(|| Event::FillRefused {
                    entity: self.name(),
                });
            }
            None => self.counts.fills_failed.add(1),
        }
    }

    /// What the store had could not be used.
    pub(crate) fn unusable(&self, reason: &dyn std::error::Error) {
        self.counts.unusable.add(1);
        self.cache.tell(|| Event::UnusableValue {
            entity: self.name(),
            reason: reason.to_string(),
        });
    }

    /// So many local entries made room for others.
    pub(crate) fn evicted(&self, entries: usize) {
        self.counts.evicted.add(entries as u64);
    }

    /// A local entry was removed by an invalidation.
    pub(crate) fn invalidated(&self) {
        self.counts.invalidated.add(1);
    }
}
