//! Reads with options of their own.

use crate::bed::{Bed, Numbers, PATIENCE, Pod, eventually, soon};
use crate::lab::{Lab, MS, SECOND};
use crate::source::{Answer, Refused, Source};
use std::time::Duration;
use tidings::{CacheError, Freshness, Origin, ReadOptions, Served, StaleReason};

const LONG: Duration = Duration::from_secs(3600);

fn stale(served: &Served<u64>) -> Option<(StaleReason, Duration)> {
    match served.freshness {
        Freshness::Stale { overdue, reason } => Some((reason, overdue)),
        _ => None,
    }
}

/// Calls of the store that concern values.
fn calls(pod: &Pod) -> u64 {
    let single = ["read", "read_proven", "lease", "fill"];
    let many = ["read_many", "lease_many", "fill_many"];
    let operations = single.into_iter().chain(many);
    operations.map(|operation| pod.wire.calls(operation)).sum()
}

async fn lapsed(pod: &Pod) {
    pod.wire.cut(true);
    eventually("nothing is confirmed", async || {
        pod.cache.health().live_lanes == 0
    })
    .await;
}

async fn a_view_without_options_reads_as_the_entity_does(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let view = numbers.with(ReadOptions::new());
    assert_eq!(view.get_with(&1).await.unwrap().origin, Origin::Loader);
    assert_eq!(view.get_with(&1).await.unwrap().origin, Origin::Local);
    assert_eq!(**view.get_many([&1, &2]).await[1].as_ref().unwrap(), 0);
    assert_eq!(source.loads(), 2);
}

async fn skip_local_reads_the_store_and_keeps_what_it_finds(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    let view = on_a.with(ReadOptions::new().skip_local());
    assert_eq!(view.get_with(&1).await.unwrap().origin, Origin::Store);
    // What another pod has stored since is found although this pod was told of nothing, and what is
    // served from here never goes back behind it.
    a.wire.deafen(true);
    a.wire.hang("poll");
    source.commit(1, 1);
    on_b.invalidate(&1).await.unwrap();
    on_b.get(&1).await.unwrap();
    b.done("fill", 1).await;
    a.wire.heal();
    let served = view.get_with(&1).await.unwrap();
    assert_eq!(*served.value, 1);
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    let listed = view.get_many([&1]).await;
    assert_eq!(**listed[0].as_ref().unwrap(), 1);
}

async fn skip_local_is_not_given_what_a_read_of_the_usual_kind_finds_here(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let usual = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.get(&1).await.map(|value| *value) }
    });
    eventually("it loads", async || source.running() == 1).await;
    // It takes the place of the flight, but the lease is held: one load all the same.
    let view = numbers.with(ReadOptions::new().skip_local());
    let (served, ()) = tokio::join!(soon("the view", view.get_with(&1)), async {
        eventually("it asks the store", async || pod.wire.calls("read") >= 2).await;
        source.let_go();
    });
    assert_eq!(served.unwrap().origin, Origin::Store);
    assert_eq!(usual.await.unwrap().unwrap(), 0);
    assert_eq!(source.loads(), 1);
}

async fn skip_store_asks_the_store_nothing_and_keeps_the_value_here_alone(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let view = on_a.with(ReadOptions::new().skip_store());
    assert_eq!(view.get_with(&1).await.unwrap().origin, Origin::Loader);
    assert_eq!(view.get_with(&1).await.unwrap().origin, Origin::Local);
    assert!(view.get_many([&2, &3]).await.iter().all(Result::is_ok));
    assert_eq!((calls(&a), source.loads()), (0, 3));
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Loader);
    // It is under the rules like any other.
    source.commit(1, 1);
    on_b.invalidate(&1).await.unwrap();
    eventually("it is gone", async || *view.get(&1).await.unwrap() == 1).await;
    let both = on_a.with(ReadOptions::new().skip_local().skip_store());
    assert_eq!(both.get_with(&1).await.unwrap().origin, Origin::Loader);
    assert_eq!(both.get_with(&1).await.unwrap().origin, Origin::Loader);
}

async fn skip_store_loads_a_list_in_one_batch(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let many = source.clone();
    let numbers = pod
        .builder(&source)
        .loader_many(move |keys| {
            let many = many.clone();
            async move { Ok::<_, Refused>(many.ask_many(keys).await) }
        })
        .build()
        .unwrap();
    let keys: Vec<u64> = (0..50).collect();
    let view = numbers.with(ReadOptions::new().skip_store());
    assert!(view.get_many(&keys).await.iter().all(Result::is_ok));
    assert_eq!((source.batches().len(), calls(&pod)), (1, 0));
}

async fn max_stale_serves_what_the_store_cannot_confirm_and_no_older(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    lapsed(&pod).await;
    eventually("it may not be served any more", async || {
        numbers.peek(&1).is_none()
    })
    .await;
    source.commit(1, 1);
    let view = numbers.with(ReadOptions::new().max_stale(LONG));
    let served = view.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (0, Origin::Local));
    let (reason, overdue) = stale(&served).unwrap();
    assert_eq!(
        (reason, overdue),
        (StaleReason::Unconfirmed, Duration::ZERO)
    );
    assert_eq!((served.bound(), source.loads()), (None, 1));
    assert_eq!(**view.get_many([&1]).await[0].as_ref().unwrap(), 0);
    let strict = numbers.with(ReadOptions::new().max_stale(MS));
    assert_eq!(*strict.get(&1).await.unwrap(), 1, "it is older than that");
}

async fn max_stale_never_serves_what_was_invalidated_here_or_heard_of(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let view = on_a.with(ReadOptions::new().max_stale(LONG));
    for (version, here) in [(1, true), (2, false)] {
        on_a.get(&1).await.unwrap();
        source.commit(1, version);
        match here {
            true => drop(on_a.invalidate(&1).await.unwrap()),
            false => {
                on_b.invalidate(&1).await.unwrap();
                eventually("it is told", async || on_a.peek(&1).is_none()).await;
            }
        }
        assert_eq!(*view.get(&1).await.unwrap(), version);
    }
    // Not even while the store has not taken it.
    lapsed(&a).await;
    source.commit(1, 3);
    on_a.invalidate(&1).await.unwrap_err();
    assert_eq!(*view.get(&1).await.unwrap(), 3);
}

async fn max_stale_serves_what_was_cleared_and_says_so(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    source.commit(1, 1);
    numbers.clear().await.unwrap();
    let view = numbers.with(ReadOptions::new().max_stale(LONG));
    let served = view.get_with(&1).await.unwrap();
    let reason = stale(&served).map(|(reason, _)| reason);
    assert_eq!((*served.value, reason), (0, Some(StaleReason::Invalidated)));
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    assert_eq!(*view.get(&1).await.unwrap(), 1, "the fresh one first");
}

async fn max_stale_stands_in_for_an_error_of_a_read_that_skips_the_local_level(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    source.answer(1, Answer::Refusal(7));
    let both = ReadOptions::new().skip_local().skip_store();
    let error = numbers.with(both).get(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Load(_)), "{error:?}");
    let view = numbers.with(both.max_stale(LONG));
    let served = view.get_with(&1).await.unwrap();
    assert_eq!(
        stale(&served),
        Some((StaleReason::LoadFailed, Duration::ZERO))
    );
    assert_eq!(**view.get_many([&1]).await[0].as_ref().unwrap(), 0);
    source.hold();
    let view = numbers.with(both.max_stale(LONG).deadline(10 * MS));
    let served = soon("the call", view.get_with(&1)).await.unwrap();
    let reason = stale(&served).map(|(reason, _)| reason);
    assert_eq!(reason, Some(StaleReason::LoadTimedOut));
    source.let_go();
}

async fn max_stale_serves_nothing_after_close(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    pod.cache.close().await;
    let view = numbers.with(ReadOptions::new().max_stale(LONG));
    assert!(matches!(view.get(&1).await, Err(CacheError::Closed)));
    assert!(matches!(
        view.get_many([&1]).await[0],
        Err(CacheError::Closed)
    ));
}

#[tokio::test]
async fn max_stale_serves_what_is_past_its_ttl_and_its_grace() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let builder = pod.builder(&lab.source).jitter(0.0);
    let numbers = builder.ttl(5 * SECOND).grace(SECOND).build().unwrap();
    numbers.get(&1).await.unwrap();
    lab.pass(15 * SECOND, &[&pod]).await;
    let view = |age| numbers.with(ReadOptions::new().max_stale(age));
    let served = view(15 * SECOND).get_with(&1).await.unwrap();
    assert_eq!(stale(&served), Some((StaleReason::Expired, 10 * SECOND)));
    assert_eq!((served.age, lab.source.loads()), (15 * SECOND, 1));
    let served = view(15 * SECOND - MS).get_with(&1).await.unwrap();
    assert_eq!(served.origin, Origin::Loader, "a millisecond too old");
}

/// Nobody ever waits long enough, neither for the load nor for the store, and yet the value comes.
async fn a_read_goes_on_behind_a_deadline_to_its_load_and_its_fill(bed: Bed) {
    let source = Source::new();
    // However slow the machine is, the store is not taken for one that does not answer.
    let patient = async || bed.pod_with(|pod| pod.read_timeout(PATIENCE)).await;
    let (a, b) = (patient().await, patient().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let hurried = on_a.with(ReadOptions::new().deadline(Duration::ZERO));
    source.hold();
    a.wire.hold_answers("read");
    for got in [
        hurried.get(&1).await,
        hurried.get_many([&2]).await.remove(0),
    ] {
        let after = match got {
            Err(CacheError::Timeout { after }) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after, Duration::ZERO);
    }
    a.wire.heal();
    eventually("both load", async || source.running() == 2).await;
    source.let_go();
    a.done("fill", 2).await;
    for key in [1, 2] {
        eventually("it is here", async || hurried.get(&key).await.is_ok()).await;
        assert_eq!(on_b.get_with(&key).await.unwrap().origin, Origin::Store);
    }
    assert_eq!(source.loads(), 2);
}

async fn a_deadline_longer_than_the_limit_of_loads_is_that_limit(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let builder = pod.builder(&source).load_timeout(20 * MS);
    let numbers: Numbers = builder.build().unwrap();
    source.hold();
    let view = numbers.with(ReadOptions::new().deadline(LONG));
    match soon("the call", view.get(&1)).await {
        Err(CacheError::Timeout { after }) => assert_eq!(after, 20 * MS),
        other => panic!("{other:?}"),
    }
    source.let_go();
}

on_both_stores!(
    a_view_without_options_reads_as_the_entity_does,
    skip_local_reads_the_store_and_keeps_what_it_finds,
    skip_local_is_not_given_what_a_read_of_the_usual_kind_finds_here,
    skip_store_asks_the_store_nothing_and_keeps_the_value_here_alone,
    skip_store_loads_a_list_in_one_batch,
    max_stale_serves_what_the_store_cannot_confirm_and_no_older,
    max_stale_never_serves_what_was_invalidated_here_or_heard_of,
    max_stale_serves_what_was_cleared_and_says_so,
    max_stale_stands_in_for_an_error_of_a_read_that_skips_the_local_level,
    max_stale_serves_nothing_after_close,
    a_read_goes_on_behind_a_deadline_to_its_load_and_its_fill,
    a_deadline_longer_than_the_limit_of_loads_is_that_limit,
);
