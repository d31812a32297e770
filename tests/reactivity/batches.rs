//! Mutations and batches: what is invalidated, when, and how often.

use crate::bed::{Bed, eventually, soon};
use crate::{Runs, settle};
use std::collections::HashMap;
use std::future::{pending, poll_fn, ready};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use tidings::{Cache, Registration, Stamp, Tag};
use tokio::task::{JoinSet, yield_now};

async fn a_mutation_invalidates_after_success_only(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let runs = Runs::default();
    let _kept = runs.on(&b, ["org:7"]);
    let reactivity = a.reactivity();
    let failed = reactivity.mutation(["org:7"], ready(Err::<(), _>("refused")));
    assert_eq!(failed.await.unwrap_err(), "refused");
    let dropped = reactivity.mutation(["org:7"], pending::<Result<(), ()>>());
    drop(tokio::time::timeout(Duration::ZERO, dropped).await);
    settle(&a, &b, "org:8").await;
    let done = reactivity.mutation(["org:7"], ready(Ok::<_, ()>(5))).await;
    let done = done.unwrap();
    assert_eq!(done.value, 5);
    assert_ne!(done.invalidated.unwrap(), Stamp::default());
    runs.reach(1).await;
    settle(&a, &b, "org:7").await;
    runs.reach(2).await;
    assert_eq!(runs.count(), 2);
}

async fn a_batch_invalidates_each_tag_once_at_its_end(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let _kept = runs.on(&pod, ["org:7"]);
    let reactivity = pod.reactivity();
    let batch = reactivity.batch(async {
        for _ in 0..3 {
            let stamp = pod.invalidate(["org:7"]).await.unwrap();
            assert_eq!(stamp, Stamp::default(), "nothing is logged yet");
            let mutated = reactivity.mutation(["org:7"], ready(Ok::<_, ()>(())));
            assert!(mutated.await.unwrap().invalidated.is_ok());
        }
        yield_now().await;
        assert_eq!(runs.count(), 0);
    });
    batch.await.acknowledged().unwrap();
    runs.reach(1).await;
    settle(&pod, &pod, "org:7").await;
    runs.reach(2).await;
    assert_eq!(runs.count(), 2);
}

async fn a_nested_batch_leaves_its_tags_to_the_outermost(bed: Bed) {
    let pod = bed.pod().await;
    let (inner, runs) = (Runs::default(), Runs::default());
    let _kept = (inner.on(&pod, ["org:1"]), runs.on(&pod, ["org:2"]));
    let reactivity = pod.reactivity();
    let batch = reactivity.batch(async {
        let nested = reactivity.batch(async { pod.invalidate(["org:1"]).await });
        nested.await.acknowledged().unwrap().unwrap();
        // A nested one that is dropped loses nothing either.
        let dropped = reactivity.batch(async {
            pod.invalidate(["org:2"]).await.unwrap();
            pending::<()>().await;
        });
        drop(tokio::time::timeout(Duration::ZERO, dropped).await);
        assert_eq!((inner.count(), runs.count()), (0, 0));
    });
    batch.await.acknowledged().unwrap();
    inner.reach(1).await;
    runs.reach(1).await;
}

async fn a_batch_flushes_on_error_on_cancellation_and_on_panic(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let _kept = runs.on(&pod, ["org:7"]);
    let reactivity = pod.reactivity();
    let invalidate = || async { pod.invalidate(["org:7"]).await.unwrap() };
    let failed = reactivity.batch(async {
        invalidate().await;
        Err::<(), _>("refused")
    });
    assert_eq!(failed.await.value, Err("refused"));
    runs.reach(1).await;
    let dropped = reactivity.batch(async {
        invalidate().await;
        pending::<()>().await;
    });
    drop(tokio::time::timeout(Duration::ZERO, dropped).await);
    runs.reach(2).await;
    let (cache, other) = (pod.clone(), reactivity.clone());
    let panicked = tokio::spawn(async move {
        let batch = other.batch(async {
            cache.invalidate(["org:7"]).await.unwrap();
            panic!("in the middle");
        });
        let _never = batch.await;
    });
    assert!(panicked.await.unwrap_err().is_panic());
    runs.reach(3).await;
}

/// Made within, awaited after: it goes its own way.
async fn an_invalidation_that_outlives_its_batch_is_not_lost(bed: Bed) {
    let pod = bed.pod().await;
    let runs = Runs::default();
    let _kept = runs.on(&pod, ["org:7", "org:8"]);
    let batch = pod.reactivity().batch(async {
        let later = pod.invalidate(["org:7"]);
        let cache = pod.clone();
        let spawned = tokio::spawn(async move { cache.invalidate(["org:8"]).await });
        assert_ne!(spawned.await.unwrap().unwrap(), Stamp::default());
        (later,)
    });
    let (later,) = batch.await.value;
    runs.reach(1).await;
    assert_ne!(later.await.unwrap(), Stamp::default());
    runs.reach(2).await;
}

async fn a_batch_of_one_cache_collects_nothing_of_another(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let runs = Runs::default();
    let _kept = runs.on(&b, ["org:7"]);
    let within = a.reactivity();
    let batch = within.batch(async {
        assert_ne!(b.invalidate(["org:7"]).await.unwrap(), Stamp::default());
        runs.reach(1).await;
        let nested = b.reactivity().batch(async {
            assert_eq!(a.invalidate(["org:7"]).await.unwrap(), Stamp::default());
        });
        nested.await.acknowledged().unwrap();
        assert_eq!(runs.count(), 1);
    });
    batch.await.acknowledged().unwrap();
    runs.reach(2).await;
}

/// Counts how often each tag fires.
#[derive(Clone, Default)]
struct Fired(Arc<Mutex<HashMap<Tag, u64>>>);

impl Fired {
    fn on(&self, cache: &Cache, tag: &Tag) -> Registration {
        let fired = self.clone();
        cache.reactivity().on([tag], move |tags| {
            let mut counts = fired.0.lock().unwrap();
            for tag in tags {
                *counts.entry(tag).or_default() += 1;
            }
            async {}
        })
    }

    fn count(&self, tag: &Tag) -> u64 {
        self.0.lock().unwrap().get(tag).copied().unwrap_or_default()
    }
}

/// Each of 50 batches at once has a tag of its own, which it invalidates over and over, in nested
/// batches and branches, until it ends or is dropped at some point.
async fn each_of_fifty_batches_fires_its_tag_once(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (here, there) = (Fired::default(), Fired::default());
    let tags: Vec<Tag> = (0..50_u64).map(|n| Tag::of("batch", &n)).collect();
    let on = |tag: &Tag| [here.on(&a, tag), there.on(&b, tag)];
    let _kept: Vec<_> = tags.iter().map(on).collect();
    let mut batches = JoinSet::new();
    for (n, tag) in tags.iter().cloned().enumerate() {
        let cache = a.clone();
        batches.spawn(async move {
            let mut batch = Box::pin(nested(&cache, &tag, 3));
            // Every other batch is dropped after so many polls.
            let mut polls = if n % 2 == 0 { n } else { usize::MAX };
            let some = poll_fn(|cx| match batch.as_mut().poll(cx) {
                Poll::Pending if polls == 0 => Poll::Ready(()),
                polled => {
                    polls = polls.saturating_sub(1);
                    polled
                }
            });
            some.await;
        });
    }
    while let Some(ended) = soon("the batches", batches.join_next()).await {
        ended.unwrap();
    }
    let reached = |count| {
        let fired = [here.clone(), there.clone()];
        let tags = tags.clone();
        async move || {
            fired
                .iter()
                .all(|fired| tags.iter().all(|tag| fired.count(tag) >= count))
        }
    };
    eventually("each tag fires", reached(1)).await;
    // What is logged last on its lane is heard last.
    a.invalidate(&tags).await.unwrap();
    eventually("each tag fires again", reached(2)).await;
    for tag in &tags {
        assert_eq!((here.count(tag), there.count(tag)), (2, 2), "{tag}");
    }
}

async fn nested(cache: &Cache, tag: &Tag, depth: u32) {
    let reactivity = cache.reactivity();
    let batch = reactivity.batch(async {
        cache.invalidate([tag]).await.unwrap();
        yield_now().await;
        if depth > 0 {
            let deeper = || Box::pin(nested(cache, tag, depth - 1));
            tokio::join!(deeper(), deeper());
        }
        cache.invalidate([tag]).await.unwrap();
    });
    let _flushed = batch.await;
}

on_both_stores!(
    a_mutation_invalidates_after_success_only,
    a_batch_invalidates_each_tag_once_at_its_end,
    a_nested_batch_leaves_its_tags_to_the_outermost,
    a_batch_flushes_on_error_on_cancellation_and_on_panic,
    an_invalidation_that_outlives_its_batch_is_not_lost,
    a_batch_of_one_cache_collects_nothing_of_another,
    each_of_fifty_batches_fires_its_tag_once,
);
