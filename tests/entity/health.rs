//! What a cache tells of how it is doing.

use crate::bed::{Bed, Pod, eventually, soon};
use crate::source::Source;
use tidings::coherence::{Epoch, Hint, Kind, Lane, LogEntry, Nonce};
use tidings::{Clock, InvalidateError, Millis, StoreState};

async fn health_tells_of_the_store_its_lanes_and_what_is_pending(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let is_well = async || {
        let health = pod.cache.health();
        let confirmed = health.confirmed.is_some_and(|ago| ago <= health.bound);
        matches!(health.store, StoreState::Up) && health.live_lanes == health.lanes && confirmed
    };
    eventually("all is well", is_well).await;
    let health = pod.cache.health();
    assert_eq!((health.pending, health.oldest_pending), (0, None));
    assert!(health.server.is_some(), "its settings are known");
    pod.wire.cut(true);
    let is_down = async || matches!(pod.cache.health().store, StoreState::Down { .. });
    eventually("the link is gone", is_down).await;
    let Err(InvalidateError::Pending(pending)) = numbers.invalidate(&1).await else {
        panic!("it is cut off");
    };
    let lapsed = async || pod.cache.health().live_lanes == 0;
    eventually("lanes lapse", lapsed).await;
    let health = pod.cache.health();
    assert_eq!(health.pending, 1);
    assert!(health.oldest_pending.is_some());
    assert!(health.confirmed > Some(health.bound / 2), "{health:?}");
    pod.wire.cut(false);
    soon("the invalidation", pending.settled()).await.unwrap();
    eventually("all is well again", is_well).await;
    assert_eq!(pod.cache.health().pending, 0);
    assert_eq!(pod.cache.health().links, 2);
}

async fn messages_of_a_later_version_do_nothing_and_are_counted(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    let before = pod.cache.health();
    assert_eq!((before.unknown_hints, before.rubbish_hints), (0, 0));
    let entry = LogEntry {
        seq: 7,
        kind: Kind::Unknown(200),
        prev: Nonce(1),
        nonce: Nonce(2),
        hashes: vec![1, 2, 3],
    };
    for lane in 0..before.lanes {
        let hint = Hint {
            lane: Lane(lane.try_into().unwrap()),
            epoch: Epoch(99),
            server_ms: 0,
            entry: entry.clone(),
        };
        pod.wire.invent(hint.encode());
    }
    pod.wire.invent("something else");
    // What comes wakes the pod.
    bed.pod()
        .await
        .numbers(&source)
        .invalidate(&2)
        .await
        .unwrap();
    eventually("they are heard", async || {
        let health = pod.cache.health();
        (health.unknown_hints, health.rubbish_hints) == (health.lanes as u64, 1)
    })
    .await;
    assert_eq!(numbers.peek(&1).as_deref(), Some(&0));
    assert_eq!(pod.cache.health().links, 1);
    assert_eq!(pod.cache.health().flushes, before.flushes);
}

/// Of two pods of one store, one whose clock stands still.
async fn a_clock_that_stands_still_is_counted_and_one_that_goes_on_is_not(bed: Bed) {
    let clock = Clock::manual(Millis(1_000_000));
    let paused = bed.pod_with(|pod| pod.clock(clock.clone())).await;
    let other = bed.pod().await;
    let stalls = |pod: &Pod| pod.cache.health().clock_stalls;
    eventually("the clock has stood still", async || stalls(&paused) > 0).await;
    assert_eq!(stalls(&other), 0);
    // What it confirms is worth what it was.
    assert_eq!(
        paused.cache.health().live_lanes,
        paused.cache.health().lanes
    );
    let told = stalls(&paused);
    eventually("it still stands", async || stalls(&paused) > told).await;
}

on_both_stores!(
    a_clock_that_stands_still_is_counted_and_one_that_goes_on_is_not,
    health_tells_of_the_store_its_lanes_and_what_is_pending,
    messages_of_a_later_version_do_nothing_and_are_counted,
);
