//! What is kept of a load, where, and for whom.

use crate::bed::{Bed, eventually, soon};
use crate::source::{Answer, Refused, Source};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::error::Error;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tidings::{CacheError, Entity, Origin, Ttl};

const LONG: Duration = Duration::from_secs(60);

fn refusal<V: std::fmt::Debug>(got: Result<V, CacheError<Refused>>) -> u32 {
    got.unwrap_err().load_error().unwrap().0
}

async fn an_error_is_not_kept_unless_asked_for(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(5));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    assert_eq!(refusal(on_a.get(&1).await), 5);
    assert_eq!(refusal(on_a.get(&1).await), 5);
    assert_eq!(refusal(on_b.get(&1).await), 5);
    assert_eq!(source.loads(), 3);
    source.commit(1, 11);
    assert_eq!(*on_a.get(&1).await.unwrap(), 11);
}

async fn an_error_with_a_ttl_is_kept_typed_in_both_levels(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(5));
    source.answer(2, Answer::Refusal(6));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let numbers = |pod: &crate::bed::Pod| {
        let only_fives = |refused: &Refused| (refused.0 == 5).then_some(LONG);
        pod.builder(&source).error_ttl(only_fives).build().unwrap()
    };
    let (on_a, on_b) = (numbers(&a), numbers(&b));
    assert_eq!(refusal(on_a.get(&1).await), 5);
    assert_eq!(refusal(on_a.get_with(&1).await), 5);
    assert_eq!(refusal(on_b.get(&1).await), 5);
    assert_eq!((source.loads(), a.wire.calls("read")), (1, 1));
    assert_eq!(refusal(on_a.get(&2).await), 6);
    assert_eq!(refusal(on_a.get(&2).await), 6);
    assert_eq!(source.loads(), 3, "the other kind is not kept");
    source.commit(1, 11);
    on_b.invalidate(&1).await.unwrap();
    assert_eq!(*on_b.get(&1).await.unwrap(), 11);
}

async fn a_pod_that_keeps_no_errors_takes_a_stored_one_for_a_miss(bed: Bed) {
    let source = Source::new();
    source.answer(1, Answer::Refusal(5));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let keeps = a
        .builder(&source)
        .error_ttl(|_| Some(LONG))
        .build()
        .unwrap();
    let plain = b.numbers(&source);
    assert_eq!(refusal(keeps.get(&1).await), 5);
    a.done("fill", 1).await;
    source.commit(1, 11);
    assert_eq!(*plain.get(&1).await.unwrap(), 11);
}

async fn there_is_none_has_a_life_of_its_own(bed: Bed) {
    let loads = Arc::new(AtomicUsize::new(0));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let find = |loads: &Arc<AtomicUsize>| {
        let loads = Arc::clone(loads);
        move |id: u64| {
            loads.fetch_add(1, SeqCst);
            let found = (id < 10).then_some(id);
            async move { Ok::<_, Refused>(found) }
        }
    };
    let on_a = a
        .cache
        .entity("row", find(&loads))
        .absent_ttl(LONG)
        .build()
        .unwrap();
    let on_b = b.cache.entity("row", find(&loads)).build().unwrap();
    for entity in [&on_a, &on_a, &on_b] {
        assert_eq!(*entity.get(&99).await.unwrap(), None);
    }
    assert_eq!(loads.load(SeqCst), 1, "absence is kept in both levels");
    let fleeting = a.cache.entity("gone", find(&loads)).ttl(LONG);
    let fleeting = fleeting.absent_ttl(Duration::ZERO).build().unwrap();
    for _ in 0..2 {
        assert_eq!(*fleeting.get(&99).await.unwrap(), None);
        assert_eq!(*fleeting.get(&1).await.unwrap(), Some(1));
    }
    assert_eq!(loads.load(SeqCst), 4, "only absence is not kept");
}

async fn a_ttl_of_zero_keeps_in_neither_level_and_removes_what_was_there(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let keeps = a.builder(&source).build().unwrap();
    let fleeting = b.builder(&source).ttl(Duration::ZERO).build().unwrap();
    keeps.get(&1).await.unwrap();
    a.done("fill", 1).await;
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    hand.put(&at, b"what an older version left").await;
    assert_eq!(fleeting.get_with(&1).await.unwrap().origin, Origin::Loader);
    eventually("nothing stands there", async || {
        hand.look(&at).await.is_none()
    })
    .await;
    assert_eq!(fleeting.local().len(), 0);
    assert_eq!(fleeting.get_with(&1).await.unwrap().origin, Origin::Loader);
    assert_eq!(b.wire.calls("fill"), 0);
}

async fn a_ttl_may_depend_on_key_and_value(bed: Bed) {
    let source = Source::new();
    source.commit(2, 7);
    let pod = bed.pod().await;
    let numbers = pod
        .builder(&source)
        .ttl_with(|key, value| match (key, value) {
            (1, _) | (_, 7) => Ttl::NONE,
            _ => Ttl::Forever,
        });
    let numbers = numbers.build().unwrap();
    for key in [1, 2, 3] {
        numbers.get(&key).await.unwrap();
    }
    assert_eq!(
        [1, 2, 3].map(|key| numbers.peek(&key).is_some()),
        [false, false, true]
    );
}

async fn a_local_life_may_be_shorter_than_that_in_the_store(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let brief = Duration::from_millis(50);
    let numbers = pod.builder(&source).local_ttl(brief).build().unwrap();
    numbers.get(&1).await.unwrap();
    eventually("it has expired here", async || numbers.peek(&1).is_none()).await;
    assert_eq!(numbers.get_with(&1).await.unwrap().origin, Origin::Store);
    assert_eq!(source.loads(), 1);
}

async fn what_has_expired_in_the_store_is_loaded_again(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let brief = Duration::from_millis(80);
    let on_a = a.builder(&source).ttl(brief).build().unwrap();
    let on_b = b.builder(&source).ttl(brief).build().unwrap();
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    eventually("the store has dropped it", async || {
        hand.look(&at).await.is_none()
    })
    .await;
    source.commit(1, 1);
    assert_eq!(*on_b.get(&1).await.unwrap(), 1);
}

/// A value that serializes unless it is odd.
#[derive(Debug)]
struct Picky(u64);

impl Serialize for Picky {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 2 {
            0 => self.0.serialize(serializer),
            _ => Err(serde::ser::Error::custom("odd")),
        }
    }
}

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self)
    }
}

async fn a_value_that_cannot_be_encoded_is_served_and_its_lease_returned(bed: Bed) {
    let loads = Arc::new(AtomicUsize::new(0));
    let (a, b) = (bed.pod().await, bed.pod().await);
    let entity = |pod: &crate::bed::Pod| -> Entity<u64, Picky, Refused> {
        let loads = Arc::clone(&loads);
        let load = move |key: u64| {
            loads.fetch_add(1, SeqCst);
            async move { Ok(Picky(key)) }
        };
        pod.cache.entity("picky", load).build().unwrap()
    };
    let (on_a, on_b) = (entity(&a), entity(&b));
    assert_eq!(on_a.get(&3).await.unwrap().0, 3);
    a.done("release", 1).await;
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    assert_eq!(hand.look(&at).await, None);
    assert_eq!(on_b.get(&3).await.unwrap().0, 3);
    assert_eq!(loads.load(SeqCst), 2);
}

type BoxError = Box<dyn Error + Send + Sync>;

/// As `anyhow::Error` is: made of any error, none itself, and seen through.
#[derive(Debug)]
struct Anyhow(BoxError);

impl<T: Error + Send + Sync + 'static> From<T> for Anyhow {
    fn from(error: T) -> Self {
        Self(error.into())
    }
}

impl Deref for Anyhow {
    type Target = dyn Error + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

async fn an_error_of_a_loader_that_is_a_box_goes_on_by_a_question_mark(bed: Bed) {
    let pod = bed.pod().await;
    let boxed = |key: u64| async move { Err::<u64, BoxError>(Box::new(Refused(key as u32))) };
    let boxed = pod.cache.entity("boxed", boxed).build().unwrap();
    let anyhow = |key: u64| async move { Err::<u64, Anyhow>(Refused(key as u32).into()) };
    let anyhow = pod.cache.entity("anyhow", anyhow).build().unwrap();
    let get = async || -> Result<u64, BoxError> {
        Ok(*boxed.get(&5).await.map_err(CacheError::into_error)?)
    };
    let other = async || -> Result<u64, Anyhow> {
        Ok(*anyhow.get(&6).await.map_err(CacheError::into_error)?)
    };
    for (error, refused) in [
        (get().await.unwrap_err(), 5),
        (other().await.unwrap_err().0, 6),
    ] {
        let source = error
            .source()
            .and_then(|source| source.downcast_ref::<Refused>());
        assert_eq!(
            (error.to_string(), source),
            ("loader failed".to_owned(), Some(&Refused(refused)))
        );
    }
    let late = CacheError::<BoxError>::Timeout { after: LONG }.into_error();
    assert_eq!(late.to_string(), "no outcome within 60s");
    assert!(matches!(late.into_inner(), CacheError::Timeout { .. }));
}

/// It waits for itself: that ends, and holds nothing up.
async fn a_loader_that_asks_for_its_own_key_times_out(bed: Bed) {
    let pod = bed.pod().await;
    let itself: Arc<OnceLock<Entity<u64, u64, Refused>>> = Arc::default();
    let loader = Arc::clone(&itself);
    let load = move |key: u64| {
        let itself = loader.get().unwrap().clone();
        async move {
            // The other key it may ask for.
            match key {
                0 => Ok(0),
                1 => itself.get(&1).await.map(|_| 0).map_err(|_| Refused(1)),
                _ => itself
                    .get(&(key - 2))
                    .await
                    .map(|below| *below + 1)
                    .map_err(|_| Refused(2)),
            }
        }
    };
    let entity = pod.cache.entity("recursive", load);
    let entity = entity.load_timeout(Duration::from_secs(2)).build().unwrap();
    itself.set(entity.clone()).unwrap();
    assert_eq!(*entity.get(&6).await.unwrap(), 3);
    // The outer one's limit and that of the inner one end at about the same time.
    let got = soon("an answer", entity.get(&1)).await;
    assert!(
        matches!(got, Err(CacheError::Timeout { .. } | CacheError::Load(_))),
        "{got:?}"
    );
    let got = soon("an answer", entity.get_many(&[1])).await.remove(0);
    assert!(
        matches!(got, Err(CacheError::Timeout { .. } | CacheError::Load(_))),
        "{got:?}"
    );
    soon("close", pod.cache.close()).await;
}

on_both_stores!(
    an_error_of_a_loader_that_is_a_box_goes_on_by_a_question_mark,
    a_loader_that_asks_for_its_own_key_times_out,
    an_error_is_not_kept_unless_asked_for,
    an_error_with_a_ttl_is_kept_typed_in_both_levels,
    a_pod_that_keeps_no_errors_takes_a_stored_one_for_a_miss,
    there_is_none_has_a_life_of_its_own,
    a_ttl_of_zero_keeps_in_neither_level_and_removes_what_was_there,
    a_ttl_may_depend_on_key_and_value,
    a_local_life_may_be_shorter_than_that_in_the_store,
    what_has_expired_in_the_store_is_loaded_again,
    a_value_that_cannot_be_encoded_is_served_and_its_lease_returned,
);
