//! Events.

use crate::bed::{Bed, Source, comes, eventually};
use std::time::Duration;
use tidings::store::Memory;
use tidings::testing::RedisServer;
use tidings::{Cache, Event, LoadFailure, StaleReason};

on_both_stores!(
    an_invalidation_is_told_as_sent_acknowledged_and_received,
    a_refused_fill_and_a_failed_load_are_told,
    nobody_is_told_after_the_close,
);

async fn an_invalidation_is_told_as_sent_acknowledged_and_received(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let numbers = source.numbers(&a);
    let (mut here, mut there) = (a.events(), b.events());
    numbers.invalidate_many(&[1]).await.unwrap();
    comes(&mut here, "sent", |event| {
        matches!(event, Event::InvalidationSent { entity, keys: 1, .. } if **entity == *"number")
    })
    .await;
    comes(&mut here, "acknowledged", |event| {
        matches!(event, Event::InvalidationAcknowledged { keys: 1, .. })
    })
    .await;
    comes(&mut there, "received", |event| {
        matches!(event, Event::InvalidationReceived { keys: 1, .. })
    })
    .await;
}

async fn a_refused_fill_and_a_failed_load_are_told(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (numbers, other) = (source.numbers(&a), source.numbers(&b));
    let mut events = a.events();
    source.hold(true);
    let read = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.get(&1).await }
    });
    source.started(1).await;
    other.invalidate(&1).await.unwrap();
    source.hold(false);
    read.await.unwrap().unwrap();
    let refused = |event: &Event| matches!(event, Event::FillRefused { .. });
    comes(&mut events, "the fill is refused", refused).await;
    source.set(Err("no"));
    numbers.get(&2).await.unwrap_err();
    comes(&mut events, "the load fails", |event| {
        matches!(
            event,
            Event::LoadFailed {
                failure: LoadFailure::Error,
                ..
            }
        )
    })
    .await;
}

async fn nobody_is_told_after_the_close(bed: Bed) {
    let cache = bed.pod().await;
    let mut events = cache.events();
    cache.close().await;
    let end = async { while events.next().await.is_some() {} };
    crate::bed::soon("the end of the events", end).await;
}

#[tokio::test]
async fn the_last_handle_that_goes_ends_the_events() {
    let cache = Bed::memory().pod().await;
    let mut events = cache.events();
    drop(cache);
    let end = async { while events.next().await.is_some() {} };
    crate::bed::soon("the end of the events", end).await;
}

#[tokio::test]
async fn stale_values_served_are_told_and_counted() {
    let cache = Bed::memory().pod().await;
    let source = Source::of(1);
    let numbers = source
        .entity(&cache)
        .ttl(Duration::from_millis(30))
        .grace(Duration::from_secs(600))
        .build()
        .unwrap();
    numbers.get(&1).await.unwrap();
    source.set(Err("no"));
    let mut events = cache.events();
    let stale = async || numbers.get_with(&1).await.unwrap().is_stale();
    eventually("it is past its time to live", stale).await;
    comes(&mut events, "it is told", |event| {
        matches!(
            event,
            Event::StaleServed {
                reason: StaleReason::Refreshing,
                ..
            }
        )
    })
    .await;
    assert!(numbers.stats().stale_while_refreshing > 0);
    comes(&mut events, "the refresh fails", |event| {
        matches!(event, Event::LoadFailed { .. })
    })
    .await;
    let failed = async || {
        numbers.get(&1).await.unwrap();
        numbers.stats().stale_after_failure > 0
    };
    eventually("the reason is another one by now", failed).await;
}

#[tokio::test]
async fn bytes_that_cannot_be_used_are_told_and_counted() {
    let store = Memory::new();
    let faults = store.faults();
    let bed = Bed::on(store);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Source::of(1);
    let (one, other) = (source.numbers(&a), source.numbers(&b));
    one.get(&1).await.unwrap();
    eventually("it is stored", async || one.stats().fills == 1).await;
    let mut events = b.events();
    faults.corrupt_next_read();
    other.get(&1).await.unwrap();
    let unusable = |event: &Event| matches!(event, Event::UnusableValue { entity, .. } if **entity == *"number");
    comes(&mut events, "the value is unusable", unusable).await;
    assert_eq!(other.stats().unusable, 1);
}

#[tokio::test]
async fn hints_that_are_lost_are_told_as_a_gap_that_is_closed() {
    let store = Memory::new();
    let faults = store.faults();
    let bed = Bed::on(store);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Source::of(1);
    let numbers = source.numbers(&a);
    let mut events = b.events();
    faults.drop_hints(true);
    numbers.invalidate(&1).await.unwrap();
    comes(&mut events, "a gap", |event| {
        matches!(event, Event::Gap { .. })
    })
    .await;
    let caught_up = |event: &Event| matches!(event, Event::CatchUp { entries, .. } if *entries > 0);
    comes(&mut events, "the log is read", caught_up).await;
    assert_eq!(b.stats().invalidations.gaps, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_from_its_beginning_to_its_end() {
    let mut server = tokio::task::spawn_blocking(|| RedisServer::start().unwrap())
        .await
        .unwrap();
    let cache = Cache::builder("outage")
        .store_url(server.url())
        .build()
        .await
        .unwrap();
    let numbers = Source::of(1).numbers(&cache);
    let mut events = cache.events();
    let is_live = |event: &Event| matches!(event, Event::LaneLive { .. });
    comes(&mut events, "lanes are live", is_live).await;
    server.kill();
    let down = |event: &Event| matches!(event, Event::LinkDown { .. });
    comes(&mut events, "the link breaks", down).await;
    let mut pending = cache.events();
    let left = numbers.invalidate(&1).await.unwrap_err();
    comes(&mut pending, "the invalidation is pending", |event| {
        matches!(event, Event::InvalidationPending { keys: 1, .. })
    })
    .await;
    let lapsed = |event: &Event| matches!(event, Event::LaneLapsed { .. });
    comes(&mut events, "lanes lapse", lapsed).await;
    let server = tokio::task::spawn_blocking(move || {
        server.restart_empty().unwrap();
        server
    });
    let _server = server.await.unwrap();
    comes(&mut events, "the link is back", |event| {
        matches!(event, Event::LinkUp)
    })
    .await;
    comes(&mut events, "lanes are live again", is_live).await;
    comes(&mut pending, "it is acknowledged", |event| {
        matches!(event, Event::InvalidationAcknowledged { .. })
    })
    .await;
    drop(left);
}
