//! Values that are too long for the connection that a pod shares.

use crate::bed::{Bed, Pod, eventually};
use crate::source::Refused;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tidings::{
    DEFAULT_STORE_MAX_BYTES, Entity, EntityBuilder, LoadContext, Loaded, Loader, Origin,
};

const MAX: usize = 1000;

type Texts = Entity<u64, String, Refused>;

/// Texts of the length that the source says, each with that length as its version.
fn builder(
    pod: &Pod,
    source: &Arc<AtomicUsize>,
) -> EntityBuilder<u64, impl Loader<u64, Value = String, Error = Refused> + use<>> {
    let source = Arc::clone(source);
    let load = move |_load: LoadContext<u64, String>| {
        let len = source.load(SeqCst);
        async move { Ok::<_, Refused>(Loaded::new("x".repeat(len)).version(len as u64)) }
    };
    pod.cache.entity_with("text", load).store_max_bytes(MAX)
}

fn texts(pod: &Pod, source: &Arc<AtomicUsize>) -> Texts {
    builder(pod, source).build().unwrap()
}

async fn what_is_too_long_is_kept_here_and_loaded_by_each_pod(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Arc::new(AtomicUsize::new(MAX));
    let (on_a, on_b) = (texts(&a, &source), texts(&b, &source));
    for texts in [&on_a, &on_b] {
        let served = texts.get_with(&1).await.unwrap();
        assert_eq!((served.value.len(), served.origin), (MAX, Origin::Loader));
        eventually("it is counted", async || texts.stats().fills_failed == 1).await;
        assert_eq!(texts.get_with(&1).await.unwrap().origin, Origin::Local);
    }
    // The right to load is given back: nobody waits for it.
    let many = on_b.get_many(&[2, 3]).await;
    assert!(many.iter().all(|text| text.as_ref().unwrap().len() == MAX));
    eventually("all are counted", async || on_b.stats().fills_failed == 3).await;
    assert_eq!((on_b.stats().fills, b.wire.done("fill")), (0, 0));
    assert_eq!(on_a.get_with(&2).await.unwrap().origin, Origin::Loader);
    // And it follows like any other.
    source.store(10, SeqCst);
    on_a.invalidate(&1).await.unwrap();
    eventually("the other pod follows", async || {
        on_b.get(&1).await.unwrap().len() == 10
    })
    .await;
}

async fn what_stood_in_the_store_goes_when_its_successor_is_too_long(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Arc::new(AtomicUsize::new(10));
    let (on_a, on_b) = (texts(&a, &source), texts(&b, &source));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Store);
    source.store(MAX, SeqCst);
    assert_eq!(on_a.refresh(&1).await.unwrap().len(), MAX);
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    eventually("it has gone", async || hand.look(&at).await.is_none()).await;
    let late = bed.pod().await;
    let served = texts(&late, &source).get_with(&1).await.unwrap();
    assert_eq!((served.value.len(), served.origin), (MAX, Origin::Loader));
}

async fn a_put_of_what_is_too_long_invalidates(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let source = Arc::new(AtomicUsize::new(10));
    let (on_a, on_b) = (texts(&a, &source), texts(&b, &source));
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    on_b.get(&1).await.unwrap();
    source.store(MAX, SeqCst);
    on_a.put_versioned(&1, "x".repeat(MAX), MAX as u64)
        .await
        .unwrap();
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    assert_eq!(hand.look(&at).await, None);
    assert_eq!(on_a.get_with(&1).await.unwrap().origin, Origin::Loader);
    eventually("the other pod follows", async || {
        on_b.get(&1).await.unwrap().len() == MAX
    })
    .await;
}

/// Before there was a limit, a value of this length took the pod's connection with it: the poll behind it
/// was late, and every read of it anew.
async fn a_very_long_value_leaves_the_connection_to_others(bed: Bed) {
    let pod = bed.pod().await;
    let load = |len: u64| async move { Ok::<_, Refused>("x".repeat(len as usize)) };
    let texts = pod.cache.entity("text", load).build().unwrap();
    let long = 4 * DEFAULT_STORE_MAX_BYTES as u64;
    assert_eq!(texts.get(&long).await.unwrap().len() as u64, long);
    eventually("it is counted", async || texts.stats().fills_failed == 1).await;
    texts.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    assert_eq!(texts.stats().fills, 1, "the short one alone");
}

on_both_stores!(
    what_is_too_long_is_kept_here_and_loaded_by_each_pod,
    what_stood_in_the_store_goes_when_its_successor_is_too_long,
    a_put_of_what_is_too_long_invalidates,
    a_very_long_value_leaves_the_connection_to_others,
);
