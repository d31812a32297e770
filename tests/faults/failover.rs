//! Sentinels promote a replica: with everything that was acknowledged, without the last of it, and while
//! the old primary goes on.

use crate::fleet::{Fleet, Plan, Site};
use crate::history::Violation;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::coherence::{Head, Mechanism, Mechanisms};
use tidings::store::{Namespace, Redis, Store};
use tidings::testing::{Proxy, RedisReplicas, RedisServer};
use tidings::{Cache, Entity, StoreState};
use tokio::runtime::Runtime;
use tokio::task::block_in_place;

/// For how long two primaries may both be used in a failover that the old one survives: until a sentinel
/// has seen the promotion, and is asked; each happens within a second.
const OVERLAP: Duration = Duration::from_secs(4);

impl Site for RedisReplicas {
    fn way(&self) -> (String, Option<Proxy>) {
        (self.url(), None)
    }
}

impl Fleet<RedisReplicas> {
    async fn with_one_replica() -> Self {
        let redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
        Self::on(redis, Plan::default()).await
    }

    /// The heads of the namespace on one server.
    async fn heads(&self, server: usize) -> Vec<Option<Head>> {
        let store = Redis::new(&self.server.server(server).url()).unwrap();
        let namespace = Namespace {
            name: "faults".to_owned(),
            lanes: self.pods[0].health().lanes as u16,
        };
        let (link, _hints) = store.connect(&namespace).await.unwrap();
        link.poll().await.unwrap().heads
    }

    /// Waits until the sentinels have put another server in the place of `before`, and every pod is fully
    /// at work there.
    async fn moves_on_from(&self, before: usize) -> usize {
        let now = block_in_place(|| self.server.wait_for_promotion(before)).unwrap();
        self.each_pod("took to the new primary", |pod| pod.health().links > 1)
            .await;
        self.each_pod("was fully at work again", |pod| pod.ailment().is_none())
            .await;
        now
    }

    /// Panics if a pod has dropped what it held: the new primary continues where the old one ended.
    fn kept_their_memory(&self) {
        for pod in &self.pods {
            let health = pod.health();
            assert_eq!(health.flushes, health.lanes as u64, "{health:?}");
        }
    }
}

fn end(head: &Option<Head>) -> u64 {
    head.as_ref().map_or(0, |head| head.at.seq)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_killed_and_a_replica_goes_on() {
    let mut fleet = Fleet::with_one_replica().await;
    fleet.work(700).await;
    fleet.server.kill(0);
    let now = fleet.moves_on_from(0).await;
    assert_eq!(now, 1);
    fleet.kept_their_memory();
    fleet.work(500).await;
    fleet.finish().await;
}

/// What no replica had is logged again by the pods that had it acknowledged, before any pod believes what
/// the new primary has (holes H15, H16).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_that_no_replica_had_are_logged_again() {
    let mut fleet = Fleet::with_one_replica().await;
    fleet.work(700).await;
    block_in_place(|| fleet.server.hold_replicas(0)).unwrap();
    fleet.work(600).await;
    let acknowledged: u64 = fleet.heads(0).await.iter().map(end).sum();
    fleet.server.kill(0);
    fleet.server.resume_replicas().unwrap();
    let now = fleet.moves_on_from(0).await;
    let heads = fleet.heads(now).await;
    let kept: u64 = heads.iter().flatten().map(|head| head.fork_seq).sum();
    assert!(heads.iter().flatten().all(|head| head.fork), "{heads:?}");
    assert!(
        kept < acknowledged,
        "nothing was lost: {kept} of {acknowledged}"
    );
    println!("{} entries were lost", acknowledged - kept);
    fleet.kept_their_memory();
    fleet.work(500).await;
    fleet.finish().await;
}

/// Six pods, no two with the same options. What those that wait for replicas do meanwhile is pending until
/// one has it; what the others were told is logged again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_differ_in_their_options_lose_nothing_that_no_replica_had() {
    let redis = block_in_place(|| RedisReplicas::start(2)).unwrap();
    let plan = Plan {
        pods: 6,
        mixed: Some(0),
        ..Plan::default()
    };
    let mut fleet = Fleet::on(redis, plan).await;
    fleet.work(700).await;
    block_in_place(|| fleet.server.hold_replicas(0)).unwrap();
    fleet.work(600).await;
    let acknowledged: u64 = fleet.heads(0).await.iter().map(end).sum();
    fleet.server.kill(0);
    fleet.server.resume_replicas().unwrap();
    let now = block_in_place(|| fleet.server.wait_for_promotion(0)).unwrap();
    // Sentinels that have not heard of each other's decision may still turn it back to the old primary, and
    // mend that some ten seconds later. Meanwhile nobody confirms anything.
    until("the other replica follows", || {
        let info = fleet.server.server(now).cli(&["INFO", "replication"]);
        info.is_ok_and(|info| info.contains("state=online"))
    })
    .await;
    fleet.moves_on_from(0).await;
    let heads = fleet.heads(now).await;
    let kept: u64 = heads.iter().flatten().map(|head| head.fork_seq).sum();
    assert!(
        kept < acknowledged,
        "nothing was lost: {kept} of {acknowledged}"
    );
    fleet.work(500).await;
    fleet.finish().await;
}

/// The old primary is well, answers, and takes writes. Pods leave it because the sentinels say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_leave_a_primary_that_was_replaced_and_lives() {
    let fleet = Fleet::with_one_replica().await;
    fleet.work(500).await;
    fleet.server.fail_over().unwrap();
    let now = fleet.moves_on_from(0).await;
    assert_eq!(now, 1);
    fleet.work(500).await;
    for pod in &fleet.pods {
        assert!(matches!(pod.health().store, StoreState::Up));
    }
    // Until the sentinels are asked again, what either primary acknowledges is heard beside it alone: no
    // read can claim to know better, and a pod that goes from one to the other may go back.
    let bound = fleet.bound() + OVERLAP;
    let history = fleet.history().await;
    let found = history.violations(bound).into_iter();
    let beside =
        |found: &Violation| matches!(found, Violation::Claim { .. } | Violation::Backwards { .. });
    let found = found.filter(|found| !beside(found));
    let found: Vec<_> = found.map(|found| found.to_string()).collect();
    assert!(found.is_empty(), "{found:?} in {}", history.summary());
}

pub(crate) type Versions = Entity<u64, u64, Infallible>;

/// A pod that loads the same number for every key, from a source that holds it.
pub(crate) async fn pod(
    store: Redis,
    mechanisms: Mechanisms,
    source: Arc<AtomicU64>,
) -> (Cache, Versions) {
    let cache = Cache::builder("twofold")
        .store(store)
        .read_timeout(Duration::from_secs(5))
        .invalidate_timeout(Duration::from_secs(60))
        .mechanisms(mechanisms);
    let cache = cache.build().await.unwrap();
    let load = move |_: u64| {
        let source = Arc::clone(&source);
        async move { Ok(source.load(Ordering::SeqCst)) }
    };
    let entity = cache.entity("version", load).build().unwrap();
    (cache, entity)
}

/// How many values there are, leases left out: those are shorter than any envelope.
pub(crate) fn values(server: &RedisServer, pattern: &str) -> usize {
    const LEASE: usize = 28;
    let keys = server.cli(&["KEYS", pattern]).unwrap();
    let length = |key: &&str| {
        server
            .cli(&["STRLEN", key])
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    let keys = keys.lines().filter(|key| !key.is_empty());
    keys.filter(|key| length(key) > LEASE).count()
}

pub(crate) async fn until(what: &str, seen: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !block_in_place(&seen) {
        assert!(Instant::now() < deadline, "never so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn until_well(cache: &Cache) {
    until("the pod is fully at work", || {
        let health = cache.health();
        matches!(health.store, StoreState::Up) && health.live_lanes == health.lanes
    })
    .await;
}

/// 1. A pod changes 1 to 2 and has its invalidation acknowledged by a primary whose replica is cut off.
/// 2. Another pod hears of it.
/// 3. The pod and the primary end. The replica is promoted, and has 1.
///
/// What a pod reads that starts then.
async fn read_after_a_double_fault(mechanisms: Mechanisms) -> u64 {
    let mut redis = block_in_place(|| RedisReplicas::start(1)).unwrap();
    let source = Arc::new(AtomicU64::new(1));
    // Not one for all: a runtime takes its connections along when it ends.
    let store = |redis: &RedisReplicas| Redis::new(&redis.url()).unwrap();
    let values = |redis: &RedisReplicas| values(redis.server(1), "{twofold:*}v:*");

    let (hearer, versions) = pod(store(&redis), mechanisms, Arc::clone(&source)).await;
    let its_own = Runtime::new().unwrap();
    let origin = pod(store(&redis), mechanisms, Arc::clone(&source));
    let (origin, ending) = its_own.spawn(origin).await.unwrap();
    assert_eq!(*versions.get(&7).await.unwrap(), 1);
    until("the replica has the value", || values(&redis) == 1).await;

    block_in_place(|| redis.hold_replicas(0)).unwrap();
    source.store(2, Ordering::SeqCst);
    let heard = hearer.health().hints;
    let changed = its_own.spawn(async move { ending.invalidate(&7).await.map(drop) });
    changed.await.unwrap().unwrap();
    until("the other pod heard of it", || {
        hearer.health().hints > heard
    })
    .await;

    its_own.shutdown_background();
    drop(origin);
    redis.kill(0);
    redis.resume_replicas().unwrap();
    block_in_place(|| redis.wait_for_promotion(0)).unwrap();
    assert_eq!(values(&redis), 1, "the old value is there again");

    until("the other pod follows", || hearer.health().links > 1).await;
    until_well(&hearer).await;
    let (late, versions) = pod(store(&redis), mechanisms, source).await;
    until_well(&late).await;
    *versions.get(&7).await.unwrap()
}

/// Scenario 21.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_heard_of_outlives_its_origin_and_its_primary() {
    assert_eq!(read_after_a_double_fault(Mechanisms::default()).await, 2);
}

/// Nobody who heard of it minds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_hearsay_an_old_value_outlives_its_primary() {
    let off = Mechanisms::default().without(Mechanism::Hearsay);
    assert_eq!(read_after_a_double_fault(off).await, 1);
}
