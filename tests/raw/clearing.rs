//! Walks and clears of many keys.

use crate::stalls::Stalls;
use crate::{Bed, all, bytes};
use std::collections::BTreeSet;
use std::time::Duration;
use tidings::store::Redis;
use tidings::testing::RedisServer;
use tidings::{Cache, Ttl};

const MANY: usize = 1_000_000;
/// Written by one script: some milliseconds.
const AT_ONCE: usize = 10_000;

async fn a_scan_gives_every_key_that_stays_and_clear_counts_them(bed: Bed) {
    let raw = bed.raw("p").await;
    let keys: Vec<_> = (0..3_500).map(|n| n.to_string()).collect();
    let entries = keys.iter().map(|key| (key, key));
    raw.set_many(entries, Ttl::Forever).await.unwrap();
    let mut scan = raw.scan();
    let mut seen = BTreeSet::new();
    let mut n = 0;
    while let Some(key) = scan.next().await {
        seen.insert(String::from_utf8(key.unwrap().into()).unwrap());
        n += 1;
        if n % 500 == 0 {
            raw.set_many(
                (0..500).map(|m| (format!("new {n} {m}"), "v")),
                Ttl::Forever,
            )
            .await
            .unwrap();
        }
    }
    assert!(keys.iter().all(|key| seen.contains(key)));
    let there = all(raw.scan()).await.len() as u64;
    assert_eq!(raw.clear().await.unwrap(), there);
    assert_eq!(raw.clear().await.unwrap(), 0);
}

on_both_stores!(a_scan_gives_every_key_that_stays_and_clear_counts_them,);

/// How often the server has run a command.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let line = stats.lines().find_map(|line| {
        let line = line.strip_prefix("cmdstat_")?.strip_prefix(command)?;
        line.strip_prefix(":calls=")
    });
    let calls = line.and_then(|line| line.split(',').next()?.parse().ok());
    calls.unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clearing_a_million_keys_stalls_nobody_and_touches_no_other_prefix() {
    let server = RedisServer::start().unwrap();
    let store = Redis::new(&server.url()).unwrap();
    let cache = Cache::builder("ns").store(store).build().await.unwrap();
    let doomed = cache.raw("p").unwrap();
    let kept: Vec<_> = ["*", "p*", "?", "[p]", "p:"]
        .iter()
        .map(|prefix| cache.raw(prefix).unwrap())
        .collect();
    for raw in &kept {
        let keys = (0..100).map(|n| (format!("p:{n}"), "v"));
        raw.set_many(keys, Ttl::Forever).await.unwrap();
    }
    let fill = "for n = ARGV[1], ARGV[1] + ARGV[2] - 1 do \
        redis.call('SET', string.format('{ns:%02x}r:p:key %d', n % 16, n), 'v') end";
    for start in (0..MANY).step_by(AT_ONCE) {
        let (start, count) = (start.to_string(), AT_ONCE.to_string());
        server.cli(&["EVAL", fill, "0", &start, &count]).unwrap();
    }
    doomed.hset("a hash", "f", "v").await.unwrap();
    let stalls = Stalls::watch(&server, Duration::from_millis(10));

    assert_eq!(doomed.clear().await.unwrap(), MANY as u64 + 1);

    stalls.refuse();
    // And however long they took: they were many, each with a small part of the work.
    let steps = calls(&server, "scan");
    assert!(steps >= MANY as u64 / 2_000, "only {steps} steps");
    for raw in &kept {
        assert_eq!(all(raw.scan()).await.len(), 100, "{raw:?}");
        assert_eq!(raw.get("p:7").await.unwrap(), bytes("v"));
    }
    assert!(all(doomed.scan()).await.is_empty());
}

#[tokio::test]
async fn others_are_served_while_a_prefix_is_cleared() {
    let bed = Bed::redis();
    let (doomed, other) = (bed.raw("p").await, bed.raw("q").await);
    let keys = (0..20_000).map(|n| (n.to_string(), "v"));
    doomed.set_many(keys, Ttl::Forever).await.unwrap();
    let clearing = tokio::spawn(async move { doomed.clear().await });
    let mut served = 0;
    while !clearing.is_finished() {
        other.set("k", "v", Duration::from_secs(60)).await.unwrap();
        served += 1;
    }
    assert_eq!(clearing.await.unwrap().unwrap(), 20_000);
    assert!(served > 1, "{served} writes beside the clear");
}
