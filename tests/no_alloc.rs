//! A hit in memory allocates nothing: not an entity's, not a memo's.

use std::convert::Infallible;
use std::fmt::Debug;
use std::future::ready;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tidings::store::Memory;
use tidings::{Cache, Key, Ttl};

const HITS: usize = 10_000;

/// Reads resident keys again and again, polling the future itself: nothing but the read is counted,
/// and a read that needs a second poll is no hit.
async fn hits_allocate_nothing<K: Key + Debug>(keys: [K; 3]) {
    hits_with_tags_allocate_nothing(keys, 0).await;
}

async fn hits_with_tags_allocate_nothing<K: Key + Debug>(keys: [K; 3], tags: usize) {
    let cache = Cache::builder("no-alloc").store(Memory::new()).build();
    let load = |_: K| ready(Ok::<_, Infallible>(7_u64));
    let cache = cache.await.expect("the embedded store is always there");
    let values = cache.entity("value", load).ttl(Ttl::Forever);
    let values = values.tags(move |_, _| (0..tags).map(|tag| format!("tag:{tag}")));
    let values = values.build().expect("the options are in range");
    for key in &keys {
        values.get(key).await.expect("it loads");
        assert!(values.peek(key).is_some(), "{key:?} is resident");
    }
    let mut context = Context::from_waker(Waker::noop());
    let counted = allocation_counter::measure(|| {
        for key in keys.iter().cycle().take(HITS) {
            match pin!(values.get(key)).poll(&mut context) {
                Poll::Ready(Ok(value)) => assert_eq!(*value, 7),
                other => panic!("{key:?} is no hit: {other:?}"),
            }
        }
    });
    assert_eq!(counted.count_total, 0, "{HITS} hits of {:?}", keys[0]);
    let peeked = allocation_counter::measure(|| {
        assert!(keys.iter().all(|key| values.peek(key).is_some()));
    });
    assert_eq!(peeked.count_total, 0, "peeks of {:?}", keys[0]);
    let control = allocation_counter::measure(|| drop(vec![1_u8]));
    assert_eq!(control.count_total, 1, "allocations are counted");
}

#[tokio::test]
async fn a_hit_of_a_string_key_allocates_nothing() {
    hits_allocate_nothing(["a", "customer/2", "shop:eu-1:customer/3"].map(String::from)).await;
}

#[tokio::test]
async fn a_hit_of_a_tagged_entry_allocates_nothing() {
    hits_with_tags_allocate_nothing([1_u64, 2, 3], 1).await;
    hits_with_tags_allocate_nothing([1_u64, 2, 3], 3).await;
}

#[tokio::test]
async fn a_hit_of_a_number_allocates_nothing() {
    hits_allocate_nothing([0_u64, 42, u64::MAX]).await;
}

/// What is boxed for a miss is not part of it. Below this size allocators have the room for a task at hand.
#[tokio::test]
async fn the_future_of_a_read_is_smaller_than_a_kibibyte() {
    let cache = Cache::builder("no-alloc").store(Memory::new()).build();
    let cache = cache.await.expect("the embedded store is always there");
    let load = |id: u64| ready(Ok::<_, Infallible>(id));
    let values = cache.entity("value", load).build();
    let values = values.expect("the options are in range");
    let sizes = [
        size_of_val(&values.get(&1)),
        size_of_val(&values.get_with(&1)),
        size_of_val(&values.get_strict(&1)),
        size_of_val(&values.refresh(&1)),
    ];
    assert!(sizes.iter().all(|size| *size < 1024), "{sizes:?}");
}

#[tokio::test]
async fn a_hit_of_a_tuple_allocates_nothing() {
    let key = |org: &str, id| (String::from(org), id, [7_u8; 16]);
    hits_allocate_nothing([key("a/b", 1_u32), key("100%", 2), key("c", u32::MAX)]).await;
}

/// As above, of a memo, whose hits are counted too.
async fn hits_of_a_memo_allocate_nothing<K>(keys: [K; 3], ttl: Ttl)
where
    K: Hash + Eq + Clone + Debug + Send + Sync + 'static,
{
    let cache = Cache::builder("no-alloc").store(Memory::new()).build();
    let compute = |_: K| ready(Ok::<_, Infallible>(Arc::new(7_u64)));
    let cache = cache.await.expect("the embedded store is always there");
    let values = cache.memo("value", compute).ttl(ttl).build();
    let values = values.expect("the options are in range");
    for key in &keys {
        values.get(key).await.expect("it computes");
    }
    let mut context = Context::from_waker(Waker::noop());
    let counted = allocation_counter::measure(|| {
        for key in keys.iter().cycle().take(HITS) {
            match pin!(values.get(key)).poll(&mut context) {
                Poll::Ready(Ok(value)) => assert_eq!(*value, 7),
                other => panic!("{key:?} is no hit: {other:?}"),
            }
        }
    });
    assert_eq!(counted.count_total, 0, "{HITS} hits of {:?}", keys[0]);
    let peeked = allocation_counter::measure(|| {
        assert!(keys.iter().all(|key| values.peek(key).is_some()));
    });
    assert_eq!(peeked.count_total, 0, "peeks of {:?}", keys[0]);
    assert_eq!(values.stats().hits, HITS as u64);
}

#[tokio::test]
async fn a_hit_of_a_memo_allocates_nothing() {
    let hour = Ttl::For(Duration::from_secs(3600));
    let texts = ["a", "customer/2", "shop:eu-1:customer/3"].map(String::from);
    hits_of_a_memo_allocate_nothing(texts, hour).await;
    hits_of_a_memo_allocate_nothing([0_u64, 42, u64::MAX], Ttl::Forever).await;
    let tuples = [1, 2, 3].map(|n: u8| (vec![n; 9], Some(n), [n; 7]));
    hits_of_a_memo_allocate_nothing(tuples, hour).await;
}
