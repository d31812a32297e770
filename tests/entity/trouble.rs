//! The store is away, full, or does not answer.

use crate::bed::{Bed, Pod, eventually, pending, soon};
use crate::source::Source;
use crate::wire::Wire;
use std::time::{Duration, Instant};
use tidings::coherence::{Mechanism, Mechanisms};
use tidings::error::StoreErrorKind;
use tidings::store::Memory;
use tidings::{Cache, CircuitState, InvalidateError, OnStoreAbsent, Origin, StoreState};
use tokio::task::JoinSet;

async fn up(pod: &Pod) {
    eventually("the link is up", async || {
        let health = pod.cache.health();
        matches!(health.store, StoreState::Up) && health.live_lanes == health.lanes
    })
    .await;
}

#[tokio::test]
async fn a_store_that_is_away_at_the_start_fails_the_build() {
    let store = Memory::new();
    store.faults().set_down(true);
    let error = Cache::builder("t").store(store).build().await.unwrap_err();
    assert_eq!(error.option(), "store");
    let kind = error.store_error().map(|error| error.kind());
    assert_eq!(kind, Some(StoreErrorKind::Unavailable));
}

async fn a_cache_that_starts_degraded_works_and_heals(bed: Bed) {
    let source = Source::new();
    let wire = Wire::new(std::sync::Arc::clone(&bed.store));
    wire.cut(true);
    let builder = Cache::builder(&*bed.namespace).store(wire.clone());
    let builder = builder.on_store_absent(OnStoreAbsent::StartDegraded);
    let pod = Pod {
        cache: builder.build().await.unwrap(),
        wire,
    };
    let numbers = pod.numbers(&source);
    let health = pod.cache.health();
    assert!(
        matches!(health.store, StoreState::Down { .. }),
        "{health:?}"
    );
    assert_eq!(
        (health.live_lanes, health.confirmed, health.links),
        (0, None, 0)
    );
    // Within the bound a value may be served without any confirmation: it is young.
    assert_eq!(numbers.get_with(&1).await.unwrap().origin, Origin::Loader);
    assert_eq!(numbers.get_with(&1).await.unwrap().origin, Origin::Local);
    source.commit(1, 1);
    let waiting = pending(&numbers, [1]).await;
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.wire.cut(false);
    soon("the invalidation", waiting.settled()).await.unwrap();
    up(&pod).await;
    assert_eq!(pod.cache.health().links, 1);
    numbers.get(&2).await.unwrap();
    pod.done("fill", 1).await;
    let other = bed.pod().await;
    let served = other.numbers(&source).get_with(&2).await.unwrap();
    assert_eq!(served.origin, Origin::Store);
}

async fn without_the_store_reads_go_on_from_here_and_then_from_the_loader(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.wire.cut(true);
    pod.is_down().await;
    source.commit(1, 1);
    eventually("it is loaded again", async || {
        let served = numbers.get_with(&1).await.unwrap();
        assert!(served.bound().unwrap() <= pod.cache.health().bound + Duration::from_millis(50));
        *served.value == 1
    })
    .await;
    pod.wire.cut(false);
    up(&pod).await;
    assert!(numbers.get(&1).await.is_ok());
}

async fn loads_without_a_lease_never_exceed_their_limit(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.builder(&source).max_unleased_loads(4).build().unwrap();
    pod.wire.cut(true);
    pod.is_down().await;
    source.hold();
    let mut readers = JoinSet::new();
    for key in 0..100 {
        let numbers = numbers.clone();
        readers.spawn(async move { numbers.get(&key).await.map(drop).is_ok() });
    }
    eventually("the limit is reached", async || source.running() == 4).await;
    source.let_go();
    let got = soon("all of them", readers.join_all()).await;
    assert!(got.into_iter().all(|ok| ok));
    assert_eq!((source.peak(), source.loads()), (4, 100));
}

/// Loads of one key by a pod without store, and how many bounds that took.
async fn loads_while_cut_off(bed: &Bed, mechanisms: Mechanisms) -> (usize, u32) {
    let source = Source::new();
    let pod = bed.pod_with(|builder| builder.mechanisms(mechanisms)).await;
    let numbers = pod.numbers(&source);
    pod.wire.cut(true);
    eventually("nothing is confirmed", async || {
        pod.cache.health().live_lanes == 0
    })
    .await;
    let began = Instant::now();
    let lease = Duration::from_secs(1);
    for _ in 0..1000 {
        numbers.get(&1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let lives = began.elapsed().div_duration_f64(lease).ceil();
    (source.loads(), lives as u32)
}

async fn an_outage_costs_one_load_for_each_key_and_bound(bed: Bed) {
    let (loads, lives) = loads_while_cut_off(&bed, Mechanisms::default()).await;
    assert!(loads as u32 <= lives, "{loads} in {lives}");
}

async fn without_own_age_an_outage_costs_a_load_for_each_read(bed: Bed) {
    let mechanisms = Mechanisms::default().without(Mechanism::OwnAge);
    let (loads, _) = loads_while_cut_off(&bed, mechanisms).await;
    assert_eq!(loads, 1000);
}

/// Time stands still: the next poll is refused as well, and with it the link is given up.
#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_writes_costs_nobody_a_value() {
    for kind in [StoreErrorKind::Full, StoreErrorKind::ReadOnly] {
        let store = Memory::new();
        let (bed, source) = (Bed::on(store.clone()), Source::new());
        let pod = bed.pod().await;
        let numbers = pod.numbers(&source);
        numbers.get(&1).await.unwrap();
        store.faults().set_error(Some(kind));
        source.commit(1, 1);
        let waiting = pending(&numbers, [1]).await;
        assert_eq!(waiting.reason().kind(), kind);
        for key in 1..20 {
            numbers.get(&key).await.unwrap();
        }
        assert_eq!(*numbers.get(&1).await.unwrap(), 1);
        store.faults().set_error(None);
        soon("the invalidation", waiting.settled()).await.unwrap();
        assert_eq!(*bed.pod().await.numbers(&source).get(&1).await.unwrap(), 1);
    }
}

async fn a_store_that_hangs_holds_no_read_up_for_long(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    for (key, operation) in (0..).zip(["read", "lease", "fill"]) {
        pod.wire.hang(operation);
        // Were it held up, this would end in `Timeout` after five seconds.
        assert_eq!(numbers.get_with(&key).await.unwrap().origin, Origin::Loader);
        pod.wire.heal();
    }
}

/// The store hangs for reads alone, so the link stays up: what is left is the breaker.
async fn readers_wait_for_a_store_that_hangs_a_few_times_and_then_only_to_probe(bed: Bed) {
    let source = Source::new();
    let limit = Duration::from_millis(50);
    let pod = bed.pod_with(|builder| builder.read_timeout(limit)).await;
    let numbers = pod.numbers(&source);
    numbers.get(&0).await.unwrap();
    pod.done("fill", 1).await;
    pod.wire.hang("read");
    let began = Instant::now();
    for key in 1..500 {
        let served = numbers.get_with(&key).await.unwrap();
        assert_eq!(served.origin, Origin::Loader);
    }
    let health = pod.cache.health();
    assert_ne!(health.circuit, CircuitState::Closed);
    assert_eq!((health.circuit_openings, health.links), (1, 1));
    // Half a second apart at least, and five before the first.
    let probes = began.elapsed().as_millis() as u64 / 500;
    let asked = pod.wire.calls("read") - 1;
    assert!(asked <= 5 + probes, "{asked} reads asked");
    // An invalidation asks nobody whether it may.
    soon("acknowledged", numbers.invalidate(&1)).await.unwrap();
    assert_ne!(pod.cache.health().circuit, CircuitState::Closed);

    pod.wire.heal();
    eventually("the store is in use again", async || {
        numbers.local().clear();
        numbers.get_with(&0).await.unwrap().origin == Origin::Store
    })
    .await;
    assert_eq!(pod.cache.health().circuit, CircuitState::Closed);
}

/// Lists take part: they open it, and then do not wait either.
async fn a_list_is_one_call_to_the_breaker(bed: Bed) {
    let source = Source::new();
    let limit = Duration::from_millis(50);
    let pod = bed.pod_with(|builder| builder.read_timeout(limit)).await;
    let numbers = pod.numbers(&source);
    pod.wire.hang("lease_many");
    let began = Instant::now();
    for first in (0..200).step_by(10) {
        let keys: Vec<u64> = (first..first + 10).collect();
        let got = numbers.get_many(&keys).await;
        assert!(got.iter().all(Result::is_ok));
    }
    assert_eq!(pod.cache.health().circuit_openings, 1);
    let probes = began.elapsed().as_millis() as u64 / 500;
    let asked = pod.wire.calls("lease_many");
    assert!(asked <= 5 + probes, "{asked} lists asked");
}

/// A store that refuses what is asked of it is there, and costs nobody any time. As above, time stands still.
#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_is_asked_again_and_again() {
    let store = Memory::new();
    let (bed, source) = (Bed::on(store.clone()), Source::new());
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    store.faults().set_error(Some(StoreErrorKind::Full));
    for key in 0..50 {
        numbers.get(&key).await.unwrap();
        let health = pod.cache.health();
        assert_eq!(health.circuit, CircuitState::Closed);
    }
    assert_eq!(pod.wire.calls("read"), 50);
}

async fn an_invalidation_that_the_store_does_not_answer_is_pending(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    source.commit(1, 1);
    pod.wire.hang("invalidate");
    let waiting = pending(&numbers, [1]).await;
    assert_eq!(waiting.reason().kind(), StoreErrorKind::Timeout);
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.wire.heal();
    soon("the invalidation", waiting.settled()).await.unwrap();
    assert_eq!(pod.cache.health().pending, 0);
}

async fn an_invalidation_without_the_store_takes_effect_here_and_later_everywhere(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_a.get(&1).await.unwrap();
    on_b.get(&1).await.unwrap();
    a.wire.cut(true);
    a.is_down().await;
    source.commit(1, 1);
    let waiting = pending(&on_a, [1]).await;
    assert_eq!(waiting.reason().kind(), StoreErrorKind::Unavailable);
    assert_eq!(*on_a.get(&1).await.unwrap(), 1, "here at once");
    assert_eq!(*on_b.get(&1).await.unwrap(), 0, "nobody told the other pod");
    assert_eq!(a.cache.health().pending, 1);
    let waited = a.cache.health().oldest_pending.unwrap();
    eventually("its age grows", async || {
        a.cache.health().oldest_pending > Some(waited)
    })
    .await;
    a.wire.cut(false);
    let stamp = soon("the invalidation", waiting.settled()).await.unwrap();
    assert_eq!(stamp.positions().count(), 1);
    let health = a.cache.health();
    assert_eq!((health.pending, health.oldest_pending), (0, None));
    eventually("the other pod follows", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
    assert_eq!(soon("again", waiting.settled()).await.unwrap(), stamp);
}

/// While the store is told nothing, what it holds is not believed.
async fn a_pending_invalidation_hides_what_the_store_still_holds(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    source.commit(1, 1);
    pod.wire.hang("invalidate");
    let call = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.invalidate(&1).await.map(drop) }
    });
    eventually("the call", async || pod.wire.calls("invalidate") == 1).await;
    // The store answers reads all the while, with the old value.
    for _ in 0..3 {
        numbers.local().clear();
        assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    }
    pod.wire.heal();
    soon("the call", call).await.unwrap().unwrap();
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}

async fn an_invalidation_happens_though_nobody_keeps_its_handle(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    on_b.get(&2).await.unwrap();
    a.wire.cut(true);
    a.is_down().await;
    source.commit(1, 1);
    source.commit(2, 1);
    drop(pending(&on_a, [1]).await);
    assert!(matches!(
        on_a.clear().await,
        Err(InvalidateError::Pending(_))
    ));
    assert_eq!(*on_b.get(&1).await.unwrap(), 0);
    a.wire.cut(false);
    for key in [1, 2] {
        eventually("it happens", async || *on_b.get(&key).await.unwrap() == 1).await;
    }
    eventually("all is told", async || a.cache.health().pending == 0).await;
}

async fn the_same_invalidation_made_often_while_it_waits_is_told_once(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    pod.wire.cut(true);
    pod.is_down().await;
    let mut waiting = Vec::new();
    for _ in 0..100 {
        waiting.push(pending(&numbers, [1]).await);
    }
    assert_eq!(pod.cache.health().pending, 1, "one key");
    let before = pod.wire.calls("invalidate");
    pod.wire.cut(false);
    for waiting in waiting {
        soon("each of them", waiting.settled()).await.unwrap();
    }
    assert_eq!(pod.cache.health().pending, 0);
    assert_eq!(pod.wire.calls("invalidate") - before, 1);
}

on_both_stores!(
    a_cache_that_starts_degraded_works_and_heals,
    without_the_store_reads_go_on_from_here_and_then_from_the_loader,
    loads_without_a_lease_never_exceed_their_limit,
    an_outage_costs_one_load_for_each_key_and_bound,
    without_own_age_an_outage_costs_a_load_for_each_read,
    a_store_that_hangs_holds_no_read_up_for_long,
    readers_wait_for_a_store_that_hangs_a_few_times_and_then_only_to_probe,
    a_list_is_one_call_to_the_breaker,
    an_invalidation_that_the_store_does_not_answer_is_pending,
    an_invalidation_without_the_store_takes_effect_here_and_later_everywhere,
    a_pending_invalidation_hides_what_the_store_still_holds,
    an_invalidation_happens_though_nobody_keeps_its_handle,
    the_same_invalidation_made_often_while_it_waits_is_told_once,
);
