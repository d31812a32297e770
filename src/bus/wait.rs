//! Waiting for what the driver learns: a position, anything new on a lane, the end of another pod's load.

use super::{Bus, Stamp, lock};
use crate::coherence::{Lane, Position};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::StoreResult;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a reader waits for its lane to reach a stamp: a poll, and a read of the log.
const REACH_LIMIT: Duration = Duration::from_millis(500);

impl Bus {
    /// Waits until everything up to `stamp` is applied.
    ///
    /// Epochs cannot be compared, and a stamp may be forged. But what a poll confirms that was sent after
    /// we were asked contains everything that was acknowledged before, whatever the stamp says.
    ///
    /// # Errors
    /// `Unavailable` if the store does not confirm anything in time.
    pub(crate) async fn reach(&self, stamp: &Stamp) -> StoreResult<()> {
        let asked = self.clock.now();
        let end = Instant::now() + REACH_LIMIT;
        let reached = |(lane, at): (Lane, Position)| {
            let view = self.view(lane).filter(|view| view.epoch == at.epoch);
            let applied = view.is_some_and(|view| view.applied.seq() >= at.seq);
            applied || self.live_until(lane) > asked + self.rules.lease
        };
        while Instant::now() < end {
            // Nothing is ever logged on a lane that the namespace has not.
            let mut ours = stamp
                .positions()
                .filter(|(lane, _)| lane.0 < self.namespace.lanes);
            if ours.all(reached) {
                return Ok(());
            }
            self.sync(REACH_LIMIT / 5).await;
        }
        let detail = "the lanes of the stamp were not confirmed in time";
        Err(StoreError::new(StoreErrorKind::Unavailable, "reach a stamp").with_detail(detail))
    }

    /// Asks the driver for a poll now, and waits until `lane` has learnt something or `limit` passed.
    pub(crate) async fn sync(&self, limit: Duration) {
        let learnt = self.synced.notified();
        self.ask_for_poll();
        // Out of time is as good as synced: whoever waits looks at the lane again either way.
        let _ = tokio::time::timeout(limit, learnt).await;
    }

    pub(crate) fn ask_for_poll(&self) {
        self.observed.ask_for_poll();
        self.nudge.notify_one();
    }

    /// Woken when a fill of `hash` is announced. Keep the handle while waiting.
    pub(crate) fn fill_waiter(&self, hash: u64) -> Arc<Notify> {
        let mut waiters = lock(&self.fill_waiters);
        waiters.retain(|_, waiter| Arc::strong_count(waiter) > 1);
        Arc::clone(waiters.entry(hash).or_default())
    }

    pub(super) fn wake_fill_waiters(&self, hash: u64) {
        if let Some(waiter) = lock(&self.fill_waiters).get(&hash) {
            waiter.notify_waiters();
        }
    }
}
