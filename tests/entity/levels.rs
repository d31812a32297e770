//! The way of a read through the levels, and what of it may be kept in one.

use crate::bed::{Bed, Numbers, eventually, poll_once, soon};
use crate::dropped::dropped_after;
use crate::source::{Answer, Refused, Source};
use serde::{Deserialize, Serialize, Serializer};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tidings::{CacheError, Origin, Ttl};
use tokio::sync::Semaphore;

const LONG: Duration = Duration::from_secs(600);

async fn origin(numbers: &Numbers, key: u64) -> Origin {
    numbers.get_with(&key).await.unwrap().origin
}

async fn a_read_asks_no_further_than_the_first_level_that_has_its_value(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    let asked = |pod: &crate::bed::Pod| ["read", "lease", "fill"].map(|call| pod.wire.calls(call));
    assert_eq!(origin(&on_a, 1).await, Origin::Loader);
    a.done("fill", 1).await;
    assert_eq!((asked(&a), source.loads()), ([1, 1, 1], 1), "every step");
    assert_eq!(origin(&on_b, 1).await, Origin::Store);
    assert_eq!((asked(&b), source.loads()), ([1, 0, 0], 1), "no lease");
    assert_eq!(origin(&on_b, 1).await, Origin::Local);
    assert_eq!((asked(&b), source.loads()), ([1, 0, 0], 1), "no store");
    // A load under way comes before the store: who joins it asks nobody.
    source.hold();
    let leader = tokio::spawn({
        let on_b = on_b.clone();
        async move { on_b.get(&2).await.map(|value| *value) }
    });
    eventually("the load runs", async || source.running() == 1).await;
    assert_eq!(asked(&b), [2, 1, 0]);
    let mut joins = pin!(on_b.get(&2));
    poll_once(&mut joins).await;
    source.let_go();
    joins.await.unwrap();
    leader.await.unwrap().unwrap();
    b.done("fill", 1).await;
    assert_eq!((asked(&b), source.loads()), ([2, 1, 1], 2));
}

async fn what_was_loaded_is_given_though_no_level_can_keep_it(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let pod = bed.pod().await;
    let numbers = pod
        .builder(&source)
        .local_ttl(Duration::ZERO)
        .build()
        .unwrap();
    source.hold();
    let mut read = pin!(numbers.get_with(&1));
    poll_once(&mut read).await;
    let break_off = async {
        eventually("it loads", async || source.running() == 1).await;
        pod.wire.cut(true);
        source.let_go();
    };
    let (served, ()) = tokio::join!(read, break_off);
    let served = served.unwrap();
    assert_eq!((*served.value, served.origin), (11, Origin::Loader));
    assert_eq!(numbers.local().len(), 0);
    eventually("the fill has failed", async || {
        numbers.stats().fills_failed == 1
    })
    .await;
}

/// An error that cannot be encoded if it is odd.
#[derive(Debug, Deserialize)]
struct Fussy(u64);

impl Serialize for Fussy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 2 {
            0 => self.0.serialize(serializer),
            _ => Err(serde::ser::Error::custom("odd")),
        }
    }
}

/// Every error that a source gives is kept here; what is none of its answers is not.
async fn what_is_no_answer_of_the_source_is_kept_nowhere(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let keeps_all = |pod: &crate::bed::Pod| {
        let numbers = pod.builder(&source).error_ttl(|_| Some(LONG));
        numbers.load_timeout(LONG)
    };
    let build = |pod| keeps_all(pod).build().unwrap();
    let (on_a, on_b) = (build(&a), build(&b));
    // A panic.
    source.answer(1, Answer::Panic);
    let aborted = soon("an answer", on_a.get(&1)).await.unwrap_err();
    assert!(matches!(aborted, CacheError::LoadAborted), "{aborted:?}");
    source.commit(1, 11);
    for numbers in [&on_a, &on_b] {
        assert_eq!(*soon("an answer", numbers.get(&1)).await.unwrap(), 11);
    }
    // A timeout.
    let hasty = keeps_all(&a).load_timeout(Duration::from_millis(50));
    let hasty = hasty.build().unwrap();
    source.hold();
    let late = soon("an answer", hasty.get(&2)).await.unwrap_err();
    assert!(matches!(late, CacheError::Timeout { .. }), "{late:?}");
    source.let_go();
    for numbers in [&on_a, &on_b] {
        assert_eq!(*soon("an answer", numbers.get(&2)).await.unwrap(), 0);
    }
    eventually("it is served", async || hasty.get(&2).await.is_ok()).await;
    // A call that was dropped.
    source.hold();
    let read = on_a.get(&3);
    dropped_after(1, read).await;
    eventually("the load is dropped", async || {
        (source.running(), a.cache.under_way().flights) == (0, 0)
    })
    .await;
    source.let_go();
    source.commit(3, 33);
    for numbers in [&on_a, &on_b] {
        assert_eq!(*soon("an answer", numbers.get(&3)).await.unwrap(), 33);
    }
    // An error that cannot be encoded: here alone, and for as long as it says.
    let loads = Arc::new(AtomicUsize::new(0));
    let fussy = |pod: &crate::bed::Pod| {
        let loads = Arc::clone(&loads);
        let load = move |key: u64| {
            loads.fetch_add(1, SeqCst);
            async move { Err::<u64, _>(Fussy(key)) }
        };
        let fussy = pod.cache.entity("fussy", load);
        fussy.error_ttl(|_: &Fussy| Some(LONG)).build().unwrap()
    };
    let (on_a, on_b) = (fussy(&a), fussy(&b));
    for entity in [&on_a, &on_a, &on_b] {
        let error = soon("an answer", entity.get(&1)).await.unwrap_err();
        assert_eq!(error.load_error().map(|error| error.0), Some(1));
    }
    assert_eq!(loads.load(SeqCst), 2, "the store has none of it");
}

async fn trouble_with_the_store_is_no_answer_of_a_read(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(5));
    let pod = bed.pod().await;
    let numbers = pod.builder(&source).error_ttl(|_| Some(LONG));
    let numbers = numbers.build().unwrap();
    for operation in ["read", "lease"] {
        pod.wire.hold_answers(operation);
    }
    let error = soon("an answer", numbers.get(&1)).await.unwrap_err();
    assert_eq!(error.load_error(), Some(&Refused(5)), "that of the source");
    assert_eq!(*soon("an answer", numbers.get(&2)).await.unwrap(), 0);
    pod.wire.heal();
    assert_eq!(*soon("an answer", numbers.get(&3)).await.unwrap(), 0);
}

async fn a_time_to_live_is_asked_for_once_and_when_the_load_has_ended(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let asked = Arc::new(AtomicUsize::new(0));
    let numbers = |pod: &crate::bed::Pod| {
        let (asked, ended) = (Arc::clone(&asked), source.clone());
        let numbers = pod.builder(&source).ttl_with(move |_, _| {
            asked.fetch_add(1, SeqCst);
            assert_eq!(ended.running(), 0, "the load has ended");
            Ttl::For(LONG)
        });
        numbers.build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    for numbers in [&on_a, &on_b, &on_b] {
        numbers.get(&1).await.unwrap();
    }
    on_b.local().clear();
    on_b.get(&1).await.unwrap();
    assert_eq!((source.loads(), asked.load(SeqCst)), (1, 1));
    on_b.refresh(&1).await.unwrap();
    assert_eq!((source.loads(), asked.load(SeqCst)), (2, 2));
}

async fn a_load_under_way_is_not_evicted_however_many_others_there_are(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.builder(&source).capacity(2).build().unwrap();
    let (door, loads) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let reader = || {
        let (numbers, door, loads) = (numbers.clone(), Arc::clone(&door), Arc::clone(&loads));
        tokio::spawn(async move {
            let load = async || {
                loads.fetch_add(1, SeqCst);
                let _open = door.acquire().await;
                Ok(7)
            };
            numbers.get_or_load(&1, load).await.map(|value| *value)
        })
    };
    let first = reader();
    eventually("it loads", async || loads.load(SeqCst) == 1).await;
    for key in 100..200 {
        numbers.get(&key).await.unwrap();
    }
    let joins = numbers.stats().joins;
    let second = reader();
    eventually("it has joined", async || numbers.stats().joins > joins).await;
    door.add_permits(1);
    for reader in [first, second] {
        let value = soon("the reader", reader).await.unwrap().unwrap();
        assert_eq!(value, 7);
    }
    assert_eq!(loads.load(SeqCst), 1);
}

on_both_stores!(
    a_read_asks_no_further_than_the_first_level_that_has_its_value,
    what_was_loaded_is_given_though_no_level_can_keep_it,
    what_is_no_answer_of_the_source_is_kept_nowhere,
    trouble_with_the_store_is_no_answer_of_a_read,
    a_time_to_live_is_asked_for_once_and_when_the_load_has_ended,
    a_load_under_way_is_not_evicted_however_many_others_there_are,
);
