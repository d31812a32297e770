//! What a read claims about itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::testing::{MessageFault, Proxy, RedisServer};
use tidings::{Cache, Entity, Origin};
use tokio::sync::Notify;

/// A record whose loads wait, once they have read it, until they are let go.
#[derive(Default)]
struct Gated {
    version: AtomicU64,
    loads: AtomicU64,
    open: Notify,
}

async fn pod(url: String, record: &Arc<Gated>) -> Entity<u64, u64, Infallible> {
    let cache = Cache::builder("claims").store_url(url).build();
    let record = Arc::clone(record);
    let load = move |_: u64| {
        let record = Arc::clone(&record);
        async move {
            let version = record.version.load(Ordering::SeqCst);
            record.loads.fetch_add(1, Ordering::SeqCst);
            record.open.notified().await;
            Ok::<_, Infallible>(version)
        }
    };
    let cache = cache.await.unwrap();
    cache.entity("record", load).build().unwrap()
}

/// A read that joins a load which others began cannot claim more than the load can.
#[tokio::test]
async fn a_joined_load_claims_no_more_than_its_own_age() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let record = Arc::<Gated>::default();
    let reader = pod(proxy.url(), &record).await;
    let writer = pod(server.url(), &record).await;
    proxy.set_messages(MessageFault::DropAll);

    let first = tokio::spawn({
        let reader = reader.clone();
        async move { reader.get_with(&1).await.unwrap() }
    });
    while record.loads.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    record.version.store(1, Ordering::SeqCst);
    writer.invalidate(&1).await.unwrap();
    let acked = Instant::now();
    tokio::time::sleep(Duration::from_millis(30)).await;

    // Joins before the next poll tells this pod; should the poll be faster, it loads anew.
    let start = Instant::now();
    let open = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            record.open.notify_waiters();
        }
    };
    let second = tokio::select! {
        second = reader.get_with(&1) => second.unwrap(),
        () = open => unreachable!(),
    };
    assert_eq!(second.origin, Origin::Loader);
    if *second.value == 0 {
        let missed_for = start.duration_since(acked);
        assert!(
            second.bound >= missed_for,
            "{second:?} missed {missed_for:?}"
        );
    }
    first.await.unwrap();
}
