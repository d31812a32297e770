//! Pods at work for as long as you like while servers fail over every twenty seconds, by plan and by
//! surprise, and pods are stopped and killed between: what they did is recorded, and
//! [checked](history) against what is promised; what they use is sampled, and must not
//! [grow](growth); what the store acknowledged must be [in the log](timeline) in the end.
//!
//! No two pods that work side by side have the same [options].
//!
//! `TIDINGS_SOAK_SECONDS` is how long it goes on, `TIDINGS_SOAK_EVERY` the time between two failovers,
//! `TIDINGS_SOAK_OPTIONS` the number of the first pod's options.
#![cfg(all(feature = "redis", target_os = "linux"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod crew;
mod event;
mod ground;
mod growth;
mod pod;
mod run;
mod timeline;

#[path = "../faults/history.rs"]
mod history;
#[path = "../faults/options.rs"]
mod options;

use ground::{Sentinels, Shards};

/// One pod, when this program is run for it. As a test of its own, it does nothing.
#[test]
fn pod() {
    if let Some(orders) = pod::Orders::from_env() {
        pod::run(orders);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_by_sentinels_break_no_promise_and_leave_nothing_behind() {
    run::soak("sentinels", 0, Sentinels::start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_of_a_cluster_break_no_promise_and_leave_nothing_behind() {
    run::soak("cluster", 3, Shards::start).await;
}
