//! The counts of the outboxes that one cache delivers.

use super::counts::Count;
use crate::bus::lock;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Of all outboxes together.
#[derive(Debug, Default)]
pub(crate) struct OutboxCounts {
    pub(crate) delivered: Count,
    pub(crate) refused: Count,
    pub(crate) failures: Count,
    waits: Mutex<Vec<Weak<Wait>>>,
}

/// Since when the oldest row of one outbox waits, if one does.
#[derive(Debug, Default)]
pub(crate) struct Wait(Mutex<Option<Instant>>);

impl OutboxCounts {
    /// For one more outbox, for as long as it is delivered.
    #[cfg(feature = "postgres")]
    pub(crate) fn add(&self) -> Arc<Wait> {
        let wait = Arc::<Wait>::default();
        let mut waits = lock(&self.waits);
        waits.retain(|wait| wait.strong_count() > 0);
        waits.push(Arc::downgrade(&wait));
        wait
    }

    /// How long the oldest row of all has waited.
    #[cfg(feature = "metrics")]
    pub(super) fn lag(&self) -> Duration {
        let waits: Vec<Arc<Wait>> = lock(&self.waits).iter().filter_map(Weak::upgrade).collect();
        let lags = waits.iter().map(|wait| wait.lag());
        lags.max().unwrap_or_default()
    }
}

impl Wait {
    #[cfg(feature = "postgres")]
    pub(crate) fn set(&self, since: Option<Instant>) {
        *lock(&self.0) = since;
    }

    pub(crate) fn lag(&self) -> Duration {
        lock(&self.0).map_or(Duration::ZERO, |since| since.elapsed())
    }
}
