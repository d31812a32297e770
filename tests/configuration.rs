//! What pods of one namespace must agree on, and how the number of lanes is changed under a running
//! fleet (hole H24, scenario 35).
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[path = "support/mod.rs"]
mod support;
#[path = "support/shared.rs"]
mod shared;

mod bed {
    pub(crate) use super::Bed;
}

use shared::Shared;
use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use support::{eventually, soon};
use tidings::store::{Link, Memory, Namespace, Redis, Store};
use tidings::testing::RedisServer;
use tidings::{
    BuildError, Cache, CacheBuilder, Entity, InvalidateError, Mismatch, OnStoreAbsent,
    StoreErrorKind, StoreState,
};

/// Enough to have some on every lane of some, and to have both kinds: those that two numbers of lanes
/// put on the same lane, and those that they do not.
const KEYS: u64 = 60;

type Numbers = Entity<u64, u64, Infallible>;
type Source = Arc<Mutex<HashMap<u64, u64>>>;

/// A store, a namespace that no other test uses, and a source.
struct Bed {
    store: Arc<dyn Store>,
    namespace: String,
    source: Source,
    _server: Option<Arc<RedisServer>>,
}

struct Pod {
    cache: Cache,
    numbers: Numbers,
}

impl Bed {
    fn on(store: impl Store, server: Option<Arc<RedisServer>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            store: Arc::new(store),
            namespace: format!("configuration-{}", NEXT.fetch_add(1, Relaxed)),
            source: Source::default(),
            _server: server,
        }
    }

    fn memory() -> Self {
        Self::on(Memory::new(), None)
    }

    fn redis() -> Self {
        let server = support::server();
        Self::on(Redis::new(&server.url()).unwrap(), Some(server))
    }

    async fn build(
        &self,
        with: impl FnOnce(CacheBuilder) -> CacheBuilder,
    ) -> Result<Cache, BuildError> {
        let builder = Cache::builder(&*self.namespace).store(Shared(Arc::clone(&self.store)));
        soon("build", with(builder).build()).await
    }

    async fn pod(&self, with: impl FnOnce(CacheBuilder) -> CacheBuilder) -> Pod {
        let cache = self.build(with).await.unwrap();
        let numbers = self.numbers(&cache);
        Pod { cache, numbers }
    }

    fn numbers(&self, cache: &Cache) -> Numbers {
        cache.entity("number", self.loader()).build().unwrap()
    }

    fn loader(&self) -> impl Fn(u64) -> Ready<Result<u64, Infallible>> + Send + Sync + use<> {
        let source = Arc::clone(&self.source);
        move |key| {
            ready(Ok(source
                .lock()
                .unwrap()
                .get(&key)
                .copied()
                .unwrap_or_default()))
        }
    }

    async fn refused(&self, with: impl FnOnce(CacheBuilder) -> CacheBuilder) -> BuildError {
        self.build(with).await.expect_err("it must keep out")
    }

    fn commit(&self, key: u64) -> u64 {
        let mut source = self.source.lock().unwrap();
        let version = source.entry(key).or_default();
        *version += 1;
        *version
    }

    /// A hand in the store that is no pod.
    async fn link(&self, lanes: u16) -> Arc<dyn Link> {
        let namespace = Namespace {
            name: self.namespace.clone(),
            lanes,
        };
        self.store.connect(&namespace).await.unwrap().0
    }

    async fn record(&self) -> Option<String> {
        let polled = self.link(1).await.poll().await.unwrap();
        polled
            .record
            .map(|record| String::from_utf8(record.to_vec()).unwrap())
    }

    /// Writes another record over the one that stands.
    async fn rewrite(&self, from: &str, to: &str) {
        let (link, old) = (self.link(1).await, self.record().await.unwrap());
        let new = old.replace(from, to);
        assert_ne!(new, old);
        let stands = link.register(Some(old.as_bytes()), new.as_bytes()).await;
        assert_eq!(stands.unwrap().unwrap(), new);
    }
}

impl Pod {
    /// Commits and invalidates each key, and waits until each of `pods` has it.
    async fn writes_reach(&self, bed: &Bed, pods: &[&Pod]) {
        for pod in pods {
            for key in 0..KEYS {
                pod.numbers.get(&key).await.unwrap();
            }
        }
        for key in 0..KEYS {
            let version = bed.commit(key);
            self.numbers.invalidate(&key).await.unwrap();
            assert_eq!(*self.numbers.get(&key).await.unwrap(), version);
            for pod in pods {
                let what = format!("version {version} of {key}");
                eventually(&what, async || {
                    *pod.numbers.get(&key).await.unwrap() == version
                })
                .await;
            }
        }
    }

    async fn clear_reaches(&self, bed: &Bed, pods: &[&Pod]) {
        let versions: Vec<_> = (0..KEYS).map(|key| bed.commit(key)).collect();
        self.numbers.clear().await.unwrap();
        for pod in pods {
            for (key, version) in (0..KEYS).zip(&versions) {
                let what = format!("version {version} of {key} after a clear");
                eventually(&what, async || {
                    *pod.numbers.get(&key).await.unwrap() == *version
                })
                .await;
            }
        }
    }

    /// Why the store is not in use, if it is because pods disagree.
    fn mismatch(&self) -> Option<Mismatch> {
        match self.cache.health().store {
            StoreState::Down { reason } => reason.source()?.downcast_ref().cloned(),
            _ => None,
        }
    }
}

on_both_stores! {
    a_pod_with_another_number_of_lanes_is_refused_and_both_are_named,
    a_pod_that_is_refused_has_left_nothing_behind,
    a_pod_of_another_seed_encoding_or_version_is_refused,
    any_number_of_lanes_in_range_works,
    a_running_pod_whose_record_was_replaced_uses_the_store_no_more,
    three_rolls_change_the_number_of_lanes_without_a_stale_read,
    the_number_of_lanes_can_be_lowered_too,
    a_roll_that_is_skipped_is_refused,
    a_pod_left_behind_has_no_invalidation_acknowledged,
    raw_data_and_rooms_stay_where_they_are,
    a_schema_that_changes_is_coherent,
}

async fn a_pod_with_another_number_of_lanes_is_refused_and_both_are_named(bed: Bed) {
    let _first = bed.pod(|builder| builder).await;
    for error in [
        bed.refused(|builder| builder.lanes(8)).await,
        // It is not as if the store were absent.
        bed.refused(|builder| {
            builder
                .lanes(8)
                .on_store_absent(OnStoreAbsent::StartDegraded)
        })
        .await,
    ] {
        assert_eq!(error.option(), "lanes");
        let mismatch = error.mismatch().expect("typed");
        let all = (mismatch.setting(), mismatch.registered(), mismatch.ours());
        assert_eq!(all, ("lanes", "16", "8"));
        assert!(
            error.to_string().contains("lanes 16, this pod has 8"),
            "{error}"
        );
        assert_eq!(error.store_error().unwrap().kind(), StoreErrorKind::Config);
    }
    bed.pod(|builder| builder.lanes(16)).await;
}

async fn a_pod_that_is_refused_has_left_nothing_behind(bed: Bed) {
    let _first = bed.pod(|builder| builder.lanes(4)).await;
    bed.refused(|builder| builder.lanes(8)).await;
    let polled = bed.link(8).await.poll().await.unwrap();
    assert!(polled.heads[..4].iter().all(Option::is_some));
    assert_eq!(polled.heads[4..], [None; 4]);
}

async fn a_pod_of_another_seed_encoding_or_version_is_refused(bed: Bed) {
    bed.pod(|builder| builder).await.cache.close().await;
    let record = bed.record().await.unwrap();
    let seed = record
        .split(' ')
        .find(|word| word.starts_with("seed="))
        .unwrap();
    for (word, other, setting) in [
        (seed, "seed=00000000000000ff", "seed"),
        ("keys=1", "keys=2", "keys"),
        ("envelope=1", "envelope=9", "envelope"),
        ("1 lanes", "2 lanes", "record"),
    ] {
        bed.rewrite(word, other).await;
        let error = bed.refused(|builder| builder).await;
        assert_eq!(error.option(), "namespace");
        assert_eq!(error.mismatch().unwrap().setting(), setting);
        bed.rewrite(other, word).await;
    }
    bed.pod(|builder| builder).await;
}

async fn any_number_of_lanes_in_range_works(bed: Bed) {
    for lanes in [1, 7, 256] {
        let bed = Bed {
            namespace: format!("{}-{lanes}", bed.namespace),
            store: Arc::clone(&bed.store),
            source: Source::default(),
            _server: bed._server.clone(),
        };
        let (a, b) = (
            bed.pod(|b| b.lanes(lanes)).await,
            bed.pod(|b| b.lanes(lanes)).await,
        );
        assert_eq!(a.cache.health().lanes, usize::from(lanes));
        a.writes_reach(&bed, &[&b]).await;
        b.clear_reaches(&bed, &[&a]).await;
    }
}

async fn a_running_pod_whose_record_was_replaced_uses_the_store_no_more(bed: Bed) {
    let pod = bed.pod(|builder| builder).await;
    pod.numbers.get(&1).await.unwrap();
    bed.rewrite("lanes=16", "lanes=8").await;
    eventually("it is refused", async || pod.mismatch().is_some()).await;
    assert_eq!(pod.mismatch().unwrap().registered(), "8");
    let version = bed.commit(1);
    let refused = pod.numbers.invalidate(&1).await.unwrap_err();
    assert!(matches!(refused, InvalidateError::Pending(_)), "{refused}");
    assert_eq!(*pod.numbers.get(&1).await.unwrap(), version);
    // Put right, it comes back by itself.
    bed.rewrite("lanes=8", "lanes=16").await;
    eventually("it is back", async || pod.cache.health().pending == 0).await;
}

async fn three_rolls_change_the_number_of_lanes_without_a_stale_read(bed: Bed) {
    roll(&bed, 16, 64).await;
}

async fn the_number_of_lanes_can_be_lowered_too(bed: Bed) {
    roll(&bed, 16, 5).await;
}

/// Rolls a fleet from one number of lanes to another. At any time there are pods of two rows, and each
/// hears the others.
async fn roll(bed: &Bed, old: u16, new: u16) {
    let mut before = bed.pod(|b| b.lanes(old)).await;
    for roll in 1..=3 {
        let with = |b: CacheBuilder| match roll {
            1 => b.lanes(old).migrate_lanes_to(new),
            2 => b.lanes(new).migrate_lanes_from(old),
            _ => b.lanes(new),
        };
        let (a, b) = (bed.pod(with).await, bed.pod(with).await);
        a.writes_reach(bed, &[&b, &before]).await;
        before.writes_reach(bed, &[&a, &b]).await;
        b.clear_reaches(bed, &[&a, &before]).await;
        before.clear_reaches(bed, &[&a, &b]).await;
        before.cache.close().await;
        before = a;
    }
    let lanes = format!("lanes={new} ");
    assert!(bed.record().await.unwrap().contains(&lanes));
    assert_eq!(
        before.cache.health().lanes,
        usize::from(new.max(old).min(new))
    );
    bed.refused(|b| b.lanes(old)).await;
}

async fn a_roll_that_is_skipped_is_refused(bed: Bed) {
    let _old = bed.pod(|b| b.lanes(16)).await;
    let error = bed.refused(|b| b.lanes(64).migrate_lanes_from(16)).await;
    let mismatch = error.mismatch().unwrap();
    assert_eq!(
        (mismatch.registered(), mismatch.ours()),
        ("16", "64 (migrating from 16)")
    );
    let _first = bed.pod(|b| b.lanes(16).migrate_lanes_to(64)).await;
    bed.refused(|b| b.lanes(64)).await;
}

/// 1. A pod of the old number still runs when the second roll begins.
/// 2. What it logs reaches nobody who reads at the new number.
/// 3. So the store must not acknowledge it, not even before the pod's next poll.
async fn a_pod_left_behind_has_no_invalidation_acknowledged(bed: Bed) {
    let left = bed.pod(|b| b.lanes(16)).await;
    left.numbers.get(&1).await.unwrap();
    let first = bed.pod(|b| b.lanes(16).migrate_lanes_to(64)).await;
    left.writes_reach(&bed, &[&first]).await;
    let second = bed.pod(|b| b.lanes(64).migrate_lanes_from(16)).await;
    let version = bed.commit(1);
    let refused = left.numbers.invalidate(&1).await.unwrap_err();
    assert!(matches!(refused, InvalidateError::Pending(_)), "{refused}");
    assert_eq!(*left.numbers.get(&1).await.unwrap(), version);
    eventually("it is refused", async || left.mismatch().is_some()).await;
    second.writes_reach(&bed, &[&first]).await;
}

async fn raw_data_and_rooms_stay_where_they_are(bed: Bed) {
    let old = bed.pod(|b| b.lanes(3).migrate_lanes_to(40)).await;
    let new = bed.pod(|b| b.lanes(40).migrate_lanes_from(3)).await;
    let (here, there) = (
        old.cache.raw("cart").unwrap(),
        new.cache.raw("cart").unwrap(),
    );
    for key in 0..KEYS {
        let key = key.to_string();
        here.set(&key, "tea", tidings::Ttl::Forever).await.unwrap();
        assert_eq!(there.get(&key).await.unwrap().unwrap(), "tea");
    }
    let room = |pod: &Pod| pod.cache.presence::<u8>("room").build().unwrap();
    let lease = room(&old).join("ada", &1).await.unwrap();
    assert!(room(&new).get("ada").await.unwrap().is_some());
    drop(lease);
}

/// Pods of two schemas keep one physical key, so that each removes what the other reads.
async fn a_schema_that_changes_is_coherent(bed: Bed) {
    let (old, new) = (bed.pod(|b| b).await, bed.pod(|b| b).await);
    let shape = |pod: &Pod, schema| {
        let builder = pod.cache.entity("shape", bed.loader());
        builder.schema(schema).build().unwrap()
    };
    let (before, after) = (shape(&old, 0), shape(&new, 1));
    for key in 0..KEYS {
        before.get(&key).await.unwrap();
        after.get(&key).await.unwrap();
        let version = bed.commit(key);
        if key % 2 == 0 {
            before.invalidate(&key).await.unwrap();
        } else {
            after.invalidate(&key).await.unwrap();
        }
        eventually("both see it", async || {
            *before.get(&key).await.unwrap() == version
                && *after.get(&key).await.unwrap() == version
        })
        .await;
    }
}

#[tokio::test]
async fn numbers_of_lanes_out_of_range_are_named() {
    let bed = Bed::memory();
    for lanes in [0, 257, u16::MAX] {
        assert_eq!(bed.refused(|b| b.lanes(lanes)).await.option(), "lanes");
        let error = bed.refused(|b| b.migrate_lanes_to(lanes)).await;
        assert_eq!(error.option(), "migrate_lanes");
    }
    let error = bed.refused(|b| b.migrate_lanes_from(16)).await;
    assert_eq!(error.option(), "migrate_lanes");
}

#[tokio::test]
async fn the_lanes_of_a_cluster_are_no_option() {
    for with in [
        |b: CacheBuilder| b.lanes(8),
        |b: CacheBuilder| b.migrate_lanes_to(8),
    ] {
        let cluster = Cache::builder("shop").store_url("redis+cluster://127.0.0.1:1");
        let error = with(cluster).build().await.expect_err("before connecting");
        assert_eq!(error.option(), "lanes");
    }
}

/// Whoever is left writes the record again, and nothing that was there before is believed: another pod
/// may have gone by another record meanwhile.
#[tokio::test]
async fn a_record_that_was_evicted_is_written_again_on_memory() {
    let memory = Memory::new();
    let bed = Bed::on(memory.clone(), None);
    let pod = bed.pod(|builder| builder).await;
    lose_the_record(&bed, &pod, || {
        memory
            .faults()
            .with_state(tidings::store::memory::MemoryState::drop_record);
    })
    .await;
}

#[tokio::test]
async fn a_record_that_was_evicted_is_written_again_on_redis() {
    let bed = Bed::redis();
    let pod = bed.pod(|builder| builder).await;
    let (server, key) = (support::server(), format!("{{{}}}cfg", bed.namespace));
    lose_the_record(&bed, &pod, || {
        server.cli(&["DEL", &key]).unwrap();
    })
    .await;
}

async fn lose_the_record(bed: &Bed, pod: &Pod, lose: impl FnOnce()) {
    let before = bed.link(16).await.poll().await.unwrap();
    lose();
    eventually("it is back", async || {
        let record = bed.record().await;
        record.is_some_and(|record| !record.contains("opening"))
    })
    .await;
    let after = bed.link(16).await.poll().await.unwrap();
    for (before, after) in before.heads.iter().zip(&after.heads) {
        assert_ne!(before.unwrap().at.epoch, after.unwrap().at.epoch);
    }
    let other = bed.pod(|builder| builder).await;
    other.writes_reach(bed, &[pod]).await;
    assert_eq!(pod.cache.health().links, 1, "the link was kept");
}

#[tokio::test]
async fn a_pod_that_started_without_the_store_is_refused_when_it_comes() {
    let memory = Memory::new();
    let bed = Bed::on(memory.clone(), None);
    let _first = bed.pod(|builder| builder).await;
    memory.faults().set_down(true);
    let late = |b: CacheBuilder| b.lanes(8).on_store_absent(OnStoreAbsent::StartDegraded);
    let late = bed.pod(late).await;
    memory.faults().set_down(false);
    eventually("it is refused", async || late.mismatch().is_some()).await;
    assert_eq!(*late.numbers.get(&1).await.unwrap(), 0, "from the source");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_start_at_once_on_an_empty_store_agree_on_one_record() {
    let bed = Arc::new(Bed::redis());
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..8_u16 {
        let bed = Arc::clone(&bed);
        starts.spawn(async move { bed.build(|b| b.lanes(8 + number % 2 * 8)).await });
    }
    let built: Vec<_> = starts.join_all().await.into_iter().collect();
    let lanes: Vec<_> = built
        .iter()
        .flatten()
        .map(|cache| cache.health().lanes)
        .collect();
    assert_eq!(lanes.len(), 4, "those of one kind: {built:?}");
    assert!(lanes.iter().all(|&number| number == lanes[0]), "{lanes:?}");
    let refused = built.iter().filter_map(|built| built.as_ref().err());
    assert!(
        refused.clone().all(|error| error.mismatch().is_some()),
        "{built:?}"
    );
}

#[tokio::test]
async fn something_else_under_the_name_of_the_record_is_an_error_that_says_so() {
    let bed = Bed::redis();
    let (server, key) = (support::server(), format!("{{{}}}cfg", bed.namespace));
    server.cli(&["HSET", &key, "a", "b"]).unwrap();
    let error = bed.refused(|builder| builder).await;
    assert_eq!(
        error.store_error().unwrap().kind(),
        StoreErrorKind::WrongType
    );
}

#[tokio::test]
async fn a_full_server_lets_pods_register() {
    let server = Arc::new(RedisServer::start().unwrap());
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let bed = Bed::on(Redis::new(&server.url()).unwrap(), Some(server));
    bed.pod(|builder| builder).await;
    bed.refused(|builder| builder.lanes(8)).await;
}
