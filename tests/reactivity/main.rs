//! What reactivity promises, on the embedded store and on Redis: one test for each promise and store.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/servers.rs"]
mod servers;

mod bed;

mod batches;
mod gaps;
mod handlers;
mod queries;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tidings::{Cache, Registration};

/// Counts the runs of a handler.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicU64>);

impl Runs {
    fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }

    fn more(&self) -> u64 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// Counts from now on.
    fn on<const N: usize>(&self, cache: &Cache, tags: [&str; N]) -> Registration {
        let runs = self.clone();
        cache.reactivity().on(tags, move |_| {
            runs.more();
            async {}
        })
    }

    async fn reach(&self, count: u64) {
        let what = format!("run number {count}");
        bed::eventually(&what, async || self.count() >= count).await;
    }
}

/// Something that every pod is told of after all that was invalidated before by `cache`: when it has
/// arrived at `at`, whatever else was going to arrive has.
async fn settle(cache: &Cache, at: &Cache, tag: &str) {
    // Tags of one key are logged on one lane, in order.
    let seen = Runs::default();
    let _last = seen.on(at, [tag]);
    cache.invalidate([tag]).await.unwrap();
    seen.reach(1).await;
}
