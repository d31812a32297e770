//! What an invalidation takes away, from whom, and when.

use crate::bed::{Bed, Numbers, Pod, eventually};
use crate::source::Source;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tidings::{InvalidateError, Origin, Ttl};
use tokio::task::JoinSet;

/// Reads until the pod serves `version`; an older one may be served within the bound alone.
async fn follows(pod: &Pod, numbers: &Numbers, key: u64, version: u64, acknowledged: Instant) {
    let bound = pod.cache.health().bound;
    loop {
        let late = acknowledged.elapsed() > bound;
        let got = *numbers.get(&key).await.unwrap();
        if got == version {
            return;
        }
        assert!(!late, "{got} after the bound");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Tasks that commit, invalidate and read at once, on keys that they share, while another pod reads
/// them too.
async fn read_your_writes(bed: &Bed, tasks: u64, batches: u64, keys: u64) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let versions: Arc<Vec<AtomicU64>> = Arc::new((0..keys).map(|_| AtomicU64::new(0)).collect());
    let meddler = tokio::spawn(async move {
        loop {
            for key in 0..keys {
                on_b.get(&key).await.unwrap();
                // A hit has nothing to wait for: without this nothing else would get its turn.
                tokio::task::yield_now().await;
            }
        }
    });
    let mut writers = JoinSet::new();
    for _ in 0..tasks {
        let (numbers, source, versions) = (on_a.clone(), source.clone(), Arc::clone(&versions));
        writers.spawn(async move {
            let all: Vec<u64> = (0..keys).collect();
            for _ in 0..batches {
                let mut least = Vec::new();
                for &key in &all {
                    least.push(source.commit_next(key, &versions[key as usize]));
                }
                numbers.invalidate_many(&all).await.unwrap();
                for (&key, &least) in all.iter().zip(&least) {
                    let got = *numbers.get(&key).await.unwrap();
                    assert!(
                        got >= least,
                        "key {key}: {got} after {least} was acknowledged"
                    );
                }
            }
        });
    }
    writers.join_all().await;
    meddler.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_invalidate_returns_this_pod_never_serves_the_old_value_on_memory() {
    read_your_writes(&Bed::memory(), 8, tries(2), 64).await;
    read_your_writes(&Bed::memory(), 8, tries(100), 1).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_invalidate_returns_this_pod_never_serves_the_old_value_on_redis() {
    read_your_writes(&Bed::redis(), 8, tries(1), 64).await;
    read_your_writes(&Bed::redis(), 8, tries(20), 1).await;
}

/// `TIDINGS_TRIES` multiplies what the races are tried.
fn tries(usual: u64) -> u64 {
    let factor = std::env::var("TIDINGS_TRIES").ok();
    usual * factor.map_or(40, |factor| factor.parse().unwrap())
}

async fn another_pod_follows_within_the_bound(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for version in 1..20 {
        on_b.get(&1).await.unwrap();
        source.commit(1, version);
        on_a.invalidate(&1).await.unwrap();
        follows(&b, &on_b, 1, version, Instant::now()).await;
    }
}

async fn another_pod_follows_within_the_bound_when_every_hint_is_lost(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    b.wire.deafen(true);
    for version in 1..6 {
        on_b.get(&1).await.unwrap();
        source.commit(1, version);
        on_a.invalidate(&1).await.unwrap();
        follows(&b, &on_b, 1, version, Instant::now()).await;
    }
}

async fn a_pod_that_is_cut_off_stops_serving_old_values_within_the_bound(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    b.wire.cut(true);
    source.commit(1, 1);
    on_a.invalidate(&1).await.unwrap();
    follows(&b, &on_b, 1, 1, Instant::now()).await;
    b.wire.cut(false);
    eventually("the link is back", async || b.cache.health().links == 2).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

async fn many_keys_go_in_one_call_however_often_they_are_named(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let keys: Vec<u64> = (0..3000).collect();
    for key in &keys {
        on_a.get(key).await.unwrap();
    }
    for key in keys.iter().take(100) {
        on_b.get(key).await.unwrap();
        source.commit(*key, 1);
    }
    source.commit(2999, 1);
    let before = a.wire.calls("invalidate");
    let named = keys.iter().chain(&keys).chain(&keys[..7]);
    let stamp = on_a.invalidate_many(named).await.unwrap();
    // 3000 keys on 16 lanes, 64 to a call: about 188 a lane make 3 calls, or rarely 4.
    let calls = a.wire.calls("invalidate") - before;
    assert!((48..=64).contains(&calls), "{calls}");
    let lanes: BTreeSet<_> = stamp.positions().map(|(lane, _)| lane).collect();
    assert_eq!((lanes.len(), stamp.positions().count() as u64), (16, calls));
    assert!(keys.iter().all(|key| on_a.peek(key).is_none()));
    assert_eq!(*on_a.get(&2999).await.unwrap(), 1);
    let acknowledged = Instant::now();
    for key in keys.iter().take(100) {
        follows(&b, &on_b, *key, 1, acknowledged).await;
    }
    let none: [&u64; 0] = [];
    assert_eq!(
        on_a.invalidate_many(none)
            .await
            .unwrap()
            .positions()
            .count(),
        0
    );
}

async fn one_key_goes_and_its_neighbours_stay(bed: Bed) {
    let source = Source::new();
    // What a busy machine does not answer in time is loaded without the store.
    let patient = || bed.pod_with(|builder| builder.read_timeout(Duration::from_secs(10)));
    let (a, b) = (patient().await, patient().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for key in 0..200 {
        on_a.get(&key).await.unwrap();
        on_b.get(&key).await.unwrap();
    }
    on_a.invalidate(&42).await.unwrap();
    eventually("the other pod has heard", async || on_b.peek(&42).is_none()).await;
    for numbers in [&on_a, &on_b] {
        let gone: Vec<_> = (0..200).filter(|key| numbers.peek(key).is_none()).collect();
        assert_eq!(gone, [42]);
    }
    assert_eq!(source.loads(), 200);
}

async fn clear_takes_everything_of_one_entity_and_nothing_of_another(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let other = |pod: &Pod| pod.cache.entity("other", source.clone()).build().unwrap();
    let (other_a, other_b) = (other(&a), other(&b));
    for key in 0..100 {
        on_a.get(&key).await.unwrap();
        on_b.get(&key).await.unwrap();
        other_a.get(&key).await.unwrap();
    }
    assert_eq!(source.loads(), 200);
    a.done("fill", 200).await;
    for key in 0..100 {
        source.commit(key, 1);
    }
    let stamp = on_a.clear().await.unwrap();
    let acknowledged = Instant::now();
    assert_eq!(stamp.positions().count(), 16);
    for key in 0..100 {
        assert_eq!(*on_a.get(&key).await.unwrap(), 1, "at once here");
        follows(&b, &on_b, key, 1, acknowledged).await;
    }
    assert_eq!(source.loads(), 300);
    // The other entity's values may have to be read again, but none is lost to the store.
    for key in 0..100 {
        assert_eq!(*other_b.get(&key).await.unwrap(), 0);
    }
    assert_eq!(source.loads(), 300);
    assert!((0..100).all(|key| other_a.peek(&key).is_some()));
}

async fn clearing_the_cache_takes_everything_of_every_entity_from_every_pod(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let other = |pod: &Pod| pod.cache.entity("other", source.clone()).build().unwrap();
    let on_a = [a.numbers(&source), other(&a)];
    let on_b = [b.numbers(&source), other(&b)];
    for (on_a, on_b) in on_a.iter().zip(&on_b) {
        for key in 0..50 {
            on_a.get(&key).await.unwrap();
            on_b.get(&key).await.unwrap();
        }
    }
    a.done("fill", 100).await;
    let raw = a.cache.raw("raw").unwrap();
    raw.set(b"kept", "yes", Ttl::Forever).await.unwrap();
    let memo = b.cache.memo("memo", source.clone());
    let memo = memo.tags(|_| ["group"]).build().unwrap();
    assert_eq!(memo.get(&7).await.unwrap(), 0);
    for key in 0..50 {
        source.commit(key, 1);
    }
    let stamp = a.cache.clear().await.unwrap();
    let acknowledged = Instant::now();
    assert_eq!(stamp.positions().count(), 16);
    for (on_a, on_b) in on_a.iter().zip(&on_b) {
        for key in 0..50 {
            assert_eq!(*on_a.get(&key).await.unwrap(), 1, "at once here");
            follows(&b, on_b, key, 1, acknowledged).await;
        }
    }
    eventually("memos with tags follow", async || {
        memo.get(&7).await.unwrap() == 1
    })
    .await;
    let late = bed.pod().await;
    let (numbers, others) = (late.numbers(&source), other(&late));
    for key in 0..50 {
        assert_eq!(*numbers.get(&key).await.unwrap(), 1, "nor from the store");
        assert_eq!(*others.get(&key).await.unwrap(), 1, "nor from the store");
    }
    assert_eq!(
        raw.get(b"kept").await.unwrap().as_deref(),
        Some(&b"yes"[..])
    );
    // What comes after is kept as ever.
    let loads = source.loads();
    assert_eq!(*on_a[0].get(&1).await.unwrap(), 1);
    assert_eq!(source.loads(), loads);
}

async fn clearing_a_cache_that_is_cut_off_holds_here_and_is_pending(bed: Bed) {
    let source = Source::new();
    let limit = Duration::from_millis(300);
    let a = bed.pod_with(|it| it.invalidate_timeout(limit)).await;
    let b = bed.pod().await;
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for key in 0..20 {
        on_a.get(&key).await.unwrap();
        on_b.get(&key).await.unwrap();
        source.commit(key, 1);
    }
    a.wire.cut(true);
    let pending = match a.cache.clear().await {
        Err(InvalidateError::Pending(pending)) => pending,
        other => panic!("{other:?}"),
    };
    for key in 0..20 {
        assert_eq!(*on_a.get(&key).await.unwrap(), 1, "here at once");
    }
    a.wire.cut(false);
    pending.settled().await.unwrap();
    let acknowledged = Instant::now();
    for key in 0..20 {
        follows(&b, &on_b, key, 1, acknowledged).await;
    }
    a.cache.close().await;
    assert!(matches!(
        a.cache.clear().await,
        Err(InvalidateError::Closed)
    ));
}

async fn a_load_that_begins_after_a_clear_survives_its_hints(bed: Bed) {
    let source = Source::new();
    // What a busy machine does not answer in time is loaded without the store.
    let patient = || bed.pod_with(|builder| builder.read_timeout(Duration::from_secs(10)));
    let (a, b) = (patient().await, patient().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    a.wire.delay_hints(true);
    on_a.clear().await.unwrap();
    for key in 0..100 {
        on_a.get(&key).await.unwrap();
    }
    let heard = a.cache.health().hints;
    a.wire.delay_hints(false);
    eventually("the echoes", async || a.cache.health().hints >= heard + 16).await;
    assert!((0..100).all(|key| on_a.peek(&key).is_some()));
    a.done("fill", 100).await;
    assert_eq!(on_b.get_with(&7).await.unwrap().origin, Origin::Store);
}

async fn the_echo_of_an_invalidation_evicts_nothing_newer(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.wire.delay_hints(true);
    let heard = pod.cache.health().hints;
    source.commit(1, 1);
    numbers.invalidate(&1).await.unwrap();
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.wire.delay_hints(false);
    eventually("the echo", async || pod.cache.health().hints > heard).await;
    assert_eq!(numbers.peek(&1).as_deref(), Some(&1));
    assert_eq!(source.loads(), 2);
}

async fn a_remote_invalidation_takes_nothing_from_the_store(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    b.wire.delay_hints(true);
    source.commit(1, 1);
    on_a.invalidate(&1).await.unwrap();
    let fills = a.wire.done("fill");
    on_a.get(&1).await.unwrap();
    a.done("fill", fills + 1).await;
    let heard = b.cache.health().hints;
    b.wire.delay_hints(false);
    eventually("the hint", async || b.cache.health().hints > heard).await;
    let served = on_b.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (1, Origin::Store));
    assert_eq!((source.loads(), b.wire.calls("invalidate")), (2, 0));
}

async fn an_invalidation_holds_here_before_the_store_has_heard_of_it(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    pod.wire.hang("invalidate");
    source.commit(1, 1);
    let mut call = std::pin::pin!(numbers.invalidate(&1));
    crate::bed::poll_once(&mut call).await;
    assert_eq!(pod.wire.done("invalidate"), 0);
    assert_eq!(numbers.peek(&1), None);
    assert_eq!(*numbers.get(&1).await.unwrap(), 1, "not what the store has");
    pod.wire.heal();
    let _ = crate::bed::soon("the answer", call).await;
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}

async fn an_invalidation_of_what_nobody_has_is_logged_all_the_same(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let first = numbers.invalidate(&1).await.unwrap();
    let second = numbers.invalidate(&1).await.unwrap();
    let position = |stamp: &tidings::Stamp| stamp.positions().next().unwrap();
    let ((lane, first), (same, second)) = (position(&first), position(&second));
    assert_eq!((lane, first.epoch), (same, second.epoch));
    assert_eq!(second.seq, first.seq + 1);
}

async fn namespaces_of_one_store_do_not_hear_each_other(bed: Bed) {
    let source = Source::new();
    let here = bed.pod().await;
    let there = tidings::Cache::builder(format!("{}.other", bed.namespace));
    let there = there.store(crate::wire::Wire::new(Arc::clone(&bed.store)));
    let there = there.build().await.unwrap();
    let on_here = here.numbers(&source);
    let on_there = there.entity("number", source.clone()).build().unwrap();
    on_here.get(&1).await.unwrap();
    on_there.get(&1).await.unwrap();
    assert_eq!(source.loads(), 2);
    let heard = there.health().hints;
    on_here.invalidate(&1).await.unwrap();
    on_here.clear().await.unwrap();
    let polls = here.wire.done("poll");
    here.done("poll", polls + 2).await;
    assert_eq!(there.health().hints, heard);
    assert!(on_there.peek(&1).is_some());
}

async fn an_invalidation_reaches_every_entity_of_its_name(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let (one, two) = (pod.numbers(&source), pod.numbers(&source));
    one.get(&1).await.unwrap();
    two.get(&1).await.unwrap();
    source.commit(1, 1);
    one.invalidate(&1).await.unwrap();
    assert_eq!(*two.get(&1).await.unwrap(), 1);
    two.clear().await.unwrap();
    assert_eq!(one.peek(&1), None);
}

on_both_stores!(
    an_invalidation_holds_here_before_the_store_has_heard_of_it,
    another_pod_follows_within_the_bound,
    another_pod_follows_within_the_bound_when_every_hint_is_lost,
    a_pod_that_is_cut_off_stops_serving_old_values_within_the_bound,
    many_keys_go_in_one_call_however_often_they_are_named,
    one_key_goes_and_its_neighbours_stay,
    clear_takes_everything_of_one_entity_and_nothing_of_another,
    clearing_the_cache_takes_everything_of_every_entity_from_every_pod,
    clearing_a_cache_that_is_cut_off_holds_here_and_is_pending,
    a_load_that_begins_after_a_clear_survives_its_hints,
    the_echo_of_an_invalidation_evicts_nothing_newer,
    a_remote_invalidation_takes_nothing_from_the_store,
    an_invalidation_of_what_nobody_has_is_logged_all_the_same,
    namespaces_of_one_store_do_not_hear_each_other,
    an_invalidation_reaches_every_entity_of_its_name,
);
