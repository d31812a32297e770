//! What a loader is told of its load, and what it may say of the outcome.

use crate::bed::{Bed, Pod, eventually, poll_once, soon};
use crate::lab::{Lab, MS, SECOND};
use crate::source::{Answer, Refused, Source};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidings::{Cancellation, Entity, LoadContext, Loaded, Loader, Origin, Refresh, Ttl};

type Texts = Entity<u64, String, Refused>;
/// What loaders were told: the value that was loaded before, and its age.
type Told = Arc<Mutex<Vec<Option<(String, Duration)>>>>;

type Loading = Pin<Box<dyn Future<Output = Result<Loaded<String>, Refused>> + Send>>;

/// A loader that asks `source` whether the version that it had before is still the newest: if so,
/// nothing has changed.
fn conditional(
    source: &Source,
    told: &Told,
) -> impl Fn(LoadContext<u64, String>) -> Loading + Send + Sync + 'static {
    let (source, told) = (source.clone(), Arc::clone(told));
    move |load| {
        let (source, told) = (source.clone(), Arc::clone(&told));
        Box::pin(async move {
            let previous = load.previous();
            let seen = previous.map(|had| (had.value().to_string(), had.age()));
            told.lock().unwrap().push(seen);
            let newest = source.ask(*load.key()).await?.to_string();
            Ok(match previous {
                Some(had) if **had.value() == newest => had.not_modified(),
                _ => Loaded::new(newest),
            })
        })
    }
}

fn newest(told: &Told) -> Option<(String, Duration)> {
    told.lock().unwrap().last().cloned().flatten()
}

#[tokio::test(start_paused = true)]
async fn a_loader_is_told_the_value_before_and_its_age() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let told = Told::default();
    let texts = |pod: &Pod, grace| -> Texts {
        let texts = pod
            .cache
            .entity_with("text", conditional(&lab.source, &told));
        let texts = texts.ttl(3 * SECOND).grace(grace).refresh(Refresh::Ahead);
        texts.build().unwrap()
    };
    let on_a = texts(&a, 5 * SECOND);
    lab.source.commit(1, 1);
    on_a.get(&1).await.unwrap();
    assert_eq!(newest(&told), None, "there was none");
    a.done("fill", 1).await;
    lab.source.commit(1, 2);
    // It is stale in this pod, and in the store.
    lab.pass(4 * SECOND, &[&a, &b]).await;
    let on_b = texts(&b, 5 * SECOND);
    assert_eq!(**on_b.get(&1).await.unwrap(), *"2");
    assert_eq!(newest(&told), Some(("1".into(), 4 * SECOND)));
    b.done("fill", 1).await;
    // It is gone from the store, and still remembered in this pod.
    lab.pass(10 * SECOND, &[&a, &b]).await;
    assert_eq!(**on_a.get(&1).await.unwrap(), *"2");
    assert_eq!(newest(&told), Some(("1".into(), 14 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn not_modified_keeps_the_value_and_renews_its_life_in_both_levels() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let told = Told::default();
    let texts = |pod: &Pod| -> Texts {
        let texts = pod
            .cache
            .entity_with("text", conditional(&lab.source, &told));
        let texts = texts.ttl(3 * SECOND).grace(60 * SECOND);
        texts.refresh(Refresh::Ahead).build().unwrap()
    };
    let (on_a, on_b) = (texts(&a), texts(&b));
    lab.source.commit(1, 1);
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.pass(4 * SECOND, &[&a, &b]).await;
    let kept = on_a.get_with(&1).await.unwrap();
    assert_eq!((&**kept.value, kept.origin), ("1", Origin::Loader));
    assert!(!kept.is_stale());
    assert_eq!(newest(&told), Some(("1".into(), 4 * SECOND)));
    a.done("fill", 2).await;
    lab.pass(3 * SECOND - MS, &[&a, &b]).await;
    for (texts, origin) in [(&on_a, Origin::Local), (&on_b, Origin::Store)] {
        let served = texts.get_with(&1).await.unwrap();
        assert_eq!((served.is_stale(), served.origin), (false, origin));
    }
    assert_eq!(lab.source.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_loader_may_say_how_long_its_value_lives() {
    let lab = Lab::new();
    let (a, b) = (lab.pod().await, lab.pod().await);
    let source = lab.source.clone();
    let load = move |load: LoadContext<u64, u64>| {
        let source = source.clone();
        async move {
            let version = source.ask(*load.key()).await?;
            Ok::<_, Refused>(Loaded::new(version).ttl(Ttl::For(2 * SECOND)))
        }
    };
    let numbers = a.cache.entity_with("number", load.clone()).ttl(Ttl::NONE);
    let numbers = numbers.build().unwrap();
    let elsewhere = b.cache.entity_with("number", load).build().unwrap();
    numbers.get(&1).await.unwrap();
    a.done("fill", 1).await;
    lab.pass(2 * SECOND - MS, &[&a, &b]).await;
    assert!(numbers.peek(&1).is_some());
    let served = elsewhere.get_with(&1).await.unwrap();
    assert_eq!(served.origin, Origin::Store);
    lab.pass(MS, &[&a, &b]).await;
    assert_eq!((numbers.peek(&1), elsewhere.peek(&1)), (None, None));
}

async fn a_loader_is_told_nothing_of_what_was_invalidated(bed: Bed) {
    let source = Source::new();
    source.commit(1, 1);
    let pod = bed.pod().await;
    let told = Told::default();
    let texts = pod.cache.entity_with("text", conditional(&source, &told));
    let texts: Texts = texts.build().unwrap();
    texts.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    texts.refresh(&1).await.unwrap();
    assert!(newest(&told).is_some());
    texts.invalidate(&1).await.unwrap();
    texts.get(&1).await.unwrap();
    assert_eq!(newest(&told), None);
}

async fn a_cached_error_is_no_value_before(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(7));
    let pod = bed.pod().await;
    let told = Told::default();
    let texts = pod.cache.entity_with("text", conditional(&source, &told));
    let texts = texts.error_ttl(|_| Some(60 * SECOND));
    let texts: Texts = texts.build().unwrap();
    texts.get(&1).await.unwrap_err();
    pod.done("fill", 1).await;
    source.commit(1, 1);
    assert_eq!(**texts.refresh(&1).await.unwrap(), *"1");
    assert_eq!((source.loads(), newest(&told)), (2, None));
}

/// Hands out who may cancel, then waits for ever, or ends.
async fn what_a_load_hands_to_others_learns_that_it_was_dropped(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let handed: Arc<Mutex<Vec<Cancellation>>> = Arc::default();
    let load = {
        let (source, handed) = (source.clone(), Arc::clone(&handed));
        move |load: LoadContext<u64, u64>| {
            let (source, handed) = (source.clone(), Arc::clone(&handed));
            async move {
                handed.lock().unwrap().push(load.cancellation());
                source.ask(*load.key()).await.map(Loaded::new)
            }
        }
    };
    let numbers = pod.cache.entity_with("number", load).build().unwrap();
    numbers.get(&1).await.unwrap();
    source.hold();
    {
        let mut reader = pin!(numbers.get(&2));
        poll_once(&mut reader).await;
        let loading = eventually("it loads", async || source.running() == 1);
        tokio::select! {
            _ = &mut reader => panic!("it waits"),
            () = loading => {}
        }
        assert!(!handed.lock().unwrap()[1].is_cancelled());
    }
    let dropped = handed.lock().unwrap()[1].clone();
    soon("it learns", dropped.cancelled()).await;
    assert!(dropped.is_cancelled());
    assert!(!handed.lock().unwrap()[0].is_cancelled(), "that one ended");
}

/// A loader of the kind that implements both methods.
struct Counting;

impl Loader<u64> for Counting {
    type Value = u64;
    type Error = Refused;

    async fn load(&self, key: &u64) -> Result<u64, Refused> {
        Ok(*key)
    }

    async fn load_with(&self, load: LoadContext<u64, u64>) -> Result<Loaded<u64>, Refused> {
        let Some(previous) = load.previous() else {
            return self.load(load.key()).await.map(Loaded::new);
        };
        Ok(Loaded::new(**previous.value() + 100))
    }
}

async fn a_type_may_take_the_context_too(bed: Bed) {
    let pod = bed.pod().await;
    let numbers = pod.cache.entity("number", Counting).build().unwrap();
    assert_eq!(*numbers.get(&7).await.unwrap(), 7);
    pod.done("fill", 1).await;
    assert_eq!(*numbers.refresh(&7).await.unwrap(), 107);
    // A loader of the call's own is given none, and leaves the value like any other.
    numbers.invalidate(&7).await.unwrap();
    let own = numbers.get_or_load(&7, async || Ok(50)).await.unwrap();
    assert_eq!(*own, 50);
    pod.done("fill", 3).await;
    assert_eq!(*numbers.refresh(&7).await.unwrap(), 150);
}

/// What a loader says has not changed is the very value it was told of.
#[tokio::test]
async fn not_modified_copies_no_value() {
    let value = Arc::new(7);
    let load = LoadContext::new(1).with_previous(Arc::clone(&value), SECOND);
    let previous = load.previous().unwrap();
    assert_eq!(previous.age(), SECOND);
    assert!(Arc::ptr_eq(previous.not_modified().value(), &value));
}

#[tokio::test]
async fn loaders_can_be_tested_by_themselves() {
    let first = LoadContext::new(7);
    assert_eq!(**Counting.load_with(first).await.unwrap().value(), 7);
    let again = LoadContext::new(7).with_previous(20, SECOND);
    assert_eq!(**Counting.load_with(again).await.unwrap().value(), 120);
}

on_both_stores!(
    a_loader_is_told_nothing_of_what_was_invalidated,
    a_cached_error_is_no_value_before,
    what_a_load_hands_to_others_learns_that_it_was_dropped,
    a_type_may_take_the_context_too,
);
