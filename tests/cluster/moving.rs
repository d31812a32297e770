//! A slot on the move, key by key, for as long as it likes.

use crate::modes::{INCR_BY, cache, eventually};
use crate::moves::moves_at_once;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tidings::testing::RedisCluster;
use tidings::{Cache, Entity, InvalidateError};
use tokio::task::{block_in_place, spawn_blocking};

const KEYS: u64 = 200;
const HOUR: Duration = Duration::from_secs(3600);

type Versions = Entity<u64, u64, Infallible>;

fn versions(cache: &Cache, source: &Arc<AtomicU64>) -> Versions {
    let source = Arc::clone(source);
    let load = move |_: u64| {
        let version = source.load(SeqCst);
        async move { Ok(version) }
    };
    cache.entity("version", load).build().unwrap()
}

/// What all keys are, if they agree.
async fn common(versions: &Versions) -> Option<u64> {
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut found = versions.get_many(&keys).await.into_iter();
    let first = *found.next()?.unwrap();
    found
        .all(|version| *version.unwrap() == first)
        .then_some(first)
}

/// A cluster with a slot that begins to move, and the lane that lies in it.
struct Moving {
    cluster: RedisCluster,
    slot: u16,
    from: usize,
    to: usize,
    /// `{namespace:lane:number}`.
    tag: String,
}

impl Moving {
    /// The first lane on node 0.
    fn of(cluster: RedisCluster, namespace: &str, to: usize) -> Self {
        let (slot, tag) = first_lane(&cluster, namespace);
        let moving = Self {
            slot,
            from: 0,
            to,
            tag,
            cluster,
        };
        block_in_place(|| moving.cluster.begin_move(moving.slot, 0, to)).unwrap();
        moving
    }

    /// Moves half of the keys.
    fn half(&self) {
        let slot = self.slot.to_string();
        let node = self.cluster.node(self.from);
        let count = node.cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot]).unwrap();
        let half = count.parse::<usize>().unwrap() / 2;
        let moved = block_in_place(|| self.move_some(half));
        assert!(moved == half && half > 3, "{moved} of {count}");
    }

    fn move_some(&self, count: usize) -> usize {
        let moved = self.cluster.move_keys(self.slot, self.from, self.to, count);
        moved.unwrap()
    }

    fn end(&self) {
        block_in_place(|| {
            while self.move_some(8) > 0 {}
            self.cluster.end_move(self.slot, self.from, self.to)
        })
        .unwrap();
    }
}

/// Slot and tag of the namespace's first lane on node 0, where a pod has been.
fn first_lane(cluster: &RedisCluster, namespace: &str) -> (u16, String) {
    let node = cluster.node(0);
    let heads = node.cli(&["KEYS", &format!("{{{namespace}:*}}h")]).unwrap();
    let head = heads.lines().min().expect("node 0 has lanes");
    let slot = node.cli(&["CLUSTER", "KEYSLOT", head]).unwrap();
    (slot.parse().unwrap(), head.trim_end_matches('h').to_owned())
}

async fn is_live(cache: &Cache, silent: usize) {
    eventually("its lanes are live", async || {
        let health = cache.health();
        health.live_lanes == health.lanes - silent
    })
    .await;
}

/// H21, scenario 29: with half of its keys on either side a slot is left alone, and nothing hangs or is
/// stale: neither what was there before nor what comes in between, nor in pods that come meanwhile.
async fn left_in_the_middle(to: usize, empty: bool) {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).unwrap();
    let source = Arc::new(AtomicU64::new(1));
    let first = cache(&cluster, "middle").await;
    if empty {
        // The node that the slot goes to has no lane of ours, and no pod a connection to it.
        let node = cluster.node(to);
        let heads = node.cli(&["KEYS", "{middle:*}h"]).unwrap();
        for head in heads.lines() {
            let slot = node.cli(&["CLUSTER", "KEYSLOT", head]).unwrap();
            let slot = slot.parse().unwrap();
            block_in_place(|| cluster.move_slot(slot, to, 1)).unwrap();
        }
        is_live(&first, 0).await;
    }
    let on_first = versions(&first, &source);
    assert_eq!(common(&on_first).await, Some(1));
    let raw = first.raw("cart").unwrap();
    for key in (0..KEYS).map(|key| key.to_string()) {
        // A pod may find out only now where its lanes have gone.
        let set = async || raw.set(&*key, key.clone(), HOUR).await.is_ok();
        eventually("it is set", set).await;
    }
    is_live(&first, 0).await;
    let moving = Moving::of(cluster, "middle", to);
    let mine = format!("{}mine", moving.tag);
    let redis = first.redis().unwrap();
    assert_eq!(redis.script(&INCR_BY).run((&*mine, 1)).await.unwrap(), 1);
    moving.half();

    // Data goes to whichever side has it.
    let second = cache(&moving.cluster, "middle").await;
    for cache in [&first, &second] {
        is_live(cache, 1).await;
        let raw = cache.raw("cart").unwrap();
        for key in (0..KEYS).map(|key| key.to_string()) {
            assert_eq!(raw.get(&*key).await.unwrap().unwrap(), key);
        }
    }
    for key in (0..KEYS).map(|key| key.to_string()) {
        raw.set(&*key, "again", HOUR).await.unwrap();
        let other = second.raw("cart").unwrap();
        assert_eq!(other.get(&*key).await.unwrap().unwrap(), "again");
    }
    for sum in 2..10 {
        let redis = second.redis().unwrap();
        let run = redis.script(&INCR_BY).run((&*mine, 1)).await;
        assert_eq!(run.unwrap(), sum);
    }

    // Entities follow the source; those in the lane by the loader.
    let on_second = versions(&second, &source);
    assert_eq!(common(&on_second).await, Some(1));
    source.store(2, SeqCst);
    let keys: Vec<u64> = (0..KEYS).collect();
    // Redis refuses a script that names a key which is on neither side, so the lane's keys have to wait.
    let told = on_first.invalidate_many(&keys).await;
    assert!(matches!(told, Err(InvalidateError::Pending(_))), "{told:?}");
    assert!(first.health().pending > 0);
    let told = Instant::now();
    let bound = first.health().bound;
    for pod in [&on_first, &on_second] {
        while {
            let began = Instant::now();
            common(pod).await != Some(2) && {
                assert!(began - told <= bound, "stale beyond the bound");
                true
            }
        } {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    moving.end();
    for cache in [&first, &second] {
        is_live(cache, 0).await;
    }
    eventually("all is acknowledged", async || first.health().pending == 0).await;
    assert_eq!(common(&on_first).await, Some(2));
    assert_eq!(common(&on_second).await, Some(2));
    assert_eq!(raw.get("7").await.unwrap().unwrap(), "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_left_half_moved_serves_data_reads_and_new_pods_and_nothing_stale() {
    left_in_the_middle(1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_left_half_moved_to_a_new_node_serves_data_reads_and_new_pods_and_nothing_stale() {
    left_in_the_middle(2, true).await;
}

/// A pod that came while a slot was about to move has its lane as soon as it is known to stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_came_during_a_move_that_was_called_off_has_all_lanes_again() {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).unwrap();
    let source = Arc::new(AtomicU64::new(1));
    let first = cache(&cluster, "off").await;
    assert_eq!(common(&versions(&first, &source)).await, Some(1));
    let moving = Moving::of(cluster, "off", 1);
    let second = cache(&moving.cluster, "off").await;
    is_live(&second, 1).await;
    assert_eq!(common(&versions(&second, &source)).await, Some(1));
    block_in_place(|| moving.cluster.cancel_move(moving.slot, 0, 1)).unwrap();
    for cache in [&first, &second] {
        is_live(cache, 0).await;
    }
    eventually("it connected anew", async || second.health().links == 2).await;
    assert_eq!(
        first.health().links,
        1,
        "a pod that followed the lane goes on"
    );
}

/// What each round of load does while a slot moves in one step.
struct Load {
    source: Arc<AtomicU64>,
    pods: [Versions; 2],
    /// A key of the user's in the slot.
    counter: String,
    counted: i64,
    tried: i64,
}

impl Load {
    /// One invalidation of all keys, then what every pod must see of it, and of the data in the slot.
    async fn round(&mut self) {
        let version = self.source.fetch_add(1, SeqCst) + 1;
        let keys: Vec<u64> = (0..KEYS).collect();
        match self.pods[0].invalidate_many(&keys).await {
            Ok(_) => {}
            Err(InvalidateError::Pending(pending)) => {
                pending.settled().await.unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        let told = Instant::now();
        assert_eq!(common(&self.pods[0]).await, Some(version), "its own write");
        let bound = self.pods[0].cache().health().bound;
        while {
            let began = Instant::now();
            common(&self.pods[1]).await != Some(version) && {
                assert!(began - told <= bound, "stale beyond the bound");
                true
            }
        } {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for pod in &self.pods {
            let redis = pod.cache().redis().unwrap();
            self.tried += 1;
            // Refused while the slot is handed over, and then perhaps done all the same; never begun anew.
            if let Ok(sum) = redis.script(&INCR_BY).run((&*self.counter, 1)).await {
                assert!(
                    (self.counted + 1..=self.tried).contains(&sum),
                    "{sum} after {} of {}",
                    self.counted,
                    self.tried
                );
                self.counted = sum;
            }
            let raw = pod.cache().raw("cart").unwrap();
            for key in (0..KEYS).step_by(7).map(|key| key.to_string()) {
                if let Ok(found) = raw.get(&*key).await {
                    assert_eq!(found.expect("it is on one side"), key);
                }
            }
        }
    }
}

/// Scenario 29, in one step: from node to node and home again, with all that is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_in_one_step_keeps_what_is_in_it_and_nothing_is_stale() {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).unwrap();
    if !moves_at_once(&cluster) {
        return;
    }
    let source = Arc::new(AtomicU64::new(1));
    let caches = [cache(&cluster, "step").await, cache(&cluster, "step").await];
    let pods = caches.each_ref().map(|cache| versions(cache, &source));
    let raw = caches[0].raw("cart").unwrap();
    for key in (0..KEYS).map(|key| key.to_string()) {
        raw.set(&*key, key.clone(), HOUR).await.unwrap();
    }
    for cache in &caches {
        is_live(cache, 0).await;
    }
    let (slot, tag) = first_lane(&cluster, "step");
    let mut load = Load {
        source,
        pods,
        counter: format!("{tag}mine"),
        counted: 0,
        tried: 0,
    };
    load.round().await;
    let cluster = Arc::new(cluster);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let nodes = Arc::clone(&cluster);
        let moved = spawn_blocking(move || nodes.move_slot_at_once(slot, from, to));
        while !moved.is_finished() {
            load.round().await;
        }
        moved.await.unwrap().unwrap();
        for cache in &caches {
            is_live(cache, 0).await;
        }
        load.round().await;
    }
    let health = caches[0].health();
    assert!(health.links > 1, "it followed the slot: {health:?}");
    assert_eq!(health.pending, 0, "{health:?}");
    for key in (0..KEYS).map(|key| key.to_string()) {
        assert_eq!(raw.get(&*key).await.unwrap().unwrap(), key);
    }
    assert!(load.counted > 0, "{}", load.tried);
}
