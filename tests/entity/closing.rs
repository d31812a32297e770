//! How a cache ends.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::source::{Refused, Source};
use std::time::Duration;
use tidings::{CacheError, InvalidateError, Origin, StoreState};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

fn reader(numbers: &Numbers, key: u64) -> JoinHandle<Result<u64, CacheError<Refused>>> {
    let numbers = numbers.clone();
    tokio::spawn(async move { numbers.get(&key).await.map(|value| *value) })
}

async fn close(pod: &Pod) {
    soon("closing", pod.cache.close()).await;
}

async fn after_close_every_call_says_so(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    tokio::join!(close(&pod), close(&pod));
    close(&pod).await;
    let own = async || Ok::<_, Refused>(1);
    assert!(matches!(numbers.get(&1).await, Err(CacheError::Closed)));
    assert!(matches!(
        numbers.get_with(&2).await,
        Err(CacheError::Closed)
    ));
    assert!(matches!(
        numbers.get_or_load(&3, own).await,
        Err(CacheError::Closed)
    ));
    assert!(matches!(
        numbers.invalidate(&1).await,
        Err(InvalidateError::Closed)
    ));
    assert!(matches!(
        numbers.clear().await,
        Err(InvalidateError::Closed)
    ));
    assert_eq!(numbers.peek(&1), None);
    let health = pod.cache.health();
    assert!(
        matches!(health.store, StoreState::Down { .. }),
        "{health:?}"
    );
    assert_eq!(source.loads(), 1);
}

async fn close_frees_who_waits_for_a_load_and_returns_its_lease(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    source.hold();
    let leader = reader(&on_a, 1);
    eventually("the load runs", async || source.running() == 1).await;
    let mut joined = Box::pin(on_a.get(&1));
    poll_once(&mut joined).await;
    close(&a).await;
    let joined = soon("who joined", joined).await.unwrap_err();
    assert!(matches!(joined, CacheError::Closed), "{joined:?}");
    let led = soon("who led", leader).await.unwrap().unwrap_err();
    assert!(matches!(led, CacheError::Closed), "{led:?}");
    assert_eq!((source.running(), source.loads()), (0, 1));
    source.let_go();
    assert_eq!(on_b.get_with(&1).await.unwrap().origin, Origin::Loader);
    b.done("fill", 1).await;
    assert_eq!(a.wire.done("release"), 1);
}

async fn close_lets_fills_under_way_end(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    a.numbers(&source).get(&1).await.unwrap();
    close(&a).await;
    let served = b.numbers(&source).get_with(&1).await.unwrap();
    assert_eq!(served.origin, Origin::Store);
}

async fn close_tells_what_was_not_acknowledged(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.invalidate(&9).await.unwrap();
    pod.wire.cut(true);
    eventually("the link is down", async || {
        matches!(pod.cache.health().store, StoreState::Down { .. })
    })
    .await;
    for _ in 0..3 {
        numbers.invalidate_many(&[1, 2]).await.unwrap_err();
    }
    for _ in 0..2 {
        let report = soon("closing", pod.cache.close()).await;
        let mut left: Vec<_> = report.unacknowledged.iter().map(|it| &*it.what).collect();
        left.sort_unstable();
        assert_eq!(left, ["number:1", "number:2"]);
    }
    let other = bed.pod().await;
    assert!(other.cache.close().await.unacknowledged.is_empty());
}

async fn close_waits_for_a_pending_invalidation(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_b.get(&1).await.unwrap();
    a.wire.cut(true);
    eventually("the link is down", async || {
        on_a.invalidate(&2).await.is_err()
    })
    .await;
    source.commit(1, 1);
    let Err(InvalidateError::Pending(pending)) = on_a.invalidate(&1).await else {
        panic!("it is cut off");
    };
    let closing = tokio::spawn({
        let cache = a.cache.clone();
        async move { cache.close().await }
    });
    a.wire.cut(false);
    let report = soon("closing", closing).await.unwrap();
    assert!(report.unacknowledged.is_empty());
    assert!(pending.settled().await.is_ok());
    eventually("the other pod follows", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn close_ends_in_two_seconds_though_the_store_is_away() {
    let bed = Bed::memory();
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    pod.wire.cut(true);
    eventually("the link is down", async || {
        matches!(pod.cache.health().store, StoreState::Down { .. })
    })
    .await;
    let Err(InvalidateError::Pending(pending)) = numbers.invalidate(&1).await else {
        panic!("it is cut off");
    };
    source.hold();
    let waiting = reader(&numbers, 2);
    eventually("the load runs", async || source.running() == 1).await;
    let began = tokio::time::Instant::now();
    pod.cache.close().await;
    assert!(
        began.elapsed() <= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    let settled = soon("the handle", pending.settled()).await;
    assert!(
        matches!(settled, Err(InvalidateError::Closed)),
        "{settled:?}"
    );
    assert!(matches!(waiting.await.unwrap(), Err(CacheError::Closed)));
}

/// Runs `end` on a pod that has been through much; then nothing of it may be left.
async fn nothing_is_left(bed: &Bed, end: impl AsyncFnOnce(Pod, Numbers)) {
    let tasks = Handle::current().metrics().num_alive_tasks();
    let source = Source::new();
    let pod = bed.pod().await;
    let wire = pod.wire.clone();
    let numbers = pod.numbers(&source);
    for key in 0..20 {
        numbers.get(&key).await.unwrap();
        numbers.invalidate(&key).await.unwrap();
    }
    source.hold();
    reader(&numbers, 1).abort();
    wire.cut(true);
    numbers.clear().await.unwrap_err();
    wire.cut(false);
    end(pod, numbers).await;
    eventually("no link is left", async || wire.links() == 0).await;
    eventually("no task is left", async || {
        Handle::current().metrics().num_alive_tasks() <= tasks
    })
    .await;
    assert_eq!(source.running(), 0);
}

async fn nothing_is_left_after_close(bed: Bed) {
    let mut kept = None;
    nothing_is_left(&bed, async |pod, numbers| {
        close(&pod).await;
        kept = Some((pod, numbers));
    })
    .await;
}

async fn nothing_is_left_after_the_last_handle_is_dropped(bed: Bed) {
    nothing_is_left(&bed, async |pod, numbers| drop((pod, numbers))).await;
}

async fn an_entity_keeps_its_cache_going(bed: Bed) {
    let source = Source::new();
    let Pod { cache, wire } = bed.pod().await;
    let numbers = cache.entity("number", source.clone()).build().unwrap();
    drop(cache);
    numbers.get(&1).await.unwrap();
    numbers.invalidate(&1).await.unwrap();
    assert!(matches!(numbers.cache().health().store, StoreState::Up));
    drop(numbers);
    eventually("the link ends", async || wire.links() == 0).await;
}

on_both_stores!(
    after_close_every_call_says_so,
    close_frees_who_waits_for_a_load_and_returns_its_lease,
    close_lets_fills_under_way_end,
    close_tells_what_was_not_acknowledged,
    close_waits_for_a_pending_invalidation,
    nothing_is_left_after_close,
    nothing_is_left_after_the_last_handle_is_dropped,
    an_entity_keeps_its_cache_going,
);
