//! What becomes of calls when their runtime ends under them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::convert::Infallible;
use std::future::pending;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use tidings::store::Memory;
use tidings::{Cache, Entity, ReadOptions, StoreState};
use tokio::runtime::Builder;

const PATIENCE: Duration = Duration::from_secs(30);

/// A cache whose store is away: what is not in memory is loaded, each load in a task.
async fn without_a_store() -> Cache {
    let store = Memory::new();
    let builder = Cache::builder("runtime").store(store.clone());
    let cache = builder.build().await.unwrap();
    store.faults().set_down(true);
    let deadline = Instant::now() + PATIENCE;
    while !matches!(cache.health().store, StoreState::Down { .. }) {
        assert!(Instant::now() < deadline, "{:?}", cache.health());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cache
}

/// Says when it is dropped.
struct Told(Sender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        // Whoever has gone does not want to know.
        let _ = self.0.send(());
    }
}

/// Runs `call` in a task that is polled while the runtime ends, when each task that is spawned is dropped
/// at once; waits until the runtime has ended.
fn ends_during<F: Future<Output = ()> + Send>(call: impl FnOnce(Cache) -> F + Send + 'static) {
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let cache = runtime.block_on(without_a_store());
    let (told, ending) = channel();
    let told = Told(told);
    runtime.spawn(async move {
        let _told = told;
        pending::<()>().await;
    });
    let (running, runs) = channel();
    runtime.spawn(async move {
        running.send(()).unwrap();
        // 1. This task is being polled. 2. The runtime begins to end. 3. The call begins.
        ending.recv().unwrap();
        call(cache).await;
    });
    runs.recv_timeout(PATIENCE).unwrap();
    let (told, ended) = channel();
    let told = Told(told);
    std::thread::spawn(move || {
        drop(runtime);
        drop(told);
    });
    ended.recv_timeout(PATIENCE).expect("the runtime ends");
}

fn numbers(cache: &Cache) -> Entity<u64, u64, Infallible> {
    let load = |key: u64| async move { Ok::<_, Infallible>(key) };
    cache.entity("number", load).build().unwrap()
}

#[test]
fn a_runtime_ends_though_a_read_loads() {
    ends_during(async |cache| drop(numbers(&cache).get(&1).await));
}

#[test]
fn a_runtime_ends_though_a_read_with_options_loads() {
    ends_during(async |cache| {
        let options = ReadOptions::new().deadline(PATIENCE);
        drop(numbers(&cache).with(options).get(&1).await);
    });
}

#[test]
fn a_runtime_ends_though_a_list_loads() {
    ends_during(async |cache| drop(numbers(&cache).get_many(&[1, 2, 3]).await));
}

#[test]
fn a_runtime_ends_though_a_strict_read_loads() {
    ends_during(async |cache| drop(numbers(&cache).get_strict(&1).await));
}

#[test]
fn a_runtime_ends_though_a_refresh_loads() {
    ends_during(async |cache| drop(numbers(&cache).refresh(&1).await));
}

#[test]
fn a_runtime_ends_though_an_invalidation_waits() {
    ends_during(async |cache| drop(numbers(&cache).invalidate(&1).await));
}

#[test]
fn a_runtime_ends_though_a_memo_is_computed() {
    ends_during(async |cache| {
        let compute = |key: u64| async move { Ok::<_, Infallible>(key) };
        let memo = cache.memo("square", compute).build().unwrap();
        drop(memo.get(&1).await);
    });
}

#[test]
fn a_runtime_ends_though_a_member_joins_and_is_watched() {
    ends_during(async |cache| {
        // None is built in a runtime that has ended.
        let Ok(room) = cache.presence::<u8>("room").build() else {
            return;
        };
        let mut feed = room.watch();
        drop(room.join("ada", &1).await);
        drop(room.count().await);
        drop(feed.next().await);
    });
}

#[test]
fn a_runtime_ends_though_raw_data_is_written() {
    ends_during(async |cache| {
        let raw = cache.raw("raw").unwrap();
        drop(raw.set("key", "value", PATIENCE).await);
        drop(raw.clear().await);
    });
}

#[test]
fn a_runtime_ends_though_a_write_is_guarded() {
    ends_during(async |cache| drop(numbers(&cache).begin_write(&1).await));
}

#[test]
fn a_runtime_ends_though_a_batch_invalidates() {
    ends_during(async |cache| {
        let (reactivity, inner) = (cache.reactivity(), cache.clone());
        let batch = reactivity.batch(async move { drop(inner.invalidate(["org:7"]).await) });
        drop(batch.await);
    });
}

#[test]
fn a_runtime_ends_though_a_query_is_read() {
    ends_during(async |cache| {
        let reactivity = cache.reactivity();
        let _kept = reactivity.on(["org:7"], async |_| ());
        let _seven = reactivity.query(["org:7"], async || 7).next().await;
    });
}

#[test]
fn a_runtime_ends_though_a_cache_is_closed() {
    ends_during(async |cache| drop(cache.close().await));
}
