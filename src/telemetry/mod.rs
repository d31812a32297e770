//! What a cache tells of itself: counts, events, and instruments for whoever collects them.
//!
//! ```text
//! every room ──▶ counts ──▶ stats()                         plain numbers, always there
//!        │          └─────▶ sampled four times a second ──▶ `metrics`   feature `metrics`
//!        └─────▶ feed ────▶ events()                        bounded, lossy, counted
//! ```
//!
//! Nothing here is on the way of a local hit but one number that its thread alone writes ([`Striped`]).
//! What is exported is read off the counts by the sampler, so a recorder costs readers nothing;
//! only times are recorded as they are measured, and those are of calls that left the process.

#[cfg(feature = "metrics")]
mod catalogue;
mod counts;
mod entity;
mod events;
#[cfg(feature = "metrics")]
mod export;
#[cfg(any(feature = "postgres", feature = "metrics"))]
mod outbox;
mod parts;
mod span;
mod stats;

pub(crate) use counts::{MemoCounts, RoomCounts};
pub(crate) use entity::EntityTelemetry;
pub use events::{EVENTS_KEPT, Event, Events, LoadFailure};
#[cfg(any(feature = "postgres", feature = "metrics"))]
pub(crate) use outbox::OutboxCounts;
#[cfg(feature = "postgres")]
pub(crate) use outbox::Wait;
pub(crate) use parts::{Kept, PartCounts};
pub(crate) use span::spanned;
pub use stats::{
    CacheStats, EntityStats, InvalidationStats, MemoStats, PresenceStats, StoreCallStats,
};

use crate::bus::{Health, lock};
use crate::coherence::{Call, Change, Lane};
use crate::error::StoreError;
use counts::BusCounts;
use events::Feed;
use parts::Parts;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What one cache tells.
#[derive(Debug)]
pub(crate) struct Telemetry {
    feed: Arc<Feed>,
    pub(crate) counts: BusCounts,
    #[cfg(any(feature = "postgres", feature = "metrics"))]
    pub(crate) outbox: Arc<OutboxCounts>,
    /// Calls of the store that have ended, by operation.
    store: Mutex<BTreeMap<&'static str, StoreCallStats>>,
    parts: Parts,
    #[cfg(feature = "metrics")]
    export: export::Export,
}

impl Telemetry {
    #[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "a label"))]
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            feed: Arc::default(),
            counts: BusCounts::default(),
            #[cfg(any(feature = "postgres", feature = "metrics"))]
            outbox: Arc::default(),
            store: Mutex::default(),
            parts: Parts::default(),
            #[cfg(feature = "metrics")]
            export: export::Export::new(namespace),
        }
    }

    /// Tells whoever follows the events; nothing is made if nobody does.
    #[inline]
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        self.feed.tell(event);
    }

    pub(crate) fn follow(&self) -> Events {
        Events::of(&self.feed)
    }

    /// There will be no more events.
    pub(crate) fn close(&self) {
        self.feed.close();
    }

    /// A call of the store has ended after `took`.
    pub(crate) fn store_called(&self, operation: &'static str, took: Duration, failed: bool) {
        {
            let mut store = lock(&self.store);
            let calls = store.entry(operation).or_default();
            calls.calls += 1;
            calls.failed += u64::from(failed);
            calls.time += took;
        }
        #[cfg(feature = "metrics")]
        self.export.store_called(operation, took, failed);
    }

    /// This pod begins an invalidation, or a piece of one.
    pub(crate) fn invalidating(&self, call: &Call) {
        self.counts.sent.add(1);
        self.tell(|| Event::InvalidationSent {
            entity: Arc::clone(&call.entity),
            keys: call.keys.len(),
        });
    }

    /// The store has acknowledged it.
    pub(crate) fn acknowledged(&self, call: &Call, after: Duration) {
        self.counts.acknowledged.add(1);
        self.tell(|| Event::InvalidationAcknowledged {
            entity: Arc::clone(&call.entity),
            keys: call.keys.len(),
            after,
        });
        #[cfg(feature = "metrics")]
        self.export.acknowledged(after);
    }

    /// An attempt to have the store acknowledge it has failed.
    pub(crate) fn not_acknowledged(&self, call: &Call, reason: &StoreError) {
        self.tell(|| Event::InvalidationPending {
            entity: Arc::clone(&call.entity),
            keys: call.keys.len(),
            reason: reason.clone(),
        });
    }

    /// Another pod's invalidation is carried out here.
    pub(crate) fn received(&self, change: &Change) {
        self.counts.received.add(1);
        self.tell(|| Event::InvalidationReceived {
            keys: change.keys.len(),
        });
    }

    /// An invalidation is missing on `lane`.
    pub(crate) fn noticed_gap(&self, lane: Lane) {
        self.counts.gaps.add(1);
        self.tell(|| Event::Gap { lane: lane.0 });
    }

    /// How long ago, by the server's clock, the message was published that came just now.
    pub(crate) fn lagged(&self, lag: Duration) {
        self.counts.lag.set(lag);
        #[cfg(feature = "metrics")]
        self.export.lagged(lag);
    }

    /// Has the counts of an entity or a memo told with the cache's, as long as `kept` lives.
    pub(crate) fn add(&self, name: &Arc<str>, counts: PartCounts, kept: &Arc<impl Kept + 'static>) {
        let kept: std::sync::Weak<dyn Kept> = Arc::downgrade(&(Arc::clone(kept) as Arc<dyn Kept>));
        self.parts.add(Arc::clone(name), counts, kept);
    }

    /// Buries parts that are gone, and exports what was counted.
    pub(crate) fn sample(
        &self,
        health: impl FnOnce() -> Health,
        presence: impl FnOnce() -> PresenceStats,
    ) {
        let living = self.parts.living();
        // Those whose last word is in what is exported now.
        let gone: Vec<_> = living.iter().filter(|part| part.is_gone()).collect();
        #[cfg(feature = "metrics")]
        self.export.sample(
            &self.counts,
            &self.outbox,
            self.feed.lost(),
            &health(),
            &presence(),
            &living,
        );
        #[cfg(not(feature = "metrics"))]
        drop((health, presence));
        gone.into_iter().for_each(|part| self.parts.bury(part));
    }

    pub(crate) fn stats(&self, presence: PresenceStats) -> CacheStats {
        let (entities, memos) = self.parts.totals();
        CacheStats {
            entities,
            memos,
            invalidations: self.counts.read(),
            presence,
            store: lock(&self.store).clone(),
            events_lost: self.feed.lost(),
        }
    }
}
