//! What this pod has invalidated and the store has not acknowledged: a table of distinct items, each
//! repeated on its own until it is.
//!
//! A call enters when its first attempt has failed, key by key. The same key again joins what is there.
//! The table is bounded; at the bound it forgets nothing but *which* keys: the fullest entity of a lane
//! becomes one item, all of that entity on that lane, and what is left when even that does not help, all
//! of a lane. Each is more than was asked for, so nothing stale can come of it.

mod item;
mod table;

pub(crate) use item::{Item, Name};
pub(super) use table::Table;

use super::waiter::Waiter;
use super::{Bus, Journal, lock};
use crate::random::random_part;
use crate::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// Items pending at most unless [`CacheBuilder::max_pending`] says otherwise: some 20 MB, and well under
/// a second of scripts for the store when it comes back.
///
/// [`CacheBuilder::max_pending`]: crate::CacheBuilder::max_pending
pub const DEFAULT_MAX_PENDING: usize = 10_000;
/// The fewest that can be asked for: some for each of 16 lanes.
pub(crate) const LEAST_MAX_PENDING: usize = 64;
/// Items of one lane that are repeated at the same time: the trouble of one lane holds up no other.
pub(super) const TURNS: usize = 16;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// How invalidations that the store has not acknowledged are kept.
#[derive(Debug)]
pub(crate) struct PendingOptions {
    /// How many at most.
    pub(crate) max: usize,
    pub(crate) journal: Option<Journal>,
}

impl Default for PendingOptions {
    fn default() -> Self {
        Self {
            max: DEFAULT_MAX_PENDING,
            journal: None,
        }
    }
}

impl Bus {
    /// Takes what a call invalidates into the table, and sees to it that it is repeated. The call's own
    /// fences may go once this has returned.
    pub(super) fn enter(self: &Arc<Self>, items: Vec<Item>, since: Millis, waiter: &Arc<Waiter>) {
        let mut begun = Vec::new();
        {
            let mut table = lock(&self.calls.table);
            for item in items {
                let changes = table.add(item, since, Arc::clone(waiter));
                // The new fences before the old ones go, and both before anybody else looks.
                for (item, _) in &changes.begun {
                    self.fence_off(item.fenced());
                    self.note(item);
                }
                for item in &changes.merged {
                    self.heal(item.fenced());
                    self.strike(item);
                }
                begun.retain(|(item, _)| !changes.merged.contains(item));
                if !changes.merged.is_empty() {
                    tracing::warn!(namespace = %self.namespace.name, pending = table.len(),
                        merged = changes.merged.len(), into = %changes.begun[0].0,
                        "too many invalidations are pending: some were merged into coarser ones");
                }
                begun.extend(changes.begun);
            }
        }
        for (item, task) in begun {
            self.spawn_until_shutdown(Arc::clone(self).repeat(item, task));
        }
    }

    /// Repeats an item until the store has acknowledged it, or it has gone into a coarser one.
    async fn repeat(self: Arc<Self>, item: Item, task: u64) {
        let lane = item.lane();
        let mut backoff = BACKOFF_MIN;
        loop {
            self.wait_for_link(jittered(backoff)).await;
            // Never closed.
            let _turn = self.calls.turns[usize::from(lane.0)].acquire().await;
            let Some(number) = lock(&self.calls.table).attempt(&item, task) else {
                return;
            };
            let attempt = match item.call() {
                Some(call) => {
                    let extra = self.extra_again(&call);
                    self.attempt(lane, &Arc::new(call), &extra).await
                }
                None => self.void(lane).await,
            };
            let position = match attempt {
                Ok(position) => position,
                Err(error) => {
                    tracing::debug!(namespace = %self.namespace.name, %item, %error,
                        "invalidation still not acknowledged");
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            let served = {
                let mut table = lock(&self.calls.table);
                let served = table.acknowledge(&item, task, number);
                if let Some((_, true)) = served {
                    self.heal(item.fenced());
                    self.strike(&item);
                }
                served
            };
            let Some((served, all)) = served else {
                return;
            };
            for waiter in served {
                if let Some((call, since)) = waiter.acknowledged(position) {
                    let after = self.clock.now().since(*since);
                    self.telemetry.acknowledged(call, after);
                }
            }
            if all {
                self.calls.ended();
                return self.flush_journal().await;
            }
            backoff = BACKOFF_MIN;
        }
    }

    /// Waits for `pause`, or less if a link goes up meanwhile, or for a link if there is none: an attempt
    /// without one cannot succeed.
    async fn wait_for_link(&self, pause: Duration) {
        let mut link_up = self.link_up.subscribe();
        // A closed channel cannot be, for we hold its sender.
        if self.link().is_err() {
            let _ = link_up.changed().await;
        } else {
            let _ = tokio::time::timeout(pause, link_up.changed()).await;
        }
    }
}

/// Between half of `mean` and one and a half of it.
fn jittered(mean: Duration) -> Duration {
    mean / 2 + mean.mul_f64(random_part())
}
