//! Reads of everything that was acknowledged before they began.

use crate::bed::{Bed, Pod, eventually, soon};
use crate::lab::MS;
use crate::source::{Answer, Refused, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tidings::error::StoreErrorKind;
use tidings::store::Memory;
use tidings::{Cache, CacheError, Refresh};
use tokio::task::JoinSet;

/// A pod that hears of nothing and polls nothing, as one that was stopped for a moment.
fn deafen(pod: &Pod) {
    pod.wire.deafen(true);
    pod.wire.hang("poll");
}

async fn a_strict_read_misses_nothing_that_was_acknowledged_anywhere(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for version in 1..=20 {
        on_b.get(&1).await.unwrap();
        b.wire.deafen(true);
        source.commit(1, version);
        on_a.invalidate(&1).await.unwrap();
        if version % 2 == 0 {
            on_a.get(&1).await.unwrap(); // it is loaded there, or here
        }
        assert_eq!(*on_b.get_strict(&1).await.unwrap(), version);
        // Nor does this pod go back behind it.
        assert_eq!(*on_b.get(&1).await.unwrap(), version);
        b.wire.heal();
    }
}

async fn a_strict_read_is_one_round_trip(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    let before = (pod.wire.calls("read"), pod.wire.calls("lease"));
    for _ in 0..3 {
        numbers.get_strict(&1).await.unwrap();
    }
    assert_eq!(pod.wire.calls("read_proven"), 3);
    let after = (pod.wire.calls("read"), pod.wire.calls("lease"));
    assert_eq!((before, source.loads()), (after, 1));
}

/// 1. this pod loads version 0, and is held up;
/// 2. another pod commits and invalidates version 1; this one hears nothing of it;
/// 3. a usual read shares the load, within the bound; a strict one does not.
async fn a_strict_read_joins_no_load_that_began_before_it(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    source.hold();
    let usual = tokio::spawn({
        let on_a = on_a.clone();
        async move { on_a.get(&1).await.map(|value| *value) }
    });
    eventually("it loads", async || source.running() == 1).await;
    deafen(&a);
    source.commit(1, 1);
    on_b.invalidate(&1).await.unwrap();
    let strict = tokio::spawn(async move { on_a.get_strict(&1).await.map(|value| *value) });
    eventually("it loads for itself", async || source.running() == 2).await;
    source.let_go();
    assert_eq!(soon("the strict one", strict).await.unwrap().unwrap(), 1);
    assert_eq!(usual.await.unwrap().unwrap(), 0);
}

async fn strict_reads_of_an_absent_key_wait_for_one_load(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let mut readers = JoinSet::new();
    source.hold();
    for pod in [&a, &b] {
        let numbers = pod.numbers(&source);
        for _ in 0..10 {
            let numbers = numbers.clone();
            readers.spawn(async move { numbers.get_strict(&1).await.map(|value| *value) });
        }
    }
    eventually("all have asked", async || {
        a.wire.calls("lease") + b.wire.calls("lease") >= 20
    })
    .await;
    source.let_go();
    for got in soon("all of them", readers.join_all()).await {
        assert_eq!(got.unwrap(), 0);
    }
    assert_eq!(source.loads(), 1);
}

async fn without_the_store_a_strict_read_asks_the_source(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.wire.cut(true);
    source.commit(1, 1);
    assert_eq!(*numbers.get_strict(&1).await.unwrap(), 1);
    source.answer(1, Answer::Refusal(3));
    match numbers.get_strict(&1).await {
        Err(CacheError::Load(error)) => assert_eq!(*error, Refused(3)),
        other => panic!("{other:?}"),
    }
}

/// What a deposed node has is still there to be read, and may be wrong.
#[tokio::test]
async fn what_a_node_has_that_takes_no_writes_is_not_believed() {
    let (store, source) = (Memory::new(), Source::new());
    let cache = Cache::builder("t")
        .store(store.clone())
        .build()
        .await
        .unwrap();
    let numbers = cache.entity("number", source.clone()).build().unwrap();
    numbers.get(&1).await.unwrap();
    eventually("it is stored", async || {
        numbers.local().clear();
        numbers.get_with(&1).await.unwrap().origin == tidings::Origin::Store
    })
    .await;
    let loads = source.loads();
    store.faults().set_error(Some(StoreErrorKind::ReadOnly));
    source.commit(1, 1); // and invalidated on the node that took its place
    assert_eq!(*numbers.get_strict(&1).await.unwrap(), 1);
    assert_eq!(source.loads(), loads + 1);
}

async fn a_strict_read_gives_nothing_that_is_past_its_ttl(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    for refresh in [Refresh::Behind, Refresh::Ahead] {
        let builder = pod.builder(&source).ttl(30 * MS);
        let builder = builder.grace(Duration::from_secs(3600)).refresh(refresh);
        let numbers = builder.build().unwrap();
        source.commit(1, 1);
        numbers.invalidate(&1).await.unwrap();
        numbers.get(&1).await.unwrap();
        source.commit(1, 2);
        source.answer(1, Answer::Refusal(1));
        // Not when the time is over here: this pod knows the store's clock only as well as its last poll.
        eventually("nothing is given instead", async || {
            numbers.get_strict(&1).await.is_err()
        })
        .await;
        source.commit(1, 2);
        assert_eq!(*numbers.get_strict(&1).await.unwrap(), 2);
    }
}

async fn a_strict_read_ends_with_the_limit_of_loads_and_its_load_goes_on(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.builder(&source).load_timeout(50 * MS).build().unwrap();
    source.hold();
    let got = soon("the call", numbers.get_strict(&1)).await;
    assert!(matches!(got, Err(CacheError::Timeout { .. })), "{got:?}");
    pod.cache.close().await;
    let got = numbers.get_strict(&1).await;
    assert!(matches!(got, Err(CacheError::Closed)), "{got:?}");
    source.let_go();
}

/// A writer and strict readers on pods that hear late: none is given less than what was acknowledged
/// before it asked.
async fn strict_readers_beside_a_writer_are_never_behind(bed: Bed) {
    let source = Source::new();
    let newest = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = bed.pod().await;
    let mut readers = JoinSet::new();
    for _ in 0..3 {
        let pod = bed.pod().await;
        pod.wire.delay_hints(true);
        let (numbers, acknowledged) = (pod.numbers(&source), Arc::clone(&acknowledged));
        readers.spawn(async move {
            while acknowledged.load(SeqCst) < 200 {
                let floor = acknowledged.load(SeqCst);
                let got = *numbers.get_strict(&1).await.unwrap();
                assert!(got >= floor, "{got} after {floor}");
            }
            drop(pod);
        });
    }
    let numbers = writer.numbers(&source);
    for _ in 0..200 {
        let version = source.commit_next(1, &newest);
        soon("the call", numbers.invalidate(&1)).await.unwrap();
        acknowledged.store(version, SeqCst);
    }
    soon("the readers", readers.join_all()).await;
}

on_both_stores!(
    a_strict_read_misses_nothing_that_was_acknowledged_anywhere,
    a_strict_read_is_one_round_trip,
    a_strict_read_joins_no_load_that_began_before_it,
    strict_reads_of_an_absent_key_wait_for_one_load,
    without_the_store_a_strict_read_asks_the_source,
    a_strict_read_gives_nothing_that_is_past_its_ttl,
    a_strict_read_ends_with_the_limit_of_loads_and_its_load_goes_on,
    strict_readers_beside_a_writer_are_never_behind,
);
