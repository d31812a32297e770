//! Counts.

use crate::bed::{Bed, Source, comes, eventually};
use std::convert::Infallible;
use std::time::Duration;
use tidings::store::Memory;
use tidings::{Cache, Event, LocalEngine};

on_both_stores!(
    every_read_is_a_hit_or_a_miss_of_each_level_that_it_asked,
    reads_that_share_a_load_are_joins,
    a_fill_that_raced_an_invalidation_is_counted_as_refused,
    keys_read_together_are_counted_one_by_one,
    invalidations_are_counted_where_they_are_made_and_where_they_arrive,
    store_calls_are_counted_by_operation,
);

async fn every_read_is_a_hit_or_a_miss_of_each_level_that_it_asked(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (one, other) = (source.numbers(&a), source.numbers(&b));
    one.get(&1).await.unwrap(); // loads
    eventually("the value is stored", async || one.stats().fills == 1).await;
    one.get(&1).await.unwrap(); // local
    other.get(&1).await.unwrap(); // store
    other.get_with(&1).await.unwrap(); // local
    let (one, other) = (one.stats(), other.stats());
    assert_eq!((one.hits, one.misses, one.joins), (1, 1, 0));
    assert_eq!((one.store_hits, one.store_misses, one.loads), (0, 1, 1));
    assert_eq!((other.hits, other.misses, other.joins), (1, 1, 0));
    assert_eq!(
        (other.store_hits, other.store_misses, other.loads),
        (1, 0, 0)
    );
    assert_eq!((one.entries, one.weight), (1, 1));
    assert_eq!(
        (one.load_errors, one.fills_refused, one.fills_failed),
        (0, 0, 0)
    );
    assert_eq!(a.stats().entities, one, "there is one entity");
}

async fn reads_that_share_a_load_are_joins(bed: Bed) {
    let source = Source::of(1);
    let cache = bed.pod().await;
    let numbers = source.numbers(&cache);
    source.hold(true);
    let reads: Vec<_> = (0..5)
        .map(|_| {
            let numbers = numbers.clone();
            tokio::spawn(async move { numbers.get(&1).await.unwrap() })
        })
        .collect();
    eventually("all are aboard", async || numbers.stats().misses == 5).await;
    source.started(1).await;
    eventually("four have joined", async || numbers.stats().joins == 4).await;
    source.hold(false);
    for read in reads {
        read.await.unwrap();
    }
    let stats = numbers.stats();
    assert_eq!((stats.loads, stats.store_misses, stats.joins), (1, 1, 4));
}

async fn a_fill_that_raced_an_invalidation_is_counted_as_refused(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (numbers, other) = (source.numbers(&a), source.numbers(&b));
    source.hold(true);
    let read = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.get(&1).await.unwrap() }
    });
    source.started(1).await;
    other.invalidate(&1).await.unwrap();
    source.hold(false);
    read.await.unwrap();
    eventually("the fill is refused", async || {
        numbers.stats().fills_refused == 1
    })
    .await;
    assert_eq!(numbers.stats().fills, 0);
}

async fn keys_read_together_are_counted_one_by_one(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (one, other) = (source.numbers(&a), source.numbers(&b));
    let keys: Vec<u64> = (0..10).collect();
    one.get_many(&keys[..6]).await;
    eventually("they are stored", async || one.stats().fills == 6).await;
    other.get_many(&keys).await;
    other.get_many(&keys).await;
    let stats = other.stats();
    assert_eq!((stats.hits, stats.misses), (10, 10));
    assert_eq!(
        (stats.store_hits, stats.store_misses, stats.loads),
        (6, 4, 4)
    );
}

async fn invalidations_are_counted_where_they_are_made_and_where_they_arrive(bed: Bed) {
    let source = Source::of(1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (one, other) = (source.numbers(&a), source.numbers(&b));
    other.get(&1).await.unwrap();
    one.invalidate(&1).await.unwrap();
    one.invalidate(&1).await.unwrap();
    let sent = a.stats().invalidations;
    assert_eq!((sent.sent, sent.acknowledged, sent.received), (2, 2, 0));
    let received = async || b.stats().invalidations.received == 2;
    eventually("both arrive", received).await;
    assert_eq!(b.stats().invalidations.sent, 0);
    assert_eq!(other.stats().invalidated, 1, "the second found nothing");
}

/// 1. a message is lost, and the next one comes out of its turn;
/// 2. the log brings both.
#[tokio::test]
async fn an_invalidation_that_came_out_of_its_turn_is_counted_once() {
    let store = Memory::new();
    let faults = store.faults();
    let bed = Bed::on(store);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let one = Source::of(1).numbers(&a);
    let mut events = b.events();
    faults.drop_hints(true);
    one.invalidate(&1).await.unwrap();
    faults.drop_hints(false);
    one.invalidate(&1).await.unwrap();
    let caught_up = |event: &Event| matches!(event, Event::CatchUp { entries, .. } if *entries > 0);
    comes(&mut events, "the log is read", caught_up).await;
    one.invalidate(&1).await.unwrap();
    let all = async || b.stats().invalidations.received >= 3;
    eventually("all have come", all).await;
    assert_eq!(b.stats().invalidations.received, 3);
}

async fn store_calls_are_counted_by_operation(bed: Bed) {
    let source = Source::of(1);
    let cache = bed.pod().await;
    let numbers = source.numbers(&cache);
    numbers.get(&1).await.unwrap();
    numbers.get_many(&[2, 3]).await;
    numbers.invalidate(&1).await.unwrap();
    eventually("both fills end", async || {
        cache
            .stats()
            .store
            .get("fill")
            .is_some_and(|fills| fills.calls == 3)
    })
    .await;
    let store = cache.stats().store;
    assert_eq!((store["read"].calls, store["read"].failed), (1, 0));
    assert_eq!(
        store["lease"].calls, 2,
        "a list asks for its leases at once"
    );
    assert_eq!(store["invalidate"].calls, 1);
    assert!(store["poll"].calls > 0 && store["poll"].time > Duration::ZERO);
}

#[tokio::test]
async fn counts_of_an_entity_that_is_gone_stay_in_those_of_its_cache() {
    let cache = Bed::memory().pod().await;
    let source = Source::of(1);
    for round in 1..=3 {
        let numbers = source.numbers(&cache);
        numbers.get(&round).await.unwrap();
        drop(numbers);
        let gone = async || cache.stats().entities.entries == 0;
        eventually("what it kept is gone", gone).await;
        assert_eq!(cache.stats().entities.misses, round);
    }
    // Looked at four times a second, after which it is in the sum of those that are gone.
    let memo = cache.memo("twice", |n: u64| async move { Ok::<_, Infallible>(n * 2) });
    let memo = memo.build().unwrap();
    memo.get(&1).await.unwrap();
    memo.get(&1).await.unwrap();
    drop(memo);
    let memos = cache.stats().memos;
    assert_eq!((memos.hits, memos.misses, memos.loads), (1, 1, 1));
}

#[tokio::test]
async fn loads_that_fail_are_counted_by_how() {
    let cache = Bed::memory().pod().await;
    let source = Source::of(1);
    let limit = Duration::from_millis(50);
    let numbers = source.entity(&cache).load_timeout(limit).build().unwrap();
    source.set(Err("no"));
    numbers.get(&1).await.unwrap_err();
    assert_eq!((numbers.stats().loads, numbers.stats().load_errors), (1, 1));
    source.hold(true);
    numbers.get(&2).await.unwrap_err();
    // The load goes on after its caller has given up, for as long as its lease.
    eventually("it is given up", async || {
        numbers.stats().loads_timed_out == 1
    })
    .await;

    let panics = cache.entity("panics", |_: u64| async { panic!("as told") });
    let panics = panics.build().unwrap();
    let read: Result<std::sync::Arc<u64>, tidings::CacheError<Infallible>> = panics.get(&1).await;
    read.unwrap_err();
    assert_eq!((panics.stats().loads, panics.stats().loads_aborted), (0, 1));
}

#[tokio::test]
async fn entries_that_make_room_for_others_are_counted_if_the_engine_tells() {
    for (engine, tells) in [(LocalEngine::Quick, true), (LocalEngine::Moka, false)] {
        let cache: Cache = Bed::on(Memory::new()).pod().await;
        let source = Source::of(1);
        let numbers = source
            .entity(&cache)
            .capacity(100)
            .local_engine(engine)
            .build()
            .unwrap();
        for key in 0..300 {
            numbers.get(&key).await.unwrap();
        }
        let stats = numbers.stats();
        match tells {
            true => assert_eq!(stats.evicted, Some(300 - stats.entries)),
            false => assert_eq!(stats.evicted, None),
        }
    }
}
