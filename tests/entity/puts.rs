//! Values that writers have at hand.

use crate::bed::{Bed, Pod, eventually, soon};
use crate::source::{Refused, Source};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tidings::error::StoreErrorKind;
use tidings::store::Memory;
use tidings::{Cache, Entity, InvalidateError, LoadContext, Loaded, Origin};
use tokio::task::JoinSet;

type Numbers = Entity<u64, u64, Refused>;

/// An entity whose values are their own versions.
fn versioned(cache: &Cache, source: &Source) -> Numbers {
    let source = source.clone();
    let load = move |load: LoadContext<u64, u64>| {
        let source = source.clone();
        async move {
            let version = source.ask(*load.key()).await?;
            Ok::<_, Refused>(Loaded::new(version).version(version))
        }
    };
    cache.entity_with("number", load).build().unwrap()
}

async fn loaded(pod: &Pod, numbers: &Numbers, key: u64) {
    let fills = pod.wire.done("fill");
    numbers.get(&key).await.unwrap();
    pod.done("fill", fills + 1).await;
}

async fn a_put_is_what_every_pod_finds_without_a_load(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, &source), versioned(&b.cache, &source));
    loaded(&a, &on_a, 1).await;
    on_b.get(&1).await.unwrap();
    for version in 1..=5 {
        source.commit(1, version);
        on_a.put_versioned(&1, version, version).await.unwrap();
        let served = on_a.get_with(&1).await.unwrap();
        assert_eq!((*served.value, served.origin), (version, Origin::Store));
        eventually("the other pod follows", async || {
            *on_b.get(&1).await.unwrap() == version
        })
        .await;
        assert_eq!(*on_b.get_strict(&1).await.unwrap(), version);
    }
    assert_eq!(source.loads(), 1);
    assert_eq!(a.wire.calls("put"), 5);
}

async fn an_older_put_never_takes_the_place_of_a_newer_one(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, &source), versioned(&b.cache, &source));
    loaded(&a, &on_a, 1).await;
    source.commit(1, 2);
    on_b.put_versioned(&1, 2, 2).await.unwrap();
    on_a.put_versioned(&1, 1, 1).await.unwrap(); // it was stopped for a moment
    assert_eq!(*on_a.get(&1).await.unwrap(), 2);
    on_a.put_versioned(&1, 2, 2).await.unwrap(); // once more
    let served = on_a.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Store));
    assert_eq!(source.loads(), 1);
}

/// 1. version 1 is committed, and its writer is stopped before its put;
/// 2. version 2 is committed, and its key is invalidated: no version is left to compare with;
/// 3. the put of version 1 arrives.
async fn an_older_put_never_comes_back_across_an_invalidation(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, &source), versioned(&b.cache, &source));
    loaded(&a, &on_a, 1).await;
    source.commit(1, 2);
    on_b.invalidate(&1).await.unwrap();
    on_a.put_versioned(&1, 1, 1).await.unwrap();
    for numbers in [&on_a, &on_b] {
        assert_eq!(*numbers.get_strict(&1).await.unwrap(), 2);
    }
}

async fn a_put_fences_loads_that_are_under_way(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, &source), versioned(&b.cache, &source));
    source.hold();
    let load = tokio::spawn({
        let on_a = on_a.clone();
        async move { on_a.get(&1).await.map(|value| *value) }
    });
    eventually("it loads", async || source.running() == 1).await;
    source.commit(1, 1);
    on_b.put_versioned(&1, 1, 1).await.unwrap();
    source.let_go();
    assert_eq!(load.await.unwrap().unwrap(), 0, "it asked before");
    assert_eq!(*on_a.get_strict(&1).await.unwrap(), 1);
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

async fn a_put_over_a_value_without_a_version_invalidates(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    loaded(&pod, &numbers, 1).await;
    source.commit(1, 7);
    numbers.put_versioned(&1, 6, 6).await.unwrap();
    let served = numbers.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (7, Origin::Loader));
}

async fn a_put_that_the_store_does_not_take_is_a_pending_invalidation(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (versioned(&a.cache, &source), versioned(&b.cache, &source));
    loaded(&a, &on_a, 1).await;
    on_b.get(&1).await.unwrap();
    source.commit(1, 1);
    a.wire.cut(true);
    let pending = match soon("the call", on_a.put_versioned(&1, 1, 1)).await {
        Err(InvalidateError::Pending(pending)) => pending,
        other => panic!("{other:?}"),
    };
    assert_eq!(*on_a.get(&1).await.unwrap(), 1, "read your own writes");
    a.wire.cut(false);
    soon("the invalidation", pending.settled()).await.unwrap();
    eventually("the other pod follows", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
}

async fn a_put_whose_answer_was_lost_is_repeated_as_an_invalidation(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = versioned(&pod.cache, &source);
    loaded(&pod, &numbers, 1).await;
    source.commit(1, 1);
    pod.wire.hold_answers("put");
    let put = tokio::spawn(numbers.put_versioned(&1, 1, 1));
    pod.done("put", 1).await;
    pod.wire.cut(true);
    eventually("the link is down", async || {
        matches!(pod.cache.health().store, tidings::StoreState::Down { .. })
    })
    .await;
    pod.wire.heal();
    let ended = soon("the put", put).await.unwrap();
    if let Err(InvalidateError::Pending(pending)) = ended {
        soon("the invalidation", pending.settled()).await.unwrap();
    }
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}

#[tokio::test]
async fn a_full_store_takes_the_invalidation_without_the_value() {
    let (store, source) = (Memory::new(), Source::new());
    let cache = Cache::builder("t")
        .store(store.clone())
        .build()
        .await
        .unwrap();
    let numbers = versioned(&cache, &source);
    numbers.get(&1).await.unwrap();
    source.commit(1, 1);
    store.faults().set_error(Some(StoreErrorKind::Full));
    let ended = numbers.put_versioned(&1, 1, 1).await;
    store.faults().set_error(None);
    if let Err(InvalidateError::Pending(pending)) = ended {
        soon("the invalidation", pending.settled()).await.unwrap();
    }
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}

/// Writers on three pods commit and put, late and in any order; a reader on each never goes back behind
/// what was put before it asked.
async fn writers_who_put_in_any_order_never_bring_an_older_value_back(bed: Bed) {
    let source = Source::new();
    let newest = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for pod in 0..3 {
        let pod = (bed.pod().await, pod);
        let numbers = versioned(&pod.0.cache, &source);
        let (source, newest) = (source.clone(), Arc::clone(&newest));
        let acknowledged = Arc::clone(&acknowledged);
        tasks.spawn(async move {
            for turn in 0..100_u64 {
                let version = source.commit_next(1, &newest);
                // Some are overtaken on the way.
                for _ in 0..(turn * 7 + pod.1) % 5 {
                    tokio::task::yield_now().await;
                }
                match turn % 10 {
                    9 => numbers.invalidate(&1).await.unwrap(),
                    _ => numbers.put_versioned(&1, version, version).await.unwrap(),
                };
                acknowledged.fetch_max(version, SeqCst);
                let floor = acknowledged.load(SeqCst);
                let got = *numbers.get_strict(&1).await.unwrap();
                assert!(got >= floor, "{got} after {floor}");
                let own = *numbers.get(&1).await.unwrap();
                assert!(own >= version, "{own} after its own {version}");
            }
            drop(pod);
        });
    }
    soon("all of them", tasks.join_all()).await;
    // And then all agree with the source.
    let pod = bed.pod().await;
    let numbers = versioned(&pod.cache, &source);
    assert_eq!(*numbers.get_strict(&1).await.unwrap(), newest.load(SeqCst));
}

on_both_stores!(
    a_put_is_what_every_pod_finds_without_a_load,
    an_older_put_never_takes_the_place_of_a_newer_one,
    an_older_put_never_comes_back_across_an_invalidation,
    a_put_fences_loads_that_are_under_way,
    a_put_over_a_value_without_a_version_invalidates,
    a_put_that_the_store_does_not_take_is_a_pending_invalidation,
    a_put_whose_answer_was_lost_is_repeated_as_an_invalidation,
    writers_who_put_in_any_order_never_bring_an_older_value_back,
);
