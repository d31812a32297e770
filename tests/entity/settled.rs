//! Waiting until no pod can serve the old value any more.

use crate::bed::{Bed, eventually, poll_once, soon};
use crate::source::Source;
use tidings::{InvalidateError, Stamp};

/// The pod that is cut off hears nothing of the invalidation, and serves what it has for as long as its
/// last confirmation lasts: what `settled` waits for.
async fn when_an_invalidation_is_settled_a_pod_that_is_cut_off_serves_the_new_value(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for version in 1..=3 {
        eventually("it is whole", async || {
            let health = b.cache.health();
            health.live_lanes == health.lanes
        })
        .await;
        on_b.get(&1).await.unwrap();
        b.wire.cut(true);
        source.commit(1, version);
        soon("it is settled", on_a.invalidate(&1).settled())
            .await
            .unwrap();
        assert_eq!(*on_b.get(&1).await.unwrap(), version);
        b.wire.cut(false);
    }
}

/// As above for whoever has no more than the stamp: it was pending, or came from another pod.
async fn a_stamp_is_settled_for_every_pod(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    b.wire.cut(true);
    source.commit(1, 1);
    let stamp = on_a.clear().await.unwrap();
    soon("the stamp", stamp.settled(&b.cache)).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

async fn what_is_pending_is_not_waited_for(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    pod.wire.cut(true);
    eventually("the link is down", async || {
        let settled = soon("the call", numbers.invalidate(&1).settled()).await;
        matches!(settled, Err(InvalidateError::Pending(_)))
    })
    .await;
}

async fn an_invalidation_happens_though_nobody_waits_until_it_is_settled(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    source.commit(1, 1);
    let mut settled = Box::pin(on_a.invalidate(&1).settled());
    poll_once(&mut settled).await;
    drop(settled);
    eventually("it happens", async || *on_b.get(&1).await.unwrap() == 1).await;
}

async fn an_invalidation_that_was_never_polled_does_not_happen(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    drop(numbers.invalidate(&1));
    drop(numbers.clear().settled());
    drop(pod.cache.invalidate(["number"]));
    assert!(numbers.peek(&1).is_some());
    assert_eq!(pod.wire.calls("invalidate") + pod.wire.calls("clear"), 0);
}

/// Nothing was logged, so there is nothing to wait for: no timer is set.
#[tokio::test(start_paused = true)]
async fn nothing_is_settled_at_once() {
    let pod = Bed::memory().pod().await;
    let numbers = pod.numbers(&Source::new());
    let began = tokio::time::Instant::now();
    let none: [&u64; 0] = [];
    let stamp = numbers.invalidate_many(none).settled().await.unwrap();
    stamp.settled(&pod.cache).await;
    assert_eq!(stamp, Stamp::default());
    assert_eq!(began.elapsed(), std::time::Duration::ZERO);
}

on_both_stores!(
    when_an_invalidation_is_settled_a_pod_that_is_cut_off_serves_the_new_value,
    a_stamp_is_settled_for_every_pod,
    what_is_pending_is_not_waited_for,
    an_invalidation_happens_though_nobody_waits_until_it_is_settled,
    an_invalidation_that_was_never_polled_does_not_happen,
);
