//! Streams and queries: when they run, and what they give.

use crate::bed::{Bed, eventually, poll_once, soon};
use crate::{Runs, settle};
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tokio::sync::Semaphore;

async fn a_stream_gives_the_first_outcome_at_once_and_one_after_each_invalidation(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let runs = Runs::default();
    let counted = runs.clone();
    let mut stream = b.reactivity().stream(["org:7"], || ready(counted.more()));
    assert_eq!(runs.count(), 0, "nothing runs before it is polled");
    for run in 1..=20 {
        assert_eq!(soon("an outcome", stream.next()).await, Some(run));
        a.invalidate(["org:7"]).await.unwrap();
    }
    assert_eq!(soon("the last", stream.next()).await, Some(21));
    settle(&a, &b, "org:8").await;
    assert!(poll_once(&mut Box::pin(stream.next())).await.is_none());
}

async fn any_number_of_invalidations_during_a_run_make_exactly_one_more(bed: Bed) {
    let pod = bed.pod().await;
    let (runs, gate) = (Runs::default(), Arc::new(Semaphore::new(0)));
    let mut stream = pod.reactivity().stream(["org:7"], || {
        let (run, gate) = (runs.more(), Arc::clone(&gate));
        async move {
            gate.acquire().await.unwrap().forget();
            run
        }
    });
    let mut first = Box::pin(stream.next());
    assert!(poll_once(&mut first).await.is_none(), "it runs");
    for _ in 0..100 {
        pod.invalidate(["org:7"]).await.unwrap();
    }
    gate.add_permits(10);
    assert_eq!(soon("the first", first).await, Some(1));
    assert_eq!(soon("the second", stream.next()).await, Some(2));
    assert!(poll_once(&mut Box::pin(stream.next())).await.is_none());
    assert_eq!(runs.count(), 2);
}

/// What is invalidated between the making of a stream and its first run is in that run; what comes in
/// the middle of it is in the next.
async fn a_stream_watches_before_its_first_run(bed: Bed) {
    let pod = bed.pod().await;
    let source = AtomicU64::new(0);
    let mut stream = pod.reactivity().stream(["org:7"], || async {
        let seen = source.load(SeqCst);
        if seen == 0 {
            source.store(1, SeqCst);
            pod.invalidate(["org:7"]).await.unwrap();
        }
        seen
    });
    assert_eq!(soon("the first", stream.next()).await, Some(0));
    assert_eq!(soon("the second", stream.next()).await, Some(1));
}

async fn a_run_that_was_begun_goes_on_with_the_next_call(bed: Bed) {
    let pod = bed.pod().await;
    let gate = Arc::new(Semaphore::new(0));
    let runs = Runs::default();
    let mut stream = pod.reactivity().stream(["org:7"], || {
        let (run, gate) = (runs.more(), Arc::clone(&gate));
        async move {
            gate.acquire().await.unwrap().forget();
            run
        }
    });
    for _ in 0..3 {
        assert!(poll_once(&mut Box::pin(stream.next())).await.is_none());
    }
    gate.add_permits(1);
    assert_eq!(soon("the run", stream.next()).await, Some(1));
}

/// A reader who never comes costs one computation, however much is invalidated.
async fn what_nobody_reads_is_not_computed(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let stream = pod.reactivity().stream(["org:7"], || ready(runs.more()));
    for _ in 0..1_000 {
        pod.invalidate(["org:7"]).await.unwrap();
    }
    drop(stream);
    assert_eq!(runs.count(), 0);
}

async fn a_query_is_computed_once_for_all_of_its_readers(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let runs = Runs::default();
    let counted = runs.clone();
    let mut query = b
        .reactivity()
        .query(["org:7"], move || ready(counted.more()));
    assert_eq!(soon("the first", query.next()).await, Some(1));
    let mut late = query.clone();
    assert_eq!(soon("what there is", late.next()).await, Some(1));
    a.invalidate(["org:7"]).await.unwrap();
    assert_eq!(soon("the second", query.next()).await, Some(2));
    assert_eq!(soon("the second", late.next()).await, Some(2));
    assert_eq!((query.latest(), runs.count()), (Some(2), 2));
}

async fn a_slow_reader_of_a_query_skips_to_the_latest(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let counted = runs.clone();
    let mut query = pod
        .reactivity()
        .query(["org:7"], move || ready(counted.more()));
    for run in 1..=100 {
        runs.reach(run).await;
        pod.invalidate(["org:7"]).await.unwrap();
    }
    runs.reach(101).await;
    eventually("the latest", async || query.latest() == Some(101)).await;
    assert_eq!(soon("the latest", query.next()).await, Some(101));
}

/// A thousand outcomes, a reader who takes none of them, and one that is kept.
async fn outcomes_that_nobody_reads_are_not_kept(bed: Bed) {
    let pod = bed.pod().await;
    let (runs, outcome) = (Runs::default(), Arc::new(()));
    let (counted, given) = (runs.clone(), Arc::clone(&outcome));
    let query = pod.reactivity().query(["org:7"], move || {
        counted.more();
        ready(Arc::clone(&given))
    });
    for run in 1..=1_000 {
        runs.reach(run).await;
        pod.invalidate(["org:7"]).await.unwrap();
    }
    runs.reach(1_001).await;
    // Ours, the computation's, the latest outcome, and one that may be about to take its place.
    assert!(Arc::strong_count(&outcome) <= 4);
    drop(query);
}

async fn a_query_that_panics_keeps_what_it_had_and_runs_again(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let counted = runs.clone();
    let mut query = pod.reactivity().query(["org:7"], move || {
        let run = counted.more();
        async move {
            assert!(run != 2, "the second run panics");
            run
        }
    });
    assert_eq!(soon("the first", query.next()).await, Some(1));
    pod.invalidate(["org:7"]).await.unwrap();
    runs.reach(2).await;
    assert_eq!(query.latest(), Some(1));
    pod.invalidate(["org:7"]).await.unwrap();
    assert_eq!(soon("the third", query.next()).await, Some(3));
}

async fn a_query_that_nobody_holds_runs_no_more(bed: Bed) {
    let pod = bed.pod().await;
    let held = Arc::new(());
    let kept = Arc::clone(&held);
    let query = pod.reactivity().query(["org:7"], move || {
        let _kept = Arc::clone(&kept);
        std::future::pending::<()>()
    });
    let other = query.clone();
    drop(query);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(other);
    let gone = async || Arc::strong_count(&held) == 1;
    eventually("the computation goes, in the middle of its run", gone).await;
}

async fn streams_and_queries_end_with_the_cache(bed: Bed) {
    let pod = bed.pod().await;
    let mut stream = pod.reactivity().stream(["org:7"], || ready(()));
    let mut query = pod.reactivity().query(["org:7"], || ready(()));
    let mut unread = pod.reactivity().stream(["org:7"], || ready(()));
    stream.next().await.unwrap();
    query.next().await.unwrap();
    soon("close", pod.close()).await;
    assert_eq!(soon("the end", stream.next()).await, None);
    assert_eq!(soon("the end", query.next()).await, None);
    assert_eq!(soon("the end", unread.next()).await, None);
}

on_both_stores!(
    a_stream_gives_the_first_outcome_at_once_and_one_after_each_invalidation,
    any_number_of_invalidations_during_a_run_make_exactly_one_more,
    a_stream_watches_before_its_first_run,
    a_run_that_was_begun_goes_on_with_the_next_call,
    what_nobody_reads_is_not_computed,
    a_query_is_computed_once_for_all_of_its_readers,
    a_slow_reader_of_a_query_skips_to_the_latest,
    outcomes_that_nobody_reads_are_not_kept,
    a_query_that_panics_keeps_what_it_had_and_runs_again,
    a_query_that_nobody_holds_runs_no_more,
    streams_and_queries_end_with_the_cache,
);
