//! Where values come from, and what a reader is told of it.

use crate::bed::{Bed, eventually, poll_once};
use crate::source::{Answer, Source};
use std::pin::pin;
use std::time::{Duration, Instant};
use tidings::{CacheError, LocalEngine, Origin};

async fn a_value_comes_from_the_loader_then_from_this_pod_then_to_others_from_the_store(bed: Bed) {
    let source = Source::new();
    source.commit(7, 70);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let mut served = Vec::new();
    for pod in [&on_a, &on_a, &on_b, &on_b] {
        let got = pod.get_with(&7).await.unwrap();
        assert_eq!(*got.value, 70);
        served.push(got.origin);
    }
    use Origin::{Loader, Local, Store};
    assert_eq!(served, [Loader, Local, Store, Local]);
    assert_eq!(source.loads(), 1);
}

async fn age_counts_from_the_load_in_every_pod(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_a.get(&1).await.unwrap();
    let loaded = Instant::now();
    eventually("an age that cannot be mistaken", async || {
        on_a.get_with(&1).await.unwrap().age >= Duration::from_millis(100)
    })
    .await;
    let passed = loaded.elapsed();
    let stored = on_b.get_with(&1).await.unwrap();
    assert_eq!(stored.origin, Origin::Store);
    assert!(stored.age >= Duration::from_millis(90), "{:?}", stored.age);
    let local = on_b.get_with(&1).await.unwrap();
    assert_eq!(local.origin, Origin::Local);
    assert!(
        local.age >= stored.age,
        "{:?} < {:?}",
        local.age,
        stored.age
    );
    let slack = loaded.elapsed() - passed + Duration::from_secs(1);
    assert!(local.age <= passed + slack, "{:?} > {passed:?}", local.age);
}

async fn a_served_value_never_claims_less_freshness_than_health_does(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    for key in 0..50 {
        for pod in [&on_a, &on_b] {
            for _ in 0..3 {
                let served = pod.get_with(&key).await.unwrap();
                let limit = a.cache.health().bound;
                if served.origin == Origin::Local {
                    assert!(served.bound().unwrap() <= limit, "{served:?}");
                }
            }
        }
    }
}

async fn a_reader_who_joined_a_load_is_told_how_long_ago_it_began(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    source.hold();
    let first = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.get_with(&1).await.unwrap() }
    });
    eventually("the load runs", async || source.running() == 1).await;
    // With nothing confirmed any more, only the load itself tells what the value reflects.
    pod.wire.cut(true);
    let cut = Instant::now();
    eventually("some time", async || {
        cut.elapsed() > Duration::from_millis(200)
    })
    .await;
    let mut second = pin!(numbers.get_with(&1));
    poll_once(&mut second).await;
    let passed = cut.elapsed();
    source.let_go();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    let lag = Duration::from_millis(10);
    assert!(first.bound().unwrap() + lag >= passed, "{first:?}");
    assert!(second.bound().unwrap() + lag >= passed, "{second:?}");
    assert_eq!(source.loads(), 1);
}

async fn peek_looks_here_and_nowhere_else(bed: Bed) {
    let source = Source::new();
    source.commit(1, 10);
    source.answer(2, Answer::Refusal(9));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.builder(&source);
    let on_a = on_a
        .error_ttl(|_| Some(Duration::from_secs(60)))
        .build()
        .unwrap();
    let on_b = b.numbers(&source);
    on_a.get(&1).await.unwrap();
    on_a.get(&2).await.unwrap_err();
    let (reads, loads) = (b.wire.calls("read"), source.loads());
    assert_eq!(on_a.peek(&1).as_deref(), Some(&10));
    assert_eq!(on_a.peek(&2), None, "a cached error is no value");
    assert_eq!(on_b.peek(&1), None, "the store has it, this pod does not");
    assert_eq!((b.wire.calls("read"), source.loads()), (reads, loads));
}

async fn the_local_view_counts_and_forgets_this_pod_alone(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    assert!(on_a.local().is_empty());
    for key in 0..10 {
        on_a.get(&key).await.unwrap();
        on_b.get(&key).await.unwrap();
    }
    assert_eq!((on_a.local().len(), on_a.local().weight()), (10, 10));
    on_a.local().clear();
    assert_eq!((on_a.local().len(), on_b.local().len()), (0, 10));
    assert_eq!(on_a.peek(&3), None);
    assert_eq!(on_a.get_with(&3).await.unwrap().origin, Origin::Store);
    assert_eq!(source.loads(), 10);
}

async fn the_local_level_stays_within_its_capacity(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let by_number = pod.builder(&source).capacity(20).build().unwrap();
    let heavy = pod
        .cache
        .entity("heavy", |key: u64| async move { Ok::<_, String>(key) });
    let heavy = heavy.weight_capacity(1000, |_, _| 100);
    let by_weight = heavy.local_engine(LocalEngine::Moka).build().unwrap();
    for key in 0..200 {
        by_number.get(&key).await.unwrap();
        by_weight.get(&key).await.unwrap();
        assert!(by_number.local().len() <= 20, "{}", by_number.local().len());
    }
    assert!(by_number.local().len() >= 10, "{}", by_number.local().len());
    eventually("moka has caught up", async || {
        by_weight.local().weight() <= 1000
    })
    .await;
    assert!(by_weight.local().len() <= 10);
    assert_eq!(
        *by_weight.get(&0).await.unwrap(),
        0,
        "what was let go is in the store"
    );
}

async fn a_value_over_the_local_weight_limit_stays_in_the_store_alone(bed: Bed) {
    let pod = bed.pod().await;
    let longs = pod.cache.entity("long", |key: u64| async move {
        Ok::<_, String>("x".repeat(key as usize))
    });
    let longs = longs.weight_capacity(1 << 20, |_, text: &String| text.len() as u32);
    let longs = longs.local_max_weight(100).build().unwrap();
    for key in [100, 101] {
        longs.get(&key).await.unwrap();
    }
    let there = async || longs.get_with(&101).await.unwrap().origin == Origin::Store;
    eventually("the heavy one is in the store", there).await;
    let light = longs.get_with(&100).await.unwrap();
    assert_eq!(light.origin, Origin::Local);
    assert_eq!((longs.local().len(), longs.peek(&101)), (1, None));
}

async fn loader_errors_come_back_typed(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(42));
    let pod = bed.pod().await;
    let error = pod.numbers(&source).get(&1).await.unwrap_err();
    assert_eq!(error.load_error().map(|refused| refused.0), Some(42));
    assert!(matches!(error, CacheError::Load(_)));
    assert_eq!(error.to_string(), "loader failed");
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), "refused with 42");
}

async fn entities_of_one_cache_do_not_share_keys(bed: Bed) {
    let pod = bed.pod().await;
    let plus = |add: u64| move |key: u64| async move { Ok::<_, String>(key + add) };
    let one = pod.cache.entity("one", plus(1)).build().unwrap();
    let two = pod.cache.entity("two", plus(2)).build().unwrap();
    assert_eq!(
        (*one.get(&5).await.unwrap(), *two.get(&5).await.unwrap()),
        (6, 7)
    );
    one.invalidate(&5).await.unwrap();
    assert_eq!(one.peek(&5), None);
    assert_eq!(two.peek(&5).as_deref(), Some(&7));
}

on_both_stores!(
    a_value_comes_from_the_loader_then_from_this_pod_then_to_others_from_the_store,
    age_counts_from_the_load_in_every_pod,
    a_served_value_never_claims_less_freshness_than_health_does,
    a_reader_who_joined_a_load_is_told_how_long_ago_it_began,
    peek_looks_here_and_nowhere_else,
    the_local_view_counts_and_forgets_this_pod_alone,
    the_local_level_stays_within_its_capacity,
    a_value_over_the_local_weight_limit_stays_in_the_store_alone,
    loader_errors_come_back_typed,
    entities_of_one_cache_do_not_share_keys,
);
