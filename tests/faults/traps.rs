//! What bit others who build on the same Redis client: a subscription that comes back deaf, answers that
//! are crossed, calls that hang, messages that are lost in silence. None of it may bite here.
//!
//! `TIDINGS_TRAP_OUTAGE_SECONDS` and `TIDINGS_TRAP_INVALIDATIONS` make it longer.

use crate::fleet::PATIENCE;
use futures_util::stream::{self, StreamExt};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::testing::{Proxy, RedisCluster, RedisServer};
use tidings::{Cache, Entity, InvalidateError, Pending, Stamp, StoreState};
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};

const NAMESPACE: &str = "traps";
/// How many calls are under way at a time.
const ABREAST: usize = 64;
/// How many times connections are killed.
const KILLS: u64 = 6;

fn number(variable: &str, otherwise: u64) -> u64 {
    let set = std::env::var(variable).ok();
    set.map_or(otherwise, |set| set.parse().unwrap())
}

/// A version that every key has.
type Source = Arc<AtomicU64>;

struct Pod {
    cache: Cache,
    numbers: Entity<u64, u64, Infallible>,
}

impl Pod {
    async fn start(url: String, source: &Source) -> Self {
        let cache = Cache::builder(NAMESPACE).store_url(url);
        let cache = cache.build().await.unwrap();
        let source = Arc::clone(source);
        let load = move |_: u64| {
            let version = source.load(Ordering::SeqCst);
            async move { Ok::<_, Infallible>(version) }
        };
        let numbers = cache.entity("number", load).capacity(200_000);
        let numbers = numbers.build().unwrap();
        Self { cache, numbers }
    }

    fn is_whole(&self) -> bool {
        let health = self.cache.health();
        matches!(health.store, StoreState::Up) && health.live_lanes == health.lanes
    }

    fn hints(&self) -> u64 {
        self.cache.health().hints
    }

    async fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let health = self.cache.health();
            assert!(Instant::now() < deadline, "never {what}: {health:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Invalidates a key; however long it takes, it is acknowledged.
    async fn invalidate(&self, key: u64) -> Stamp {
        match self.numbers.invalidate(&key).await {
            Err(InvalidateError::Pending(pending)) => settled(&pending).await,
            outcome => outcome.unwrap(),
        }
    }

    /// Invalidates a key, and waits until `other` has heard of it from its subscription.
    async fn is_heard_by(&self, other: &Self, key: u64) -> Stamp {
        let before = other.hints();
        let stamp = self.invalidate(key).await;
        other.eventually("heard", |pod| pod.hints() > before).await;
        stamp
    }
}

async fn settled(pending: &Pending) -> Stamp {
    let settled = timeout(PATIENCE, pending.settled()).await;
    settled.expect("acknowledged").unwrap()
}

/// Trap 1: after an outage a manager that resubscribes by itself stays deaf, if nobody uses it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_idle_through_an_outage_hears_again() {
    let mut server = RedisServer::start().unwrap();
    let source = Source::default();
    let idle = Pod::start(server.url(), &source).await;
    let writer = Pod::start(server.url(), &source).await;
    writer.is_heard_by(&idle, 1).await;
    server.kill();
    let seconds = number("TIDINGS_TRAP_OUTAGE_SECONDS", 3);
    sleep(Duration::from_secs(seconds)).await;
    block_in_place(|| server.restart()).unwrap();
    for pod in [&idle, &writer] {
        pod.eventually("whole again", Pod::is_whole).await;
    }
    for key in 0..50 {
        writer.is_heard_by(&idle, key).await;
    }
}

/// Trap 1: with many channels on a connection that is mended unseen, replies go to the wrong calls.
/// `kill` cuts every connection of the pod, `many` rooms are watched over it.
async fn no_reply_is_crossed(url: String, kill: impl Fn()) {
    const ROOMS: u64 = 300;
    const KEYS: u64 = 400;
    let cache = Cache::builder(NAMESPACE).store_url(url);
    let cache = cache.build().await.unwrap();
    let mut watches = Vec::new();
    for room in 0..ROOMS {
        let room = cache.presence::<u64>(format!("room:{room}"));
        watches.push(room.build().unwrap().watch());
    }
    let raw = cache.raw("own").unwrap();
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
    for key in &keys {
        let ttl = Duration::from_secs(600);
        raw.set(key, key, ttl).await.unwrap();
    }
    let (mut own, mut failed) = (0, 0);
    for round in 0..=KILLS {
        let reads = keys.iter().cycle().take(4 * keys.len());
        let reads = stream::iter(reads.enumerate()).map(async |(at, key)| {
            if round < KILLS && at == keys.len() {
                kill();
            }
            (key, raw.get(key).await)
        });
        let mut reads = std::pin::pin!(reads.buffer_unordered(ABREAST));
        while let Some((key, read)) = reads.next().await {
            match read {
                Ok(Some(value)) => {
                    assert_eq!(value, key.as_bytes(), "another key's value");
                    own += 1;
                }
                Ok(None) => panic!("{key} is there"),
                Err(_) => failed += 1,
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while !matches!(cache.health().store, StoreState::Up) {
            assert!(Instant::now() < deadline, "{:?}", cache.health());
            sleep(Duration::from_millis(2)).await;
        }
    }
    println!("{own} reads gave their own key's value, {failed} failed");
    assert!(own >= 4 * KEYS && cache.health().links > KILLS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reply_is_crossed_when_connections_with_many_channels_are_killed() {
    let server = RedisServer::start().unwrap();
    no_reply_is_crossed(server.url(), || kill_clients(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reply_is_crossed_when_connections_to_a_cluster_are_killed() {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).unwrap();
    let nodes = 0..cluster.primaries();
    let kill = || nodes.clone().for_each(|at| kill_clients(cluster.node(at)));
    no_reply_is_crossed(cluster.url(), kill).await;
}

fn kill_clients(server: &RedisServer) {
    for kind in ["normal", "pubsub"] {
        server.cli(&["CLIENT", "KILL", "TYPE", kind]).unwrap();
    }
}

/// Trap 2: a subscription has no timeouts, and hangs for as long as the server does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_a_server_that_is_frozen_is_given_up_and_replaced() {
    let server = RedisServer::start().unwrap();
    let source = Source::default();
    let idle = Pod::start(server.url(), &source).await;
    let writer = Pod::start(server.url(), &source).await;
    writer.is_heard_by(&idle, 1).await;
    assert_eq!(*idle.numbers.get(&1).await.unwrap(), 0);
    server.pause().unwrap();
    // Nobody asks the idle one anything.
    let is_down = |pod: &Pod| matches!(pod.cache.health().store, StoreState::Down { .. });
    idle.eventually("down", is_down).await;
    source.store(1, Ordering::SeqCst);
    let call = timeout(PATIENCE, writer.numbers.invalidate(&1)).await;
    let Err(InvalidateError::Pending(pending)) = call.expect("it does not hang") else {
        panic!("nobody could acknowledge it");
    };
    let read = timeout(PATIENCE, writer.numbers.get(&1)).await;
    assert_eq!(*read.expect("it does not hang").unwrap(), 1);
    server.resume().unwrap();
    settled(&pending).await;
    for pod in [&idle, &writer] {
        pod.eventually("whole again", Pod::is_whole).await;
        assert!(pod.cache.health().links > 1, "another connection");
    }
    for key in 0..50 {
        writer.is_heard_by(&idle, key).await;
    }
}

/// Trap 3: what is published while a connection is replaced is lost, and nobody says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_that_a_killed_subscription_lost_are_applied_all_the_same() {
    let count = number("TIDINGS_TRAP_INVALIDATIONS", 3000);
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let source = Source::default();
    let reader = Pod::start(proxy.url(), &source).await;
    let writer = Pod::start(server.url(), &source).await;
    let keys: Vec<u64> = (0..count).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let missing = |key: &&u64| reader.numbers.peek(key).is_none();
        let missing: Vec<_> = keys.iter().filter(missing).take(500).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "not all are kept in memory");
        for value in reader.numbers.get_many(missing).await {
            assert_eq!(*value.unwrap(), 0);
        }
    }
    source.store(1, Ordering::SeqCst);
    for (cuts, part) in (0..).zip(keys.chunks(keys.len().div_ceil(KILLS as usize))) {
        let is_again = |pod: &Pod| pod.cache.health().links > cuts && pod.is_whole();
        reader.eventually("connected again", is_again).await;
        let calls = stream::iter(part.iter().enumerate()).map(async |(at, key)| {
            if at == part.len() / 2 {
                proxy.cut_all();
            }
            writer.invalidate(*key).await
        });
        calls.buffer_unordered(ABREAST).count().await;
    }
    sleep(reader.cache.health().bound).await;
    let is_again = |pod: &Pod| pod.cache.health().links > KILLS && pod.is_whole();
    reader.eventually("connected again", is_again).await;
    let old = keys.iter().filter(|key| {
        let value = reader.numbers.peek(key);
        value.is_some_and(|value| *value == 0)
    });
    assert_eq!(old.count(), 0, "old values are still in memory");
    let health = reader.cache.health();
    println!(
        "{} of {count} were heard over {} links, the others read from the log; {} flushes",
        health.hints, health.links, health.flushes
    );
    assert!(health.hints < count, "nothing was lost: {health:?}");
    assert_eq!(health.flushes, health.lanes as u64, "nothing was dropped");
}

/// Trap 4: one command that subscribes to the channels of several slots again is refused as a whole, in
/// silence, and for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lane_of_a_cluster_is_subscribed_to_again_after_a_reconnect() {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).unwrap();
    let nodes: Vec<_> = (0..cluster.primaries())
        .map(|at| cluster.node(at))
        .collect();
    let source = Source::default();
    let reader = Pod::start(cluster.url(), &source).await;
    let writer = Pod::start(cluster.url(), &source).await;
    for round in 1..=3 {
        for node in &nodes {
            kill_clients(node);
        }
        for pod in [&reader, &writer] {
            let is_again = |pod: &Pod| pod.cache.health().links > round && pod.is_whole();
            pod.eventually("connected again", is_again).await;
        }
        let subscribers = channels(&nodes).into_iter().map(|(node, channel)| {
            let count = node.cli(&["PUBSUB", "SHARDNUMSUB", &channel]).unwrap();
            (channel.clone(), count == format!("{channel}\n2"))
        });
        let subscribers: Vec<_> = subscribers.collect();
        assert_eq!(subscribers.len(), reader.cache.health().lanes);
        let deaf = subscribers.iter().filter(|(_, both)| !both);
        assert_eq!(deaf.count(), 0, "{subscribers:?}");
        hears_every_lane(&reader, &writer).await;
    }
}

/// The channel of each lane, with the node that it is on: beside the lane's head.
fn channels<'a>(nodes: &[&'a RedisServer]) -> Vec<(&'a RedisServer, String)> {
    let mut all = Vec::new();
    for node in nodes {
        let heads = node.cli(&["KEYS", &format!("{{{NAMESPACE}:*}}h")]).unwrap();
        let lanes = heads.lines().filter_map(|head| head.strip_suffix('h'));
        all.extend(lanes.map(|lane| (*node, format!("{lane}c"))));
    }
    all
}

/// Invalidates one key after the other until each lane had one, each heard of.
async fn hears_every_lane(reader: &Pod, writer: &Pod) {
    let mut silent = (0..reader.cache.health().lanes as u16).collect::<Vec<_>>();
    for key in 0.. {
        let stamp = writer.is_heard_by(reader, key).await;
        for (lane, _) in stamp.positions() {
            silent.retain(|other| *other != lane.0);
        }
        if silent.is_empty() {
            return;
        }
        assert!(key < 2000, "no key on the lanes {silent:?}");
    }
}
