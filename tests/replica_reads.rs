//! Entities that are read from replicas: which replicas answer, and what is never believed of them.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[expect(dead_code, unused_macros, reason = "others need more of it")]
#[path = "support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{PATIENCE, eventually};
use tidings::store::Redis;
use tidings::testing::{Direction, Fault, Proxy, RedisCluster, RedisReplicas, RedisServer};
use tidings::{Cache, Entity};
use tokio::task::block_in_place;

const KEYS: u64 = 60;

type Versions = Entity<u64, u64, Infallible>;

/// A pod on the store at `url`.
struct Pod {
    cache: Cache,
    versions: Versions,
    source: Arc<AtomicU64>,
    loads: Arc<AtomicU64>,
}

impl Pod {
    /// One that keeps nothing: each read asks the store.
    async fn new(url: &str, source: &Arc<AtomicU64>) -> Self {
        Self::that_keeps(Duration::ZERO, url, source).await
    }

    async fn that_keeps(kept: Duration, url: &str, source: &Arc<AtomicU64>) -> Self {
        let store = Redis::new(url).unwrap().read_from_replicas();
        let cache = Cache::builder("near").store(store).build().await.unwrap();
        let (source, loads) = (Arc::clone(source), Arc::new(AtomicU64::new(0)));
        let (read, counted) = (Arc::clone(&source), Arc::clone(&loads));
        let load = move |_: u64| {
            counted.fetch_add(1, SeqCst);
            let version = read.load(SeqCst);
            async move { Ok(version) }
        };
        let versions = cache.entity("version", load).local_ttl(kept);
        Self {
            versions: versions.build().unwrap(),
            cache,
            source,
            loads,
        }
    }

    async fn read(&self, key: u64) -> u64 {
        *self.versions.get(&key).await.unwrap()
    }

    async fn warm(&self) {
        for key in 0..KEYS {
            self.read(key).await;
        }
        eventually("all is stored", async || {
            let before = self.loads.load(SeqCst);
            for key in 0..KEYS {
                self.read(key).await;
            }
            self.loads.load(SeqCst) == before
        })
        .await;
    }

    /// Waits until reads of `keys` are answered by one of `replicas`.
    async fn is_near(&self, replicas: &[&RedisServer], keys: &[u64]) {
        eventually("a replica answers", async || {
            let before = reads(replicas);
            self.versions.local().clear();
            for &key in keys {
                self.read(key).await;
            }
            reads(replicas) >= before + keys.len() as u64
        })
        .await;
    }

    async fn is_whole(&self) {
        eventually("every lane is live", async || {
            let health = self.cache.health();
            health.live_lanes == health.lanes
        })
        .await;
    }

    /// Commits `version` and has every key invalidated; gives when that was acknowledged.
    async fn write(&self, version: u64) -> Instant {
        self.source.store(version, SeqCst);
        let keys: Vec<u64> = (0..KEYS).collect();
        self.versions.invalidate_many(&keys).await.unwrap();
        Instant::now()
    }

    /// Reads over and over for a while beyond the bound: what was acknowledged then is read after it.
    async fn sees(&self, version: u64, acknowledged: Instant) {
        let bound = self.cache.health().bound;
        while acknowledged.elapsed() < bound * 2 {
            if acknowledged.elapsed() < bound.mul_f64(0.9) {
                // What is kept then is of the last moment in which replicas are believed.
                self.versions.local().clear();
            }
            for key in 0..KEYS {
                let late = acknowledged.elapsed() > bound;
                let found = self.read(key).await;
                assert!(!late || found == version, "{found} after the bound");
            }
        }
    }
}

/// How many commands read values at these servers.
fn reads(servers: &[&RedisServer]) -> u64 {
    let of = |server: &&RedisServer| {
        let began = Instant::now();
        let stats = loop {
            // One that becomes a replica of another closes its connections.
            match server.cli(&["INFO", "commandstats"]) {
                Ok(stats) => break stats,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
        };
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_mget:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    servers.iter().map(of).sum()
}

/// A primary, a replica of it, and what is between these two.
struct Two {
    primary: RedisServer,
    replica: RedisServer,
    between: Proxy,
}

impl Two {
    async fn start() -> Self {
        let server = || {
            let server = RedisServer::builder().arg("--repl-diskless-sync-delay", "0");
            server.arg("--repl-diskless-sync", "yes").start().unwrap()
        };
        let (primary, replica) = block_in_place(|| (server(), server()));
        let between = Proxy::start(primary.addr()).unwrap();
        let port = between.addr().port().to_string();
        replica.cli(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
        let two = Self {
            primary,
            replica,
            between,
        };
        eventually("they are in step", async || {
            let info = two.replica.cli(&["INFO", "replication"]).unwrap();
            info.contains("master_link_status:up")
        })
        .await;
        two
    }

    /// From here on the replica hears nothing, and its primary takes it for well.
    fn part(&self) {
        let direction = Direction::ToClient;
        self.between.set(Fault::Freeze { direction });
    }

    fn dbsize(server: &RedisServer) -> u64 {
        server.cli(&["DBSIZE"]).unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_answers_reads_of_entities() {
    let two = Two::start().await;
    let pod = Pod::new(&two.primary.url(), &Arc::default()).await;
    pod.warm().await;
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    let (loads, before) = (pod.loads.load(SeqCst), reads(&[&two.replica]));
    for key in (0..KEYS).cycle().take(500) {
        pod.read(key).await;
    }
    let keys: Vec<u64> = (0..KEYS).collect();
    for found in pod.versions.get_many(&keys).await {
        assert_eq!(*found.unwrap(), 0);
    }
    let there = reads(&[&two.replica]) - before;
    assert!(there > 400, "{there} of 501");
    assert_eq!(pod.loads.load(SeqCst), loads);
}

/// H25, scenario 36: the replica goes on answering, of the past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lags_behind_what_the_pod_follows_is_not_believed() {
    let two = Two::start().await;
    let source = Arc::default();
    let pod = Pod::new(&two.primary.url(), &source).await;
    let writer = Pod::new(&two.primary.url(), &source).await;
    pod.warm().await;
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    let there = Two::dbsize(&two.replica);
    two.part();
    let acknowledged = writer.write(1).await;
    pod.sees(1, acknowledged).await;
    assert_eq!(
        Two::dbsize(&two.replica),
        there,
        "it still has the old values"
    );
    let state = two.primary.cli(&["INFO", "replication"]).unwrap();
    assert!(state.contains("state=online"), "{state}");
    pod.is_whole().await;
    two.between.set(Fault::None);
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    assert_eq!(pod.read(1).await, 1);
}

/// The pod itself has invalidated the key, and may not have followed the lane that far yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_never_reads_from_a_replica_what_it_has_itself_invalidated() {
    let two = Two::start().await;
    let source = Arc::default();
    let pod = Pod::new(&two.primary.url(), &source).await;
    let other = Pod::new(&two.primary.url(), &source).await;
    pod.warm().await;
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    let noise = tokio::spawn(async move {
        loop {
            // Gaps in what the pod follows.
            for key in 100..200 {
                other.versions.invalidate(&key).await.unwrap();
            }
        }
    });
    for version in 1..300 {
        source.store(version, SeqCst);
        let key = version % KEYS;
        pod.versions.invalidate(&key).await.unwrap();
        assert_eq!(pod.read(key).await, version);
    }
    two.part();
    for version in 300..400 {
        source.store(version, SeqCst);
        let key = version % KEYS;
        pod.versions.invalidate(&key).await.unwrap();
        assert_eq!(pod.read(key).await, version);
    }
    noise.abort();
}

/// 1. The pod and the replica are both cut off from the primary, and not from one another. 2. The primary
///    acknowledges an invalidation. 3. The replica's head is not behind what the pod knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_believed_when_the_pod_follows_nothing_any_more() {
    cut_off_together(Duration::ZERO).await;
}

/// The same. What is kept of a replica's answers is as old as the lane's last confirmation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_answered_last_is_kept_no_longer_than_its_lane_was_confirmed() {
    cut_off_together(Duration::from_secs(60)).await;
}

async fn cut_off_together(kept: Duration) {
    let two = Two::start().await;
    let way = Proxy::start(two.primary.addr()).unwrap();
    let source = Arc::default();
    let pod = Pod::that_keeps(kept, &way.url(), &source).await;
    let writer = Pod::new(&two.primary.url(), &source).await;
    pod.warm().await;
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    two.part();
    way.set(Fault::Blackhole {
        direction: Direction::Both,
    });
    let acknowledged = writer.write(1).await;
    pod.sees(1, acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_replica_a_pod_reads_on() {
    let mut two = Two::start().await;
    let pod = Pod::new(&two.primary.url(), &Arc::default()).await;
    pod.warm().await;
    pod.is_near(&[&two.replica], &[1, 2, 3]).await;
    let loads = pod.loads.load(SeqCst);
    block_in_place(|| two.replica.kill());
    for key in (0..KEYS).cycle().take(200) {
        pod.read(key).await;
    }
    assert_eq!(pod.loads.load(SeqCst), loads, "the primary has all");
    let health = pod.cache.health();
    assert_eq!((health.links, health.live_lanes), (1, health.lanes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_sentinels_the_replica_is_found_and_the_one_after_a_failover_too() {
    let redis = block_in_place(|| RedisReplicas::start(2)).unwrap();
    let source = Arc::default();
    let pod = Pod::new(&redis.url(), &source).await;
    pod.warm().await;
    pod.is_near(&[redis.server(1), redis.server(2)], &[1, 2, 3])
        .await;
    block_in_place(|| redis.fail_over()).unwrap();
    let primary = block_in_place(|| redis.wait_for_promotion(0)).unwrap();
    let others: Vec<_> = (0..3).filter(|&at| at != primary).collect();
    let others: Vec<_> = others.into_iter().map(|at| redis.server(at)).collect();
    pod.is_near(&others, &[1, 2, 3]).await;
    source.store(1, SeqCst);
    pod.versions.invalidate(&1).await.unwrap();
    assert_eq!(pod.read(1).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster_each_node_has_its_replica() {
    let cluster = block_in_place(|| RedisCluster::start(3, true)).unwrap();
    let source = Arc::default();
    let pod = Pod::new(&cluster.url(), &source).await;
    pod.warm().await;
    let keys: Vec<u64> = (0..KEYS).collect();
    let replicas: Vec<_> = (3..6).map(|at| cluster.node(at)).collect();
    pod.is_near(&replicas, &keys).await;
    for replica in &replicas {
        assert!(reads(&[replica]) > 0);
    }
    for version in 1..100 {
        source.store(version, SeqCst);
        let key = version % KEYS;
        pod.versions.invalidate(&key).await.unwrap();
        assert_eq!(pod.read(key).await, version);
    }
}
