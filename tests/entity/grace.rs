//! Serving what has expired while it is loaded anew, or cannot be; and never what was invalidated.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::lab::{Lab, MS, SECOND};
use crate::source::{Answer, Refused, Source};
use std::pin::pin;
use std::time::{Duration, Instant};
use tidings::{CacheError, EntityBuilder, Freshness, Origin, Refresh, Served, StaleReason, Ttl};
use tokio::task::JoinSet;

/// A life that is over soon.
const BRIEF: Duration = Duration::from_millis(40);
/// A grace that no test outlives.
const LONG: Duration = Duration::from_secs(600);

fn brief(pod: &Pod, source: &Source) -> EntityBuilder<u64, Source> {
    pod.builder(source).ttl(BRIEF).grace(LONG)
}

/// Why a value is served stale; it says nothing of how much it misses.
fn stale(served: &Served<u64>) -> Option<StaleReason> {
    assert_eq!(served.is_stale(), served.bound().is_none(), "{served:?}");
    match served.freshness {
        Freshness::Stale { reason, .. } => Some(reason),
        _ => None,
    }
}

async fn look(numbers: &Numbers) -> (u64, Option<StaleReason>) {
    let served = numbers.get_with(&1).await.unwrap();
    (*served.value, stale(&served))
}

/// Loads version 1 of key 1, lets its life end, and commits version 2, of which nobody is told.
async fn age(pod: &Pod, numbers: &Numbers, source: &Source) {
    source.commit(1, 1);
    let fills = pod.wire.done("fill");
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.done("fill", fills + 1).await;
    // By the server's clock too, which is not quite this one.
    let filled = Instant::now();
    eventually("its life ends", async || filled.elapsed() > 2 * BRIEF).await;
    source.commit(1, 2);
}

async fn hears(pod: &Pod, before: u64) {
    eventually("the hint", async || pod.cache.health().hints > before).await;
}

async fn turns_fresh(numbers: &Numbers, version: u64) {
    eventually("the refresh ends", async || {
        look(numbers).await == (version, None)
    })
    .await;
}

async fn a_stale_value_is_served_at_once_while_one_load_runs_behind(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    // The second version lives long enough to be seen.
    let ttl = |_: &u64, version: &u64| Ttl::For(if *version == 1 { BRIEF } else { LONG });
    let numbers = brief(&pod, &source).ttl_with(ttl).build().unwrap();
    age(&pod, &numbers, &source).await;
    source.hold();
    let mut readers = JoinSet::new();
    for _ in 0..100 {
        let numbers = numbers.clone();
        readers.spawn(async move { look(&numbers).await });
    }
    for served in soon("the readers", readers.join_all()).await {
        assert_eq!(served, (1, Some(StaleReason::Refreshing)));
    }
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    assert_eq!(numbers.peek(&1), None, "a peek is for fresh values");
    eventually("the refresh runs", async || source.running() == 1).await;
    source.let_go();
    turns_fresh(&numbers, 2).await;
    assert_eq!((source.loads(), source.peak()), (2, 1));
}

async fn what_is_stale_in_the_store_is_served_at_once_as_well(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = brief(&a, &source).build().unwrap();
    // Even if nothing is kept in the process.
    for local_ttl in [Duration::MAX, Duration::ZERO] {
        let on_b = b.cache.entity("number", source.clone());
        let on_b = on_b.ttl(BRIEF).grace(LONG).local_ttl(local_ttl);
        let on_b = on_b.build().unwrap();
        age(&a, &on_a, &source).await;
        source.hold();
        for _ in 0..3 {
            let served = soon("a reader", on_b.get_with(&1)).await.unwrap();
            assert_eq!(*served.value, 1);
            assert_eq!(stale(&served), Some(StaleReason::Refreshing));
        }
        eventually("it is refreshed", async || source.running() == 1).await;
        source.let_go();
        eventually("the refresh ends", async || look(&on_b).await.0 == 2).await;
        on_a.invalidate(&1).await.unwrap();
    }
}

async fn many_pods_refresh_a_stale_value_once(bed: Bed) {
    let source = Source::new();
    let ttl = |_: &u64, version: &u64| Ttl::For(if *version == 1 { BRIEF } else { LONG });
    let mut pods = Vec::new();
    for _ in 0..6 {
        let pod = bed.pod().await;
        let numbers = brief(&pod, &source).ttl_with(ttl).build().unwrap();
        pods.push((pod, numbers));
    }
    age(&pods[0].0, &pods[0].1, &source).await;
    source.hold();
    for (pod, numbers) in &pods {
        assert_eq!(look(numbers).await, (1, Some(StaleReason::Refreshing)));
        // Whoever is not the first is told so.
        eventually("it asks", async || pod.wire.done("lease") > 0).await;
    }
    eventually("one loads", async || source.running() == 1).await;
    source.let_go();
    for (_, numbers) in &pods {
        turns_fresh(numbers, 2).await;
    }
    assert_eq!(source.loads(), 2);
}

async fn an_invalidated_value_is_never_served_stale(bed: Bed) {
    for refresh in [Refresh::Behind, Refresh::Ahead] {
        for by_the_reading_pod in [true, false] {
            let source = Source::new();
            let (a, b) = (bed.pod().await, bed.pod().await);
            let numbers = |pod: &Pod| brief(pod, &source).refresh(refresh).build().unwrap();
            let (on_a, on_b) = (numbers(&a), numbers(&b));
            age(&a, &on_a, &source).await;
            let heard = a.cache.health().hints;
            let by = if by_the_reading_pod { &on_a } else { &on_b };
            by.invalidate(&1).await.unwrap();
            hears(&a, heard).await;
            source.answer(1, Answer::Refusal(7));
            for pod in [&on_a, &on_b] {
                let error = pod.get(&1).await.unwrap_err();
                assert_eq!(error.load_error(), Some(&Refused(7)));
            }
            source.hold();
            source.commit(1, 3);
            let mut reader = pin!(on_a.get_with(&1));
            poll_once(&mut reader).await;
            source.let_go();
            let served = soon("the reader", reader).await.unwrap();
            assert_eq!((*served.value, stale(&served)), (3, None));
            on_a.invalidate(&1).await.unwrap();
        }
    }
}

/// 1. Version 1 is stale, and a refresh reads it once more. 2. Version 2 is committed, and invalidated.
/// 3. The refresh ends.
async fn a_refresh_that_raced_an_invalidation_is_thrown_away(bed: Bed) {
    for by_the_refreshing_pod in [true, false] {
        let source = Source::new();
        let (a, b) = (bed.pod().await, bed.pod().await);
        let numbers = |pod: &Pod| brief(pod, &source).build().unwrap();
        let (on_a, on_b) = (numbers(&a), numbers(&b));
        age(&a, &on_a, &source).await;
        let at = a.wire.last_place();
        source.commit(1, 1);
        source.hold();
        assert_eq!(look(&on_a).await, (1, Some(StaleReason::Refreshing)));
        eventually("the refresh runs", async || source.running() == 1).await;
        let fills = a.wire.done("fill");
        source.commit(1, 2);
        let heard = a.cache.health().hints;
        let by = if by_the_refreshing_pod { &on_a } else { &on_b };
        by.invalidate(&1).await.unwrap();
        hears(&a, heard).await;
        source.let_go();
        a.done("fill", fills + 1).await;
        assert_eq!(bed.hand().await.look(&at).await, None, "not in the store");
        assert_eq!(*on_b.get(&1).await.unwrap(), 2);
        assert_eq!(*on_a.get(&1).await.unwrap(), 2, "nor in the process");
        on_a.invalidate(&1).await.unwrap();
    }
}

async fn a_refresh_that_raced_a_clear_is_never_served(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let numbers = |pod: &Pod| brief(pod, &source).build().unwrap();
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    age(&a, &on_a, &source).await;
    source.commit(1, 1);
    source.hold();
    look(&on_a).await;
    eventually("the refresh runs", async || source.running() == 1).await;
    let fills = a.wire.done("fill");
    source.commit(1, 2);
    on_a.clear().await.unwrap();
    source.let_go();
    a.done("fill", fills + 1).await;
    assert_eq!(*on_b.get(&1).await.unwrap(), 2);
    assert_eq!(*on_a.get(&1).await.unwrap(), 2);
}

async fn ahead_a_load_that_ends_well_is_what_is_served(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = brief(&pod, &source)
        .refresh(Refresh::Ahead)
        .build()
        .unwrap();
    age(&pod, &numbers, &source).await;
    let served = numbers.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Loader));
    assert_eq!(stale(&served), None);
    pod.done("fill", 2).await;
    assert_eq!(source.loads(), 2);
}

async fn ahead_a_stale_value_is_served_if_the_load_fails(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let numbers = |pod: &Pod| brief(pod, &source).refresh(Refresh::Ahead).build().unwrap();
    let on_a = numbers(&a);
    age(&a, &on_a, &source).await;
    for answer in [Answer::Refusal(7), Answer::Panic] {
        source.answer(1, answer.clone());
        // Here it is in the process, there in the store alone.
        for pod in [&a, &b] {
            let source = source.clone();
            let numbers = pod.cache.entity("number", source).ttl(BRIEF).grace(LONG);
            let numbers = numbers.refresh(Refresh::Ahead).retry_after(MS);
            let numbers = numbers.build().unwrap();
            assert_eq!(look(&numbers).await, (1, Some(StaleReason::LoadFailed)));
        }
    }
    // Not tried again for a while, and said so.
    for answer in [Answer::Refusal(8), Answer::Panic] {
        source.answer(1, answer);
        let on_b = numbers(&b);
        look(&on_b).await;
        let loads = source.loads();
        assert_eq!(look(&on_b).await, (1, Some(StaleReason::LoadFailed)));
        assert_eq!(source.loads(), loads);
    }
}

async fn ahead_a_load_that_outlasts_the_soft_timeout_goes_on_behind_the_stale_value(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let ttl = |_: &u64, version: &u64| Ttl::For(if *version == 1 { BRIEF } else { LONG });
    let numbers = brief(&pod, &source).ttl_with(ttl).refresh(Refresh::Ahead);
    let numbers = numbers.soft_timeout(BRIEF).build().unwrap();
    age(&pod, &numbers, &source).await;
    source.hold();
    for _ in 0..3 {
        let served = soon("the soft timeout", look(&numbers)).await;
        assert_eq!(served, (1, Some(StaleReason::LoadTimedOut)));
    }
    assert_eq!(source.running(), 1);
    source.let_go();
    turns_fresh(&numbers, 2).await;
    assert_eq!(source.loads(), 2);
}

async fn without_a_stale_value_the_soft_timeout_changes_nothing(bed: Bed) {
    let source = Source::new();
    source.commit(1, 1);
    let pod = bed.pod().await;
    let numbers = brief(&pod, &source).refresh(Refresh::Ahead);
    let numbers = numbers.soft_timeout(BRIEF).build().unwrap();
    source.hold();
    let mut reader = pin!(numbers.get_with(&1));
    let soft = tokio::time::timeout(3 * BRIEF, &mut reader).await;
    assert!(soft.is_err(), "it waits");
    source.let_go();
    assert_eq!(*soon("the reader", reader).await.unwrap().value, 1);
}

async fn ahead_a_load_that_outlasts_the_hard_limit_leaves_the_stale_value(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = brief(&pod, &source).refresh(Refresh::Ahead);
    let numbers = numbers.load_timeout(5 * BRIEF).build().unwrap();
    age(&pod, &numbers, &source).await;
    source.hold();
    let served = soon("the hard limit", look(&numbers)).await;
    assert_eq!(served, (1, Some(StaleReason::LoadTimedOut)));
    numbers.invalidate(&1).await.unwrap();
    let error = soon("the hard limit", numbers.get(&1)).await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { .. }), "{error:?}");
    source.let_go();
}

async fn an_invalidation_during_the_load_leaves_nothing_stale_to_fall_back_on(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = brief(&pod, &source)
        .refresh(Refresh::Ahead)
        .build()
        .unwrap();
    age(&pod, &numbers, &source).await;
    source.answer(1, Answer::Refusal(7));
    source.hold();
    let mut reader = pin!(numbers.get(&1));
    poll_once(&mut reader).await;
    let loading = async {
        eventually("the load runs", async || source.running() == 1).await;
        numbers.invalidate(&1).await.unwrap();
        source.let_go();
    };
    let (read, ()) = tokio::join!(soon("the reader", &mut reader), loading);
    assert_eq!(read.unwrap_err().load_error(), Some(&Refused(7)));
}

async fn after_close_nothing_stale_is_served(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = brief(&pod, &source)
        .refresh(Refresh::Ahead)
        .build()
        .unwrap();
    age(&pod, &numbers, &source).await;
    source.hold();
    let mut reader = pin!(numbers.get(&1));
    poll_once(&mut reader).await;
    let closing = async {
        eventually("the load runs", async || source.running() == 1).await;
        pod.cache.close().await;
    };
    let (read, ()) = tokio::join!(soon("the reader", &mut reader), closing);
    let error = read.unwrap_err();
    assert!(matches!(error, CacheError::Closed), "{error:?}");
    assert_eq!(source.running(), 0);
}

async fn a_new_error_with_a_life_replaces_the_stale_value(bed: Bed) {
    for refresh in [Refresh::Behind, Refresh::Ahead] {
        let source = Source::new();
        let (a, b) = (bed.pod().await, bed.pod().await);
        let numbers = |pod: &Pod| {
            let numbers = brief(pod, &source)
                .error_ttl(|_| Some(LONG))
                .refresh(refresh);
            numbers.build().unwrap()
        };
        let (on_a, on_b) = (numbers(&a), numbers(&b));
        age(&a, &on_a, &source).await;
        source.answer(1, Answer::Refusal(7));
        let fills = a.wire.done("fill");
        eventually("the error is served", async || on_a.get(&1).await.is_err()).await;
        a.done("fill", fills + 1).await;
        let error = on_b.get(&1).await.unwrap_err();
        assert_eq!(error.load_error(), Some(&Refused(7)));
        assert_eq!(source.loads(), 2);
        on_a.invalidate(&1).await.unwrap();
    }
}

async fn an_outcome_that_is_not_kept_takes_the_stale_value_away(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let ttl = |_: &u64, version: &u64| {
        if *version == 1 {
            BRIEF.into()
        } else {
            Ttl::NONE
        }
    };
    let numbers = brief(&pod, &source).ttl_with(ttl).build().unwrap();
    age(&pod, &numbers, &source).await;
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.done("fill", 2).await;
    eventually("the old value is gone", async || {
        look(&numbers).await == (2, None)
    })
    .await;
}

async fn a_pod_without_grace_loads_what_is_stale(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = brief(&a, &source).build().unwrap();
    let on_b = b.builder(&source).ttl(LONG).build().unwrap();
    age(&a, &on_a, &source).await;
    let served = on_b.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Loader));
    b.done("fill", 1).await;
    turns_fresh(&on_a, 2).await;
    assert_eq!(source.loads(), 2);
}

async fn a_refresh_that_hangs_for_ever_leaves_its_key_to_others(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let ttl = |_: &u64, version: &u64| Ttl::For(if *version == 1 { BRIEF } else { LONG });
    let numbers = |pod: &Pod| {
        let numbers = brief(pod, &source).ttl_with(ttl).load_timeout(5 * BRIEF);
        numbers.retry_after(BRIEF).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    age(&a, &on_a, &source).await;
    source.hold();
    look(&on_a).await;
    eventually("it hangs", async || source.running() == 1).await;
    let at = a.wire.last_place();
    eventually("it is dropped", async || source.running() == 0).await;
    let hand = bed.hand().await;
    eventually("its lease is gone", async || hand.look(&at).await.is_none()).await;
    assert_eq!(source.ended(), 1);
    source.let_go();
    turns_fresh(&on_b, 2).await;
    turns_fresh(&on_a, 2).await;
}

async fn a_load_that_hangs_for_ever_leaves_its_key_to_others(bed: Bed) {
    let source = Source::new();
    source.commit(1, 1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let numbers = |pod: &Pod| {
        pod.builder(&source)
            .load_timeout(5 * BRIEF)
            .build()
            .unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    source.hold();
    on_a.get(&1).await.unwrap_err();
    let at = a.wire.last_place();
    eventually("it is dropped", async || source.running() == 0).await;
    let hand = bed.hand().await;
    eventually("its lease is gone", async || hand.look(&at).await.is_none()).await;
    source.let_go();
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Loader);
    b.done("fill", 1).await;
    assert_eq!(on_a.get_with(&1).await.unwrap().origin, Origin::Store);
}

#[tokio::test(start_paused = true)]
async fn grace_begins_and_ends_at_the_millisecond_it_was_given_in_both_levels() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let numbers = |pod: &Pod, grace| {
        let numbers = pod.builder(&lab.source).ttl(5 * SECOND).grace(grace);
        numbers.refresh(Refresh::Ahead).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a, 10 * SECOND), numbers(&b, 10 * SECOND));
    let shorter = numbers(&b, 2 * SECOND);
    lab.source.commit(1, 1);
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.source.answer(1, Answer::Refusal(7));
    lab.pass(5 * SECOND - MS, &[&a, &b]).await;
    assert_eq!(look(&on_a).await, (1, None));
    lab.pass(MS, &[&a, &b]).await;
    let served = on_a.get_with(&1).await.unwrap();
    let overdue = Duration::ZERO;
    let reason = StaleReason::LoadFailed;
    assert_eq!(served.freshness, Freshness::Stale { overdue, reason });
    assert_eq!(served.age, 5 * SECOND);
    lab.pass(2 * SECOND, &[&a, &b]).await;
    assert!(shorter.get(&1).await.is_err(), "its own grace is over");
    lab.pass(8 * SECOND - MS, &[&a, &b]).await;
    assert_eq!(look(&on_a).await.0, 1);
    let served = on_b.get_with(&1).await.unwrap();
    assert!(
        matches!(served.freshness, Freshness::Stale { overdue, .. } if overdue == 10 * SECOND - MS)
    );
    lab.pass(MS, &[&a, &b]).await;
    for pod in [&on_a, &on_b] {
        assert!(pod.get(&1).await.is_err());
    }
    let at = b.wire.last_place();
    assert_eq!(lab.bed.hand().await.look(&at).await, None);
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_refresh_the_next_one_comes_when_the_pause_is_over() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(SECOND).grace(LONG);
    let numbers = numbers.retry_after(7 * SECOND).build().unwrap();
    lab.source.commit(1, 1);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    lab.pass(SECOND, &[&pod]).await;
    lab.source.answer(1, Answer::Refusal(7));
    assert_eq!(look(&numbers).await, (1, Some(StaleReason::Refreshing)));
    let failed = (1, Some(StaleReason::LoadFailed));
    eventually("it fails", async || look(&numbers).await == failed).await;
    lab.pass(7 * SECOND - MS, &[&pod]).await;
    assert_eq!(look(&numbers).await, failed);
    assert_eq!(lab.source.loads(), 2);
    lab.pass(MS, &[&pod]).await;
    assert_eq!(look(&numbers).await, (1, Some(StaleReason::Refreshing)));
    eventually("it is tried again", async || lab.source.loads() == 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_cached_error_has_no_grace() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).grace(LONG);
    let numbers = numbers.error_ttl(|_| Some(SECOND)).build().unwrap();
    lab.source.answer(1, Answer::Refusal(7));
    numbers.get(&1).await.unwrap_err();
    pod.done("fill", 1).await;
    lab.source.commit(1, 1);
    lab.pass(SECOND - MS, &[&pod]).await;
    numbers.get(&1).await.unwrap_err();
    lab.pass(MS, &[&pod]).await;
    assert_eq!(look(&numbers).await, (1, None));
}

/// What has expired may have been invalidated too, for all that a pod knows which is cut off.
#[tokio::test(start_paused = true)]
async fn a_pod_that_is_cut_off_serves_nothing_stale_beyond_the_bound() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(500 * MS).grace(LONG);
    let numbers = numbers.build().unwrap();
    lab.source.commit(1, 1);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    lab.source.hold();
    pod.wire.cut(true);
    lab.clock.advance(SECOND - MS);
    assert_eq!(look(&numbers).await.0, 1);
    lab.clock.advance(MS);
    lab.source.commit(1, 2);
    let mut reader = pin!(numbers.get_with(&1));
    poll_once(&mut reader).await;
    lab.source.let_go();
    assert_eq!(*reader.await.unwrap().value, 2);
}

on_both_stores!(
    a_stale_value_is_served_at_once_while_one_load_runs_behind,
    what_is_stale_in_the_store_is_served_at_once_as_well,
    many_pods_refresh_a_stale_value_once,
    an_invalidated_value_is_never_served_stale,
    a_refresh_that_raced_an_invalidation_is_thrown_away,
    a_refresh_that_raced_a_clear_is_never_served,
    ahead_a_load_that_ends_well_is_what_is_served,
    ahead_a_stale_value_is_served_if_the_load_fails,
    ahead_a_load_that_outlasts_the_soft_timeout_goes_on_behind_the_stale_value,
    without_a_stale_value_the_soft_timeout_changes_nothing,
    ahead_a_load_that_outlasts_the_hard_limit_leaves_the_stale_value,
    an_invalidation_during_the_load_leaves_nothing_stale_to_fall_back_on,
    after_close_nothing_stale_is_served,
    a_new_error_with_a_life_replaces_the_stale_value,
    an_outcome_that_is_not_kept_takes_the_stale_value_away,
    a_pod_without_grace_loads_what_is_stale,
    a_refresh_that_hangs_for_ever_leaves_its_key_to_others,
    a_load_that_hangs_for_ever_leaves_its_key_to_others,
);
