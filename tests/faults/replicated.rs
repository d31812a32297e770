//! Invalidations that count only once replicas have them.

use crate::failover::{Versions, pod, until, until_well, values};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidings::coherence::Mechanisms;
use tidings::store::{Acknowledge, Redis};
use tidings::testing::{RedisCluster, RedisReplicas, RedisServer};
use tidings::{Cache, InvalidateError, Pending, StoreErrorKind, StoreState, Ttl};
use tokio::runtime::Runtime;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

fn replicated(url: &str, limit: Duration) -> Redis {
    let store = Redis::new(url).unwrap();
    let store = store.acknowledge(Acknowledge::Replicated(1));
    store.replication_timeout(limit)
}

async fn alone(store: Redis) -> (Cache, Versions) {
    pod(store, Mechanisms::default(), Arc::default()).await
}

fn number(server: &RedisServer, section: &str, name: &str) -> u64 {
    let info = server.cli(&["INFO", section]).unwrap();
    let found = info.lines().find_map(|line| line.strip_prefix(name));
    let digits = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
    };
    found.map_or(0, |text| digits(text).unwrap())
}

/// What is acknowledged by replicas is not acknowledged, and says why.
fn pending<T>(outcome: Result<T, InvalidateError>) -> Option<Pending> {
    match outcome {
        Ok(_) => None,
        Err(InvalidateError::Pending(pending)) => {
            assert_eq!(pending.reason().kind(), StoreErrorKind::Unreplicated);
            Some(pending)
        }
        Err(other) => panic!("{other:?}"),
    }
}

async fn settles(pending: &Pending) {
    timeout(PATIENCE, pending.settled())
        .await
        .expect("in time")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_has_is_pending_until_one_has_it() {
    let redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    let (cache, versions) = alone(replicated(&redis.url(), Duration::from_millis(300))).await;
    versions.invalidate(&1).await.unwrap();
    versions.clear().await.unwrap();

    block_in_place(|| redis.hold_replicas(0)).unwrap();
    let one = pending(versions.invalidate(&1).await).expect("no replica");
    let all = pending(versions.clear().await).expect("no replica");
    let health = cache.health();
    assert!(matches!(health.store, StoreState::Up), "{health:?}");
    assert!(health.pending > 0);

    redis.resume_replicas().unwrap();
    settles(&one).await;
    settles(&all).await;
    until("nothing is pending", || cache.health().pending == 0).await;
    assert_eq!(
        cache.health().links,
        1,
        "and no connection was given up for it"
    );
}

/// Everything of everything: a fence, whose replication is that of an entry behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_void_on_no_replica_is_pending_until_it_is_on_one() {
    let redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    let store = replicated(&redis.url(), Duration::from_millis(300));
    let builder = Cache::builder("void").store(store);
    let builder = builder.invalidate_timeout(Duration::from_secs(5));
    let cache = builder.build().await.unwrap();
    cache.clear().await.unwrap();
    block_in_place(|| redis.hold_replicas(0)).unwrap();
    let Err(InvalidateError::Pending(all)) = cache.clear().await else {
        panic!("acknowledged without a replica");
    };
    redis.resume_replicas().unwrap();
    settles(&all).await;
}

/// `WAIT` holds up the connection that it is sent on: nothing else may be on that one. And it covers all
/// that was sent before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_waits_for_replicas_and_calls_wait_together() {
    let redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    let (cache, versions) = alone(replicated(&redis.url(), 2 * PATIENCE)).await;
    let server = redis.server(0);
    let waits = || number(server, "commandstats", "cmdstat_wait:calls=");
    let before = waits();
    block_in_place(|| redis.hold_replicas(0)).unwrap();
    let mut calls = JoinSet::new();
    let call = |key: u64| {
        let versions = versions.clone();
        async move { versions.invalidate(&key).await.map(drop) }
    };
    calls.spawn(call(0));
    until("a call waits", || {
        number(server, "clients", "blocked_clients:") == 1
    })
    .await;
    for key in 1..64 {
        calls.spawn(call(key));
    }
    until("all are under way", || cache.health().pending == 64).await;

    let raw = cache.raw("meanwhile").unwrap();
    raw.set("k", "v", Ttl::Forever).await.unwrap();
    assert_eq!(number(server, "clients", "blocked_clients:"), 1);
    assert_eq!(cache.health().pending, 64);

    redis.resume_replicas().unwrap();
    while let Some(done) = calls.join_next().await {
        done.unwrap().unwrap();
    }
    let waited = waits() - before;
    assert!((2..=16).contains(&waited), "{waited} times for 64 calls");
}

/// 1. Values are stored, and the replica has them.
/// 2. They are invalidated one by one. In the middle of it the replica is cut off.
/// 3. Every pod and the primary end at once. The replica is promoted.
///
/// What was acknowledged is not there again; something that was not is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_confirmed_outlives_the_primary_and_every_pod() {
    const KEYS: u64 = 40;
    let mut redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    // Not one for both: a runtime takes its connections along when it ends.
    let store = |redis: &RedisReplicas| replicated(&redis.url(), PATIENCE);
    let source = Arc::new(AtomicU64::new(1));
    let its_own = Runtime::new().unwrap();
    let origin = pod(store(&redis), Mechanisms::default(), Arc::clone(&source));
    let (origin, versions) = its_own.spawn(origin).await.unwrap();
    for key in 0..KEYS {
        assert_eq!(*versions.get(&key).await.unwrap(), 1);
    }
    let stored = |redis: &RedisReplicas, key: u64| {
        values(redis.server(1), &format!("{{twofold:*}}v:version:{key}")) == 1
    };
    until("the replica has all values", || {
        (0..KEYS).all(|key| stored(&redis, key))
    })
    .await;

    source.store(2, Ordering::SeqCst);
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&acknowledged);
    its_own.spawn(async move {
        for key in 0..KEYS {
            if versions.invalidate(&key).await.is_ok() {
                list.lock().unwrap().push(key);
            }
        }
    });
    until("some are acknowledged", || {
        acknowledged.lock().unwrap().len() > 3
    })
    .await;
    block_in_place(|| redis.hold_replicas(0)).unwrap();
    let blocked = |redis: &RedisReplicas| number(redis.server(0), "clients", "blocked_clients:");
    until("one is not", || blocked(&redis) == 1).await;
    its_own.shutdown_background();
    drop(origin);
    redis.kill(0);
    redis.resume_replicas().unwrap();
    block_in_place(|| redis.wait_for_promotion(0)).unwrap();

    let acknowledged = acknowledged.lock().unwrap().clone();
    let there: Vec<_> = (0..KEYS).filter(|&key| stored(&redis, key)).collect();
    assert!(
        acknowledged.iter().all(|key| !there.contains(key)),
        "{there:?}"
    );
    assert!(!there.is_empty(), "all were acknowledged: {acknowledged:?}");
    let (late, versions) = pod(store(&redis), Mechanisms::default(), source).await;
    until_well(&late).await;
    for key in &acknowledged {
        assert_eq!(*versions.get(key).await.unwrap(), 2, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_of_a_cluster_waits_for_replicas_of_its_own() {
    let cluster = block_in_place(|| RedisCluster::start(3, true)).unwrap();
    let (_cache, versions) = alone(replicated(&cluster.url(), Duration::from_millis(300))).await;
    let all = async || {
        let mut calls = JoinSet::new();
        for key in 0..48 {
            let versions = versions.clone();
            calls.spawn(async move { pending(versions.invalidate(&key).await) });
        }
        calls.join_all().await
    };
    assert!(
        all().await.iter().all(Option::is_none),
        "all have a replica"
    );
    let (primary, replica) = (cluster.node(0), cluster.node(3));
    replica.pause().unwrap();
    primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap();
    let outcomes = all().await;
    let (pending, done): (Vec<_>, Vec<_>) = outcomes.iter().partition(|one| one.is_some());
    assert!(
        !pending.is_empty() && pending.len() < done.len(),
        "{} of 48",
        pending.len()
    );
    replica.resume().unwrap();
    for one in pending.into_iter().flatten() {
        settles(one).await;
    }
}

/// The other connections would go on without it, and polls with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_for_replicated_calls_that_breaks_is_replaced() {
    let redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    let (cache, versions) = alone(replicated(&redis.url(), PATIENCE)).await;
    versions.invalidate(&1).await.unwrap();
    let clients = redis
        .server(0)
        .cli(&["CLIENT", "LIST", "TYPE", "normal"])
        .unwrap();
    let its_own = clients.lines().find(|line| line.contains("cmd=wait"));
    let id = its_own.unwrap().split(' ').next().unwrap();
    let id = id.strip_prefix("id=").unwrap();
    redis.server(0).cli(&["CLIENT", "KILL", "ID", id]).unwrap();
    versions
        .invalidate(&2)
        .await
        .map(drop)
        .or_else(|error| match error {
            InvalidateError::Pending(_) => Ok(()),
            closed => Err(closed),
        })
        .unwrap();
    until("there is another link", || cache.health().links > 1).await;
    until("nothing is pending", || cache.health().pending == 0).await;
    versions.invalidate(&3).await.unwrap();
}
