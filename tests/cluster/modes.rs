//! Each mode on a cluster, where its keys lie on several nodes.

use crate::cluster;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::error::StoreErrorKind;
use tidings::script::{Key, Script};
use tidings::store::{Publish, Redis};
use tidings::testing::{RedisCluster, RedisServer};
use tidings::{Cache, Origin, StoreState};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn cache(cluster: &RedisCluster, namespace: &str) -> Cache {
    let cache = Cache::builder(namespace).store_url(cluster.url());
    cache.build().await.unwrap()
}

/// How many of the nodes have keys of the namespace.
fn nodes_with_keys(cluster: &RedisCluster, namespace: &str) -> usize {
    let pattern = format!("{{{namespace}:*");
    let nodes = (0..cluster.primaries()).map(|at| cluster.node(at));
    let has_keys = |node: &RedisServer| !node.cli(&["KEYS", &pattern]).unwrap().is_empty();
    nodes.filter(|node| has_keys(node)).count()
}

pub(crate) async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What stands under the pace keys of the lanes that a node has: who publishes for them.
fn relays_of(node: &RedisServer, namespace: &str) -> BTreeSet<String> {
    let keys = node.cli(&["KEYS", &format!("{{{namespace}:*}}u")]).unwrap();
    let relay = |key| node.cli(&["GET", key]).unwrap();
    keys.lines()
        .filter(|key| !key.is_empty())
        .map(relay)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_has_one_relay_that_publishes_for_all_its_lanes() {
    let cluster = cluster();
    let every = Duration::from_millis(20);
    let mut pods = Vec::new();
    for _ in 0..3 {
        let store = Redis::new(&cluster.url()).unwrap();
        let store = store.publish(Publish::Relay { every });
        let cache = Cache::builder("relays").store(store).build().await.unwrap();
        let load = |key: u64| async move { Ok::<_, Infallible>(key) };
        pods.push(cache.entity("number", load).build().unwrap());
    }
    let nodes: Vec<_> = (0..3).map(|at| cluster.node(at)).collect();
    eventually("each node has one relay", async || {
        let relays = nodes.iter().map(|node| relays_of(node, "relays"));
        relays
            .into_iter()
            .all(|of_node| of_node.len() == 1 && of_node.iter().all(|relay| relay.starts_with('R')))
    })
    .await;
    let keys: Vec<u64> = (0..200).collect();
    for writer in 0..3 {
        for pod in &pods {
            for got in pod.get_many(&keys).await {
                got.unwrap();
            }
        }
        let before: Vec<_> = pods.iter().map(|pod| pod.cache().health().hints).collect();
        pods[writer].invalidate_many(&keys).await.unwrap();
        for (pod, before) in pods.iter().zip(before) {
            eventually("they all hear", async || {
                keys.iter().all(|key| pod.peek(key).is_none())
                    && pod.cache().health().hints > before
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_share_values_and_invalidations_over_all_nodes() {
    let cluster = cluster();
    let version = Arc::new(AtomicU64::new(0));
    let mut pods = Vec::new();
    for _ in 0..2 {
        let cache = cache(&cluster, "entities").await;
        let version = Arc::clone(&version);
        let load = move |key: u64| {
            let version = Arc::clone(&version);
            async move { Ok::<_, Infallible>((key, version.load(Ordering::SeqCst))) }
        };
        pods.push(cache.entity("version", load).build().unwrap());
    }
    let keys: Vec<u64> = (0..100).collect();
    for pod in &pods {
        for (key, found) in keys.iter().zip(pod.get_many(&keys).await) {
            assert_eq!(*found.unwrap(), (*key, 0));
        }
    }
    assert_eq!(nodes_with_keys(&cluster, "entities"), 3);
    assert_eq!(
        pods[1].cache().health().live_lanes,
        pods[1].cache().health().lanes
    );
    version.store(1, Ordering::SeqCst);
    pods[0].invalidate_many(&keys).await.unwrap();
    assert_eq!(*pods[0].get(&7).await.unwrap(), (7, 1));
    let hints = pods[1].cache().health().hints;
    eventually("the other pod heard", async || {
        let mut new = true;
        for found in pods[1].get_many(&keys).await {
            new &= found.unwrap().1 == 1;
        }
        new
    })
    .await;
    assert!(pods[1].cache().health().hints >= hints);
    let served = pods[1].get_with(&7).await.unwrap();
    assert_eq!((served.value.1, served.origin), (1, Origin::Local));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_data_of_all_nodes_is_found_and_cleared() {
    let cluster = cluster();
    let cache = cache(&cluster, "raws").await;
    let raw = cache.raw("sessions").unwrap();
    let names: BTreeSet<String> = (0..300).map(|n| format!("s{n}")).collect();
    for name in &names {
        raw.set(name.as_str(), "x", Duration::from_secs(300))
            .await
            .unwrap();
    }
    assert_eq!(nodes_with_keys(&cluster, "raws"), 3);
    assert_eq!(raw.clear().await.unwrap(), 300);
    assert_eq!(raw.clear().await.unwrap(), 0);
}

#[tokio::test]
async fn a_cluster_address_wants_nodes_of_a_cluster_and_a_plain_one_does_not() {
    let cluster = cluster();
    let build = async |url: String| Cache::builder("kinds").store_url(url).build().await;
    let kind = async |url: String| {
        let error = build(url).await.expect_err("of another kind");
        error.store_error().map(|error| error.kind())
    };
    let node = cluster.node(0).url();
    assert_eq!(kind(node).await, Some(StoreErrorKind::Unsupported));
    let server = RedisServer::start().unwrap();
    let url = server.url().replace("redis://", "redis+cluster://");
    assert_eq!(kind(url).await, Some(StoreErrorKind::Unsupported));
    let cache = build(cluster.url()).await.unwrap();
    assert!(matches!(cache.health().store, StoreState::Up));
}

pub(crate) static INCR_BY: Script<(Key, i64), i64> =
    Script::new("incr_by", "return redis.call('INCRBY', KEYS[1], ARGV[1])");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_scripts_go_to_the_node_of_their_first_key() {
    let cluster = cluster();
    let cache = cache(&cluster, "scripts").await;
    let redis = cache.redis().unwrap();
    for number in 0..50 {
        let key = format!("counter:{number}");
        redis.send::<()>("SET", (key.as_str(), 1)).await.unwrap();
        let sum = redis.script(&INCR_BY).run((key.as_str(), number)).await;
        assert_eq!(sum.unwrap(), number + 1);
    }
    assert_eq!(redis.send::<String>("PING", ()).await.unwrap(), "PONG");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_a_room_is_seen_from_every_pod() {
    let cluster = cluster();
    let mut pods = Vec::new();
    for _ in 0..2 {
        pods.push(cache(&cluster, "presence").await);
    }
    let rooms: Vec<String> = (0..12).map(|n| format!("room{n}")).collect();
    let mut leases = Vec::new();
    for room in &rooms {
        let there = pods[0].presence::<u64>(room).build().unwrap();
        leases.push(there.join("ada", &7).await.unwrap());
    }
    assert_eq!(nodes_with_keys(&cluster, "presence"), 3);
    for room in &rooms {
        let here = pods[1].presence::<u64>(room).build().unwrap();
        assert_eq!(here.count().await.unwrap(), 1, "{room}");
        assert!(here.get("ada").await.unwrap().is_some(), "{room}");
    }
}

/// A primary that its cluster may have replaced answers reads for a while. It takes no writes, so nothing
/// shows that what it has is what was invalidated last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_has_that_takes_no_writes_is_not_believed() {
    let cluster = RedisCluster::start(3, false).unwrap();
    let source = Arc::new(AtomicU64::new(1));
    let cache = cache(&cluster, "proven").await;
    let load = {
        let source = Arc::clone(&source);
        move |_: u64| {
            let source = Arc::clone(&source);
            async move { Ok::<_, Infallible>(source.load(Ordering::SeqCst)) }
        }
    };
    let versions = cache.entity("version", load).build().unwrap();
    let keys: Vec<u64> = (0..48).collect();
    let read = async || {
        let found = versions.get_many(&keys).await;
        found
            .into_iter()
            .filter(|found| **found.as_ref().unwrap() == 2)
            .count()
    };
    assert_eq!(read().await, 0);
    let stored = |at: usize| {
        let node = cluster.node(at);
        let length = |key: &&str| node.cli(&["STRLEN", key]).unwrap().parse::<usize>();
        let keys = node.cli(&["KEYS", "{proven:*}v:*"]).unwrap();
        let keys = keys.lines().filter(|key| !key.is_empty());
        // Leases have 28 bytes, envelopes more.
        keys.filter(|key| length(key).unwrap() > 28).count()
    };
    eventually("all are stored", async || {
        (0..3).map(stored).sum::<usize>() == keys.len()
    })
    .await;
    let there = stored(0);

    cluster
        .node(0)
        .cli(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .unwrap();
    source.store(2, Ordering::SeqCst);
    eventually("its keys come from the source", async || {
        read().await >= there
    })
    .await;
    assert_eq!(stored(0), there, "though it has them");

    cluster
        .node(0)
        .cli(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .unwrap();
    eventually("all lanes are live", async || {
        let health = cache.health();
        health.live_lanes == health.lanes
    })
    .await;
    source.store(3, Ordering::SeqCst);
    let found = versions.get_many(&keys).await;
    assert!(
        found.iter().all(|found| **found.as_ref().unwrap() < 3),
        "nothing is loaded now"
    );
}
