//! Memos that depend on tags: what drops them, and when.

use crate::bed::{Place, eventually, poll_once};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tidings::store::Memory;
use tidings::testing::{Direction, Fault, Proxy, RedisServer};
use tidings::{Cache, Clock, Memo, Millis};
use tokio::sync::Semaphore;

async fn pod(place: &Place) -> Cache {
    place.builder().build().await.unwrap()
}

/// A memo that counts its computations, of keys that depend on `org:KEY` and on every `dish`.
fn menus(cache: &Cache, computed: &Arc<AtomicU64>) -> Memo<u64, u64, Infallible> {
    let computed = Arc::clone(computed);
    let compute = move |_: u64| {
        let count = computed.fetch_add(1, SeqCst) + 1;
        async move { Ok(count) }
    };
    let memo = cache.memo("menu", compute);
    memo.tags(|org| [format!("org:{org}"), "dish".to_owned()])
        .build()
        .unwrap()
}

async fn both(menus: &Memo<u64, u64, Infallible>) -> (u64, u64) {
    (menus.get(&7).await.unwrap(), menus.get(&8).await.unwrap())
}

#[tokio::test]
async fn an_invalidation_of_its_tag_drops_an_outcome_and_no_other() {
    let place = Place::new();
    let cache = pod(&place).await;
    let menus = menus(&cache, &Arc::default());
    assert_eq!(both(&menus).await, (1, 2));
    cache.invalidate(["org:7"]).await.unwrap();
    assert_eq!((menus.peek(&7), menus.peek(&8)), (None, Some(2)));
    assert_eq!(both(&menus).await, (3, 2));
    cache.invalidate(["dish:1"]).await.unwrap();
    assert_eq!(
        (menus.peek(&7), menus.peek(&8)),
        (None, None),
        "a part of all dishes"
    );
    menus.get(&7).await.unwrap();
    cache.invalidate(["org"]).await.unwrap();
    assert_eq!(menus.peek(&7), None, "the whole of its part");
}

#[tokio::test]
async fn an_invalidation_by_another_pod_drops_an_outcome() {
    let place = Place::new();
    let (here, there) = (pod(&place).await, pod(&place).await);
    let menus = menus(&here, &Arc::default());
    for count in 1..=20 {
        assert_eq!(menus.get(&7).await.unwrap(), count);
        there.invalidate(["org:7"]).await.unwrap();
        eventually("dropped", async || menus.peek(&7).is_none()).await;
    }
}

#[tokio::test]
async fn an_invalidation_of_an_entity_drops_what_depends_on_it() {
    let place = Place::new();
    let cache = pod(&place).await;
    let load = |id: u64| async move { Ok::<_, Infallible>(id) };
    let users = cache.entity("user", load).build().unwrap();
    let tag = users.tag(&42);
    let greeting = cache.memo_once("greeting", || async { Ok::<_, Infallible>(()) });
    let greeting = greeting.tags([tag]).build().unwrap();
    greeting.get().await.unwrap();
    users.invalidate(&43).await.unwrap();
    assert_eq!(greeting.peek(), Some(()));
    users.invalidate(&42).await.unwrap();
    assert_eq!(greeting.peek(), None);
    greeting.get().await.unwrap();
    users.clear().await.unwrap();
    assert_eq!(greeting.peek(), None);
}

/// 1. A computation begins. 2. Its tag is invalidated. 3. Somebody asks. 4. The computation ends.
#[tokio::test]
async fn a_computation_that_its_tag_overtook_is_neither_joined_nor_remembered() {
    let place = Place::new();
    let cache = pod(&place).await;
    let (gate, source) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU64::new(1)));
    let (held, read) = (Arc::clone(&gate), Arc::clone(&source));
    let compute = move |_: u64| {
        let (held, value) = (Arc::clone(&held), read.load(SeqCst));
        async move {
            held.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(value)
        }
    };
    let memo = cache
        .memo("slow", compute)
        .tags(|key| [format!("org:{key}")]);
    let memo = memo.build().unwrap();
    let mut before = Box::pin(memo.get(&7));
    poll_once(&mut before).await;
    tokio::task::yield_now().await;
    source.store(2, SeqCst);
    cache.invalidate(["org:7"]).await.unwrap();
    let mut after = Box::pin(memo.get(&7));
    poll_once(&mut after).await;
    gate.add_permits(2);
    assert_eq!(before.await.unwrap(), 1, "it asked before");
    assert_eq!(after.await.unwrap(), 2);
    assert_eq!(memo.peek(&7), Some(2));
}

/// Time is the test's: a pod that hears nothing vouches for its outcomes for a second.
#[tokio::test]
async fn an_outcome_with_tags_ends_with_what_its_pod_can_vouch_for() {
    let (store, clock) = (Memory::new(), Clock::manual(Millis(1_000_000)));
    let builder = Cache::builder("memo")
        .store(store.clone())
        .clock(clock.clone());
    let cache = builder.build().await.unwrap();
    let menus = menus(&cache, &Arc::default());
    let untied = cache.memo("untied", |_: u64| async { Ok::<_, Infallible>(()) });
    let untied = untied.build().unwrap();
    store.faults().set_down(true);
    let down = async || !matches!(cache.health().store, tidings::StoreState::Up);
    eventually("the link is down", down).await;
    menus.get(&7).await.unwrap();
    untied.get(&7).await.unwrap();
    clock.advance(Duration::from_millis(999));
    assert_eq!(menus.peek(&7), Some(1));
    clock.advance(Duration::from_millis(1));
    assert_eq!((menus.peek(&7), untied.peek(&7)), (None, Some(())));
    assert_eq!(
        menus.get(&7).await.unwrap(),
        2,
        "the computation does not need the store"
    );
    store.faults().set_down(false);
    let again = async || matches!(cache.health().store, tidings::StoreState::Up);
    eventually("the link is up", again).await;
    let vouched = async || {
        menus.get(&7).await.unwrap();
        clock.advance(Duration::from_millis(1));
        menus.peek(&7).is_some()
    };
    assert!(vouched().await);
}

/// A pod whose network is gone serves no outcome beyond the bound after another pod's invalidation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_outcome_outlives_the_bound_in_a_pod_that_is_cut_off() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let pod = async |url: String| Cache::builder("memo").store_url(url).build().await.unwrap();
    let (here, there) = (pod(proxy.url()).await, pod(server.url()).await);
    let source = Arc::new(AtomicU64::new(1));
    let read = Arc::clone(&source);
    let memo = here.memo("read", move |_: u64| {
        let value = read.load(SeqCst);
        async move { Ok::<_, Infallible>(value) }
    });
    let memo = memo.tags(|key| [format!("org:{key}")]).build().unwrap();
    assert_eq!(memo.get(&7).await.unwrap(), 1);
    proxy.set(Fault::Blackhole {
        direction: Direction::Both,
    });
    source.store(2, SeqCst);
    there.invalidate(["org:7"]).await.unwrap();
    let acknowledged = std::time::Instant::now();
    let bound = here.health().bound;
    loop {
        let late = acknowledged.elapsed() > bound;
        let value = memo.get(&7).await.unwrap();
        if value == 2 {
            break;
        }
        assert!(!late, "{value} after the bound");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
