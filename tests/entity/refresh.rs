//! Loading anew what is still fresh: because somebody says so, or shortly before its life ends.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::lab::{Lab, MS, SECOND};
use crate::source::{Answer, Refused, Source};
use std::pin::pin;
use std::time::{Duration, Instant};
use tidings::{CacheError, EarlyRefresh, Origin};
use tokio::task::JoinHandle;

fn refresher(numbers: &Numbers) -> JoinHandle<Result<u64, CacheError<Refused>>> {
    let numbers = numbers.clone();
    tokio::spawn(async move { numbers.refresh(&1).await.map(|value| *value) })
}

/// Loads version 1 of key 1, and commits version 2, of which nobody is told.
async fn warm(pod: &Pod, numbers: &Numbers, source: &Source) {
    source.commit(1, 1);
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    pod.done("fill", 1).await;
    source.commit(1, 2);
}

async fn loading(source: &Source) {
    eventually("it loads", async || source.running() == 1).await;
}

async fn the_old_value_is_served_while_a_refresh_loads(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    warm(&a, &on_a, &source).await;
    source.hold();
    let refresh = refresher(&on_a);
    loading(&source).await;
    for (pod, origin) in [(&on_a, Origin::Local), (&on_b, Origin::Store)] {
        let served = pod.get_with(&1).await.unwrap();
        assert_eq!((*served.value, served.origin), (1, origin));
        assert!(!served.is_stale());
    }
    source.let_go();
    assert_eq!(soon("the refresh", refresh).await.unwrap().unwrap(), 2);
    a.done("fill", 2).await;
    let served = on_a.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Local));
    on_b.local().clear();
    let served = on_b.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (2, Origin::Store));
}

async fn refreshes_at_the_same_time_load_once(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    warm(&a, &on_a, &source).await;
    source.hold();
    let mut refreshes: Vec<_> = (0..20).map(|_| refresher(&on_a)).collect();
    loading(&source).await;
    refreshes.extend((0..20).map(|_| refresher(&on_b)));
    eventually("the other pod asks", async || b.wire.done("lease") > 0).await;
    source.let_go();
    for refresh in refreshes {
        assert_eq!(soon("a refresh", refresh).await.unwrap().unwrap(), 2);
    }
    assert_eq!(source.loads(), 2);
}

async fn a_refresh_that_an_invalidation_overtook_is_not_kept(bed: Bed) {
    for by_the_refreshing_pod in [true, false] {
        let source = Source::new();
        let (a, b) = (bed.pod().await, bed.pod().await);
        let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
        warm(&a, &on_a, &source).await;
        source.hold();
        let refresh = refresher(&on_a);
        loading(&source).await;
        source.commit(1, 3);
        let heard = a.cache.health().hints;
        let by = if by_the_refreshing_pod { &on_a } else { &on_b };
        by.invalidate(&1).await.unwrap();
        eventually("the hint", async || a.cache.health().hints > heard).await;
        let mut later = pin!(on_a.refresh(&1));
        poll_once(&mut later).await;
        source.let_go();
        assert_eq!(refresh.await.unwrap().unwrap(), 2, "it asked before");
        assert_eq!(*soon("a later refresh", later).await.unwrap(), 3);
        assert_eq!(*on_a.get(&1).await.unwrap(), 3);
        assert_eq!(*on_b.get(&1).await.unwrap(), 3);
        on_a.invalidate(&1).await.unwrap();
    }
}

/// As above, without anybody who loads the new version: nothing must be there.
async fn an_overtaken_refresh_leaves_nothing_in_either_level(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    warm(&pod, &numbers, &source).await;
    let at = pod.wire.last_place();
    source.hold();
    let refresh = refresher(&numbers);
    loading(&source).await;
    numbers.invalidate(&1).await.unwrap();
    source.let_go();
    assert_eq!(refresh.await.unwrap().unwrap(), 2);
    pod.done("fill", 2).await;
    assert_eq!(bed.hand().await.look(&at).await, None);
    assert_eq!(numbers.peek(&1), None);
}

async fn a_refresh_that_fails_leaves_what_was_there(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    warm(&a, &on_a, &source).await;
    source.answer(1, Answer::Refusal(7));
    let error = on_a.refresh(&1).await.unwrap_err();
    assert_eq!(error.load_error(), Some(&Refused(7)));
    source.answer(1, Answer::Panic);
    let error = soon("it aborts", on_a.refresh(&1)).await.unwrap_err();
    assert!(matches!(error, CacheError::LoadAborted), "{error:?}");
    for pod in [&on_a, &on_b] {
        assert_eq!(*pod.get(&1).await.unwrap(), 1);
    }
    // Who says so does not wait for the end of a pause.
    source.commit(1, 3);
    assert_eq!(*on_a.refresh(&1).await.unwrap(), 3);
    a.done("fill", 2).await;
    on_b.local().clear();
    let served = on_b.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (3, Origin::Store));
}

async fn a_refresh_of_what_is_not_there_loads_and_stores_it(bed: Bed) {
    let source = Source::new();
    source.commit(1, 1);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    assert_eq!(*on_a.refresh(&1).await.unwrap(), 1);
    a.done("fill", 1).await;
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Store);
}

async fn a_refresh_works_while_the_store_is_away(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    warm(&pod, &numbers, &source).await;
    pod.wire.cut(true);
    assert_eq!(*soon("the refresh", numbers.refresh(&1)).await.unwrap(), 2);
    assert_eq!(*numbers.get(&1).await.unwrap(), 2);
}

async fn a_refresh_that_nobody_waits_for_is_dropped_and_its_lease_returned(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    warm(&a, &on_a, &source).await;
    source.hold();
    let refreshes: Vec<_> = (0..3).map(|_| refresher(&on_a)).collect();
    loading(&source).await;
    let at = a.wire.last_place();
    refreshes.iter().for_each(JoinHandle::abort);
    eventually("the load is dropped", async || source.running() == 0).await;
    let hand = bed.hand().await;
    eventually("the lease is gone", async || hand.look(&at).await.is_none()).await;
    source.let_go();
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    assert_eq!(*on_b.refresh(&1).await.unwrap(), 2);
}

async fn a_refresh_that_takes_too_long_fills_all_the_same(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let limit = Duration::from_millis(200);
    let numbers = pod.builder(&source).load_timeout(limit).build().unwrap();
    warm(&pod, &numbers, &source).await;
    source.hold();
    let error = numbers.refresh(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { after } if after == limit));
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
    source.let_go();
    pod.done("fill", 2).await;
    assert_eq!(*numbers.get(&1).await.unwrap(), 2);
}

/// A life ends while a refresh of it is under way: there is one load nevertheless.
async fn a_reader_who_finds_nothing_joins_the_refresh_of_its_pod(bed: Bed) {
    let brief = Duration::from_millis(150);
    for key in 0.. {
        let source = Source::new();
        let pod = bed.pod().await;
        let numbers = pod.builder(&source).ttl(brief).build().unwrap();
        source.commit(key, 1);
        numbers.get(&key).await.unwrap();
        pod.done("fill", 1).await;
        let filled = Instant::now();
        source.commit(key, 2);
        source.hold();
        let refresh = {
            let numbers = numbers.clone();
            tokio::spawn(async move { *numbers.refresh(&key).await.unwrap() })
        };
        loading(&source).await;
        if filled.elapsed() > brief {
            continue; // too late: this was a load like any other
        }
        eventually("the life ends", async || filled.elapsed() > 2 * brief).await;
        let (reads, mut reader) = (pod.wire.done("read"), pin!(numbers.get(&key)));
        poll_once(&mut reader).await;
        let looked = eventually("it looks", async || pod.wire.done("read") > reads);
        tokio::select! {
            _ = &mut reader => panic!("it waits"),
            () = looked => {}
        }
        source.let_go();
        assert_eq!(*soon("the reader", reader).await.unwrap(), 2);
        assert_eq!(refresh.await.unwrap(), 2);
        assert_eq!(source.loads(), 2);
        return;
    }
}

async fn after_close_a_refresh_says_so(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    warm(&pod, &numbers, &source).await;
    source.hold();
    let refresh = refresher(&numbers);
    loading(&source).await;
    pod.cache.close().await;
    let error = soon("the refresh", refresh).await.unwrap().unwrap_err();
    assert!(matches!(error, CacheError::Closed), "{error:?}");
    let error = numbers.refresh(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Closed), "{error:?}");
    assert_eq!(source.running(), 0);
}

/// A value whose load took at least `took`, as the first pod of `lab` has it.
async fn slowly_loaded(lab: &Lab, pod: &Pod, numbers: &Numbers, took: Duration) {
    lab.source.commit(1, 1);
    lab.source.hold();
    let mut reader = pin!(numbers.get(&1));
    poll_once(&mut reader).await;
    let hold_up = async {
        loading(&lab.source).await;
        // Loads are timed by the clock on the wall.
        std::thread::sleep(took);
        lab.source.let_go();
    };
    tokio::join!(hold_up, async { reader.await.unwrap() });
    pod.done("fill", 1).await;
}

/// Enough reads for whatever has a chance of one in a hundred.
async fn read_often(numbers: &Numbers) {
    for _ in 0..2000 {
        let served = numbers.get_with(&1).await.unwrap();
        assert!(!served.is_stale());
    }
    tokio::task::yield_now().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_read_often_is_loaded_anew_shortly_before_its_life_ends() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(100 * SECOND).jitter(0.0);
    let numbers = numbers.build().unwrap();
    slowly_loaded(&lab, &pod, &numbers, 20 * MS).await;
    lab.pass(80 * SECOND - MS, &[&pod]).await;
    read_often(&numbers).await;
    assert_eq!(lab.source.loads(), 1, "not before the last fifth");
    lab.pass(20 * SECOND, &[&pod]).await;
    lab.source.commit(1, 2);
    lab.source.hold();
    eventually("it is due", async || {
        let served = numbers.get_with(&1).await.unwrap();
        assert_eq!((*served.value, served.origin), (1, Origin::Local));
        assert!(served.bound().is_some());
        lab.source.running() == 1
    })
    .await;
    read_often(&numbers).await;
    lab.source.let_go();
    eventually("it is renewed", async || {
        *numbers.get(&1).await.unwrap() == 2
    })
    .await;
    assert_eq!((lab.source.loads(), lab.source.peak()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn one_pod_loads_early_for_all() {
    let lab = Lab::new();
    let mut pods = Vec::new();
    for _ in 0..5 {
        let pod = lab.pod().await;
        let numbers = pod.builder(&lab.source).ttl(10 * SECOND);
        let numbers = numbers.build().unwrap();
        pods.push((pod, numbers));
    }
    slowly_loaded(&lab, &pods[0].0, &pods[0].1, 20 * MS).await;
    for (_, numbers) in &pods {
        numbers.get(&1).await.unwrap();
    }
    let all: Vec<_> = pods.iter().map(|(pod, _)| pod).collect();
    lab.pass(10 * SECOND - MS, &all).await;
    lab.source.commit(1, 2);
    lab.source.hold();
    for (pod, numbers) in &pods {
        eventually("it asks", async || {
            numbers.get(&1).await.unwrap();
            pod.wire.done("lease") > 0
        })
        .await;
    }
    eventually("one loads", async || lab.source.running() == 1).await;
    lab.source.let_go();
    // Who found somebody else at it looks again after a while, and the life is over by then.
    let fills = async || {
        pods.iter()
            .map(|(pod, _)| pod.wire.done("fill"))
            .sum::<u64>()
            == 2
    };
    eventually("it is stored", fills).await;
    lab.pass(100 * MS, &all).await;
    for (_, numbers) in &pods {
        assert_eq!(*numbers.get(&1).await.unwrap(), 2);
    }
    assert_eq!(lab.source.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_is_repeated_in_the_last_fifth_of_a_life_alone() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(10 * SECOND).build().unwrap();
    slowly_loaded(&lab, &pod, &numbers, 500 * MS).await;
    // By the formula alone each read would have a chance of one in fifty.
    lab.pass(8 * SECOND - MS, &[&pod]).await;
    read_often(&numbers).await;
    assert_eq!(lab.source.loads(), 1);
    lab.pass(MS, &[&pod]).await;
    eventually("it is due", async || {
        numbers.get(&1).await.unwrap();
        lab.source.loads() == 2
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lives_under_a_second_and_those_who_say_so_are_not_refreshed_early() {
    for (ttl, early) in [
        (SECOND - MS, EarlyRefresh::On),
        (10 * SECOND, EarlyRefresh::Off),
    ] {
        let lab = Lab::new();
        let pod = lab.pod().await;
        let numbers = pod.builder(&lab.source).ttl(ttl).early_refresh(early);
        let numbers = numbers.build().unwrap();
        slowly_loaded(&lab, &pod, &numbers, 50 * MS).await;
        lab.pass(ttl - MS, &[&pod]).await;
        read_often(&numbers).await;
        assert_eq!(lab.source.loads(), 1, "{ttl:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_that_fails_leaves_the_value_and_its_key_alone_for_a_while() {
    let lab = Lab::new();
    let pod = lab.pod().await;
    let numbers = pod.builder(&lab.source).ttl(10 * SECOND).build().unwrap();
    slowly_loaded(&lab, &pod, &numbers, 20 * MS).await;
    lab.source.answer(1, Answer::Refusal(7));
    lab.pass(10 * SECOND - MS, &[&pod]).await;
    eventually("it is tried", async || {
        numbers.get(&1).await.unwrap();
        lab.source.ended() == 2
    })
    .await;
    read_often(&numbers).await;
    assert_eq!(lab.source.loads(), 2);
}

on_both_stores!(
    the_old_value_is_served_while_a_refresh_loads,
    refreshes_at_the_same_time_load_once,
    a_refresh_that_an_invalidation_overtook_is_not_kept,
    an_overtaken_refresh_leaves_nothing_in_either_level,
    a_refresh_that_fails_leaves_what_was_there,
    a_refresh_of_what_is_not_there_loads_and_stores_it,
    a_refresh_works_while_the_store_is_away,
    a_refresh_that_nobody_waits_for_is_dropped_and_its_lease_returned,
    a_refresh_that_takes_too_long_fills_all_the_same,
    a_reader_who_finds_nothing_joins_the_refresh_of_its_pod,
    after_close_a_refresh_says_so,
);
