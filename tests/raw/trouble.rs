//! When the store fails, or the cache is closed.

use crate::{Bed, bytes, eventually};
use std::time::Duration;
use tidings::store::{Memory, Redis};
use tidings::testing::RedisServer;
use tidings::{Raw, StoreError, StoreErrorKind, Ttl};

/// Every call, reads first.
async fn every_call(raw: &Raw) -> (Vec<StoreError>, Vec<StoreError>) {
    let reads = vec![
        raw.get("k").await.unwrap_err(),
        raw.get_many(["k"]).await.unwrap_err(),
        raw.scan().next().await.unwrap().unwrap_err(),
        raw.hget("k", "f").await.unwrap_err(),
        raw.hgetall("k").await.unwrap_err(),
        raw.hlen("k").await.unwrap_err(),
    ];
    (reads, every_write(raw).await)
}

async fn every_write(raw: &Raw) -> Vec<StoreError> {
    vec![
        raw.set("k", "v", Ttl::Forever).await.unwrap_err(),
        raw.set_many([("k", "v")], Ttl::NONE).await.unwrap_err(),
        raw.remove("k").await.unwrap_err(),
        raw.remove_many(["k"]).await.unwrap_err(),
        raw.expire("k", Ttl::Forever).await.unwrap_err(),
        raw.clear().await.unwrap_err(),
        raw.hset("k", "f", "v").await.unwrap_err(),
        raw.hdel("k", "f").await.unwrap_err(),
    ]
}

fn are_all(errors: Vec<StoreError>, kind: StoreErrorKind) {
    for error in errors {
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(error.operation().starts_with("raw "), "{error:?}");
    }
}

async fn after_close_every_call_says_so(bed: Bed) {
    let cache = bed.cache().await;
    let raw = cache.raw("p").unwrap();
    raw.set("k", "v", Ttl::Forever).await.unwrap();
    cache.close().await;
    let (reads, writes) = every_call(&raw).await;
    are_all(reads, StoreErrorKind::Closed);
    are_all(writes, StoreErrorKind::Closed);
}

async fn a_raw_store_keeps_its_cache_open(bed: Bed) {
    let raw = bed.raw("p").await.clone(); // the handle of the cache is gone
    raw.set("k", "v", Ttl::Forever).await.unwrap();
    assert_eq!(raw.get("k").await.unwrap(), bytes("v"));
}

on_both_stores!(
    after_close_every_call_says_so,
    a_raw_store_keeps_its_cache_open,
);

#[tokio::test]
async fn without_the_store_every_call_is_unavailable_and_later_works_again() {
    let store = Memory::new();
    let raw = Bed::on(store.clone(), None).raw("p").await;
    raw.set("k", "v", Ttl::Forever).await.unwrap();
    store.faults().set_down(true);
    let (reads, writes) = every_call(&raw).await;
    are_all(reads, StoreErrorKind::Unavailable);
    are_all(writes, StoreErrorKind::Unavailable);
    store.faults().set_down(false);
    eventually("it works again", async || {
        raw.get("k").await.is_ok_and(|found| found == bytes("v"))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_ends_reads_after_a_quarter_of_a_second_and_writes_after_two() {
    let store = Memory::new();
    let raw = Bed::on(store.clone(), None).raw("p").await;
    store.faults().hang(true);
    let began = tokio::time::Instant::now();
    let error = raw.get("k").await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout);
    assert!(began.elapsed() < Duration::from_millis(260));
    store.faults().hang(false);
    eventually("it works again", async || raw.get("k").await.is_ok()).await;

    store.faults().hang(true);
    let began = tokio::time::Instant::now();
    let error = raw.set("k", "v", Ttl::Forever).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Timeout);
    let took = began.elapsed();
    let limits = Duration::from_secs(2)..Duration::from_millis(2_010);
    assert!(limits.contains(&took), "{took:?}");
}

/// Time stands still: the next poll is refused as well, and with it the link is given up.
#[tokio::test(start_paused = true)]
async fn faults_of_writes_befall_raw_writes_and_leave_reads_alone() {
    let store = Memory::new();
    let raw = Bed::on(store.clone(), None).raw("p").await;
    raw.hset("k", "f", "v").await.unwrap();
    let faults = store.faults();
    faults.set_error(Some(StoreErrorKind::Full));
    are_all(every_write(&raw).await, StoreErrorKind::Full);
    assert_eq!(raw.hget("k", "f").await.unwrap(), bytes("v"));
    assert_eq!(raw.hlen("k").await.unwrap(), 1);
}

#[tokio::test]
async fn a_redis_that_was_killed_is_used_again_when_it_is_back() {
    let mut server = RedisServer::start().unwrap();
    let store = Redis::new(&server.url()).unwrap();
    let raw = Bed::on(store, None).raw("p").await;
    raw.set("k", "v", Ttl::Forever).await.unwrap();
    server.kill();
    let (reads, writes) = every_call(&raw).await;
    are_all(reads, StoreErrorKind::Unavailable);
    are_all(writes, StoreErrorKind::Unavailable);
    server.restart().unwrap();
    eventually("it works again", async || {
        raw.set("k", "v", Ttl::Forever).await.is_ok()
    })
    .await;
    assert_eq!(raw.get("k").await.unwrap(), bytes("v"));
}
