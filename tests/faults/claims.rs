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

/// What a restored dataset holds is there, and counts for nothing: its invalidations may be lost.
#[tokio::test]
async fn values_of_a_restored_snapshot_are_not_believed() {
    let mut server = RedisServer::start().unwrap();
    let record = Arc::<Gated>::default();
    let reader = pod(server.url(), &record).await;
    let read = async |pod: &Entity<u64, u64, Infallible>| {
        tokio::select! {
            read = pod.get_with(&1) => read.unwrap(),
            () = open(&record) => unreachable!(),
        }
    };
    assert_eq!(*read(&reader).await.value, 0);
    let name = server.cli(&["KEYS", "*}v:record:1"]).unwrap();
    let is_filled = || {
        server
            .cli(&["STRLEN", &name])
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 28
    };
    while !is_filled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let old = server.snapshot().unwrap();
    record.version.store(1, Ordering::SeqCst);
    reader.invalidate(&1).await.unwrap();
    server.restart_from(&old).unwrap();

    let fresh = pod(server.url(), &record).await;
    assert_ne!(server.cli(&["EXISTS", &name]).unwrap(), "0");
    let served = read(&fresh).await;
    assert_eq!((*served.value, served.origin), (1, Origin::Loader));
    assert_eq!(*read(&reader).await.value, 1);
}

/// The store goes back behind an invalidation, and its log grows past the place before anybody looks:
/// its numbers alone would show nothing.
#[tokio::test]
async fn a_log_that_was_rewritten_and_grew_on_is_not_believed() {
    let server = RedisServer::start().unwrap();
    let record = Arc::<Gated>::default();
    let reader = pod(server.url(), &record).await;
    let writer = pod(server.url(), &record).await;
    let read = async |key: u64| {
        tokio::select! {
            read = reader.get(&key) => *read.unwrap(),
            () = open(&record) => unreachable!(),
        }
    };
    let lane_of = async |key: u64| loop {
        read(key).await;
        let name = server
            .cli(&["KEYS", &format!("*}}v:record:{key}")])
            .unwrap();
        if let Some((lane, _)) = name.split_once("v:") {
            break lane.to_owned();
        }
    };
    let lane = lane_of(1).await;
    let mut neighbour = 2;
    while lane_of(neighbour).await != lane {
        neighbour += 1;
    }
    let value = format!("{lane}v:record:1");
    while server
        .cli(&["STRLEN", &value])
        .unwrap()
        .parse::<u64>()
        .unwrap()
        <= 28
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for key in server.cli(&["KEYS", "*"]).unwrap().lines() {
        server.cli(&["COPY", key, key, "DB", "1"]).unwrap();
    }
    record.version.store(1, Ordering::SeqCst);
    writer.invalidate(&1).await.unwrap();
    server.cli(&["SWAPDB", "0", "1"]).unwrap();
    for _ in 0..3 {
        writer.invalidate(&neighbour).await.unwrap();
    }
    let bound = reader.cache().health().bound;
    tokio::time::sleep(bound).await;
    assert_eq!(read(1).await, 1);
}

/// Lets every load go on, again and again.
async fn open(record: &Gated) {
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        record.open.notify_waiters();
    }
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
    let second = tokio::select! {
        second = reader.get_with(&1) => second.unwrap(),
        () = open(&record) => unreachable!(),
    };
    assert_eq!(second.origin, Origin::Loader);
    if *second.value == 0 {
        let missed_for = start.duration_since(acked);
        assert!(
            second.bound().is_some_and(|bound| bound >= missed_for),
            "{second:?} missed {missed_for:?}"
        );
    }
    first.await.unwrap();
}
