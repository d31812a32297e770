//! Handlers: which invalidations they run for, and how often.

use crate::bed::{Bed, eventually, soon};
use crate::{Runs, settle};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tidings::{Cache, Entity, Tag};
use tokio::sync::Notify;

async fn a_handler_runs_in_every_pod(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (Runs::default(), Runs::default());
    let _kept = (on_a.on(&a, ["org:7"]), on_b.on(&b, ["org:7"]));
    a.invalidate(["org:7"]).await.unwrap();
    on_a.reach(1).await;
    on_b.reach(1).await;
    b.invalidate(["org:7"]).await.unwrap();
    on_a.reach(2).await;
    on_b.reach(2).await;
}

async fn a_handler_runs_once_for_an_invalidation_however_many_of_its_tags_match(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let _kept = runs.on(&pod, ["user:1", "user:2", "user", "org:7"]);
    for count in 1..=20 {
        let tags = ["user:1", "user:2", "user", "org:7", "org:7"];
        pod.invalidate(tags).await.unwrap();
        runs.reach(count).await;
    }
    settle(&pod, &pod, "user:1").await;
    runs.reach(21).await;
    assert_eq!(runs.count(), 21);
}

/// Hints come beside the log, and each entry more than once.
async fn a_handler_in_another_pod_runs_once_for_each_entry_of_the_log(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let runs = Runs::default();
    let _kept = runs.on(&b, ["org:7", "org"]);
    for count in 1..=50 {
        a.invalidate(["org:7"]).await.unwrap();
        runs.reach(count).await;
    }
    settle(&a, &b, "org:7").await;
    runs.reach(51).await;
    assert_eq!(runs.count(), 51);
}

async fn tags_are_row_precise(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (row, other, all) = (Runs::default(), Runs::default(), Runs::default());
    let _kept = (
        row.on(&b, ["user:42"]),
        other.on(&b, ["user:43"]),
        all.on(&b, ["user"]),
    );
    a.invalidate(["user:42"]).await.unwrap();
    row.reach(1).await;
    all.reach(1).await;
    settle(&a, &b, "user:42").await;
    assert_eq!(other.count(), 0);
    a.invalidate(["user"]).await.unwrap();
    other.reach(1).await;
    row.reach(3).await;
    all.reach(3).await;
}

async fn an_invalidation_of_a_key_or_an_entity_fires_its_tags_on_every_pod(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let users = numbers(&a, &Arc::default());
    let (row, all) = (Runs::default(), Runs::default());
    let _kept = (row.on(&b, ["number:42"]), all.on(&b, ["number"]));
    users.invalidate(&42).await.unwrap();
    row.reach(1).await;
    all.reach(1).await;
    users.clear().await.unwrap();
    row.reach(2).await;
    all.reach(2).await;
    assert_eq!(users.tag(&42), Tag::from("number:42"));
}

async fn an_invalidation_of_a_tag_reaches_the_entries_of_every_pod(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Arc::default();
    let (on_a, on_b) = (numbers(&a, &source), numbers(&b, &source));
    for tag in ["number:42", "number"] {
        let before = *on_a.get(&42).await.unwrap();
        assert_eq!(*on_b.get(&42).await.unwrap(), before);
        source.fetch_add(1, SeqCst);
        // A pod that knows nothing of the entity may say so as well.
        bed.pod().await.invalidate([tag]).await.unwrap();
        let is_new = async |on: &Entity<u64, u64, Infallible>| {
            eventually("the new value", async || {
                *on.get(&42).await.unwrap() == before + 1
            })
            .await;
        };
        is_new(&on_a).await;
        is_new(&on_b).await;
    }
}

/// The handler runs after the local level has let go of what was invalidated.
async fn a_handler_finds_no_older_value(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source: Arc<AtomicU64> = Arc::default();
    let on_b = numbers(&b, &source);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (shown, reader) = (Arc::clone(&seen), on_b.clone());
    let _kept = b.reactivity().on([on_b.tag(&1)], move |_| {
        let (shown, reader) = (Arc::clone(&shown), reader.clone());
        async move {
            let value = *reader.get(&1).await.unwrap();
            shown.lock().unwrap().push(value);
        }
    });
    for version in 1..=100 {
        on_b.get(&1).await.unwrap();
        source.store(version, SeqCst);
        a.invalidate(["number:1"]).await.unwrap();
        let newest = async || seen.lock().unwrap().last() == Some(&version);
        eventually("the version", newest).await;
    }
    let seen = seen.lock().unwrap();
    let expected: Vec<_> = (1..=100).collect();
    assert_eq!(*seen, expected, "each version once, none before its time");
}

async fn a_handler_is_told_which_of_its_tags_were_invalidated(bed: Bed) {
    let pod = bed.pod().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let _kept = pod
        .reactivity()
        .on(["user:1", "user:2", "org"], move |tags| {
            tell.send(tags).unwrap();
            async {}
        });
    pod.invalidate(["user:2", "org:7"]).await.unwrap();
    let tags = soon("a run", told.recv()).await;
    assert_eq!(tags, Some(vec![Tag::from("org"), Tag::from("user:2")]));
}

async fn a_handler_that_panics_is_caught_and_stops_nobody(bed: Bed) {
    let pod = bed.pod().await;
    let (panics, runs) = (Runs::default(), Runs::default());
    let counted = panics.clone();
    let _panicking = pod.reactivity().on(["org:7"], move |_| {
        let count = counted.more();
        assert!(count % 2 == 0, "the first panics before there is a future");
        async { panic!("the second panics in its future") }
    });
    let _kept = runs.on(&pod, ["org:7"]);
    for count in 1..=4 {
        pod.invalidate(["org:7"]).await.unwrap();
        runs.reach(count).await;
        panics.reach(count).await;
    }
}

async fn a_dropped_registration_runs_no_more(bed: Bed) {
    let pod = bed.pod().await;
    let (dropped, kept) = (Runs::default(), Runs::default());
    let registration = dropped.on(&pod, ["org:7"]);
    let _kept = kept.on(&pod, ["org:7"]);
    drop(registration);
    // A busy pod may have thought before that it had missed something.
    let (ran, runs) = (dropped.count(), kept.count());
    pod.invalidate(["org:7"]).await.unwrap();
    kept.reach(runs + 1).await;
    assert_eq!(dropped.count(), ran);
}

/// Whatever comes while a handler runs is one more run, and nobody waits for it.
async fn a_slow_handler_holds_up_nobody_and_coalesces(bed: Bed) {
    let pod = bed.pod().await;
    let (runs, gate) = (Runs::default(), Arc::new(Notify::new()));
    let (counted, held) = (runs.clone(), Arc::clone(&gate));
    let _kept = pod.reactivity().on(["org:7"], move |_| {
        counted.more();
        let held = Arc::clone(&held);
        async move { held.notified().await }
    });
    pod.invalidate(["org:7"]).await.unwrap();
    runs.reach(1).await;
    for _ in 0..1_000 {
        pod.invalidate(["org:7"]).await.unwrap();
    }
    assert_eq!(runs.count(), 1);
    gate.notify_one();
    runs.reach(2).await;
    gate.notify_one();
    let again = Runs::default();
    let _again = again.on(&pod, ["org:8"]);
    pod.invalidate(["org:8"]).await.unwrap();
    again.reach(1).await;
    assert_eq!(runs.count(), 2);
}

async fn a_closed_cache_takes_no_invalidation_and_ends_its_handlers(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let _kept = runs.on(&pod, ["org:7"]);
    soon("close", pod.close()).await;
    assert!(pod.invalidate(["org:7"]).await.is_err());
    assert_eq!(runs.count(), 0);
}

fn numbers(cache: &Cache, source: &Arc<AtomicU64>) -> Entity<u64, u64, Infallible> {
    let source = Arc::clone(source);
    let load = move |_: u64| {
        let source = Arc::clone(&source);
        async move { Ok(source.load(SeqCst)) }
    };
    cache.entity("number", load).build().unwrap()
}

/// As a service does that keeps its handlers in what it builds before its first request.
async fn a_thread_without_a_runtime_can_register_handlers_and_queries(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let (cache, counted) = (pod.clone(), runs.clone());
    let registering = std::thread::spawn(move || {
        let kept = counted.on(&cache, ["org:7"]);
        let query = cache.reactivity().query(["org:7"], async || 7);
        (kept, query)
    });
    let (kept, mut query) = registering.join().unwrap();
    assert_eq!(soon("an outcome", query.next()).await, Some(7));
    pod.invalidate(["org:7"]).await.unwrap();
    runs.reach(1).await;
    std::thread::spawn(move || drop((kept, query)))
        .join()
        .unwrap();
}

on_both_stores!(
    a_handler_runs_in_every_pod,
    a_thread_without_a_runtime_can_register_handlers_and_queries,
    a_handler_runs_once_for_an_invalidation_however_many_of_its_tags_match,
    a_handler_in_another_pod_runs_once_for_each_entry_of_the_log,
    tags_are_row_precise,
    an_invalidation_of_a_key_or_an_entity_fires_its_tags_on_every_pod,
    an_invalidation_of_a_tag_reaches_the_entries_of_every_pod,
    a_handler_finds_no_older_value,
    a_handler_is_told_which_of_its_tags_were_invalidated,
    a_handler_that_panics_is_caught_and_stops_nobody,
    a_dropped_registration_runs_no_more,
    a_slow_handler_holds_up_nobody_and_coalesces,
    a_closed_cache_takes_no_invalidation_and_ends_its_handlers,
);
