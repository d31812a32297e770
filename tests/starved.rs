//! Executors that are blocked: every worker of a pod's runtime stands in a call that blocks, so that nothing
//! of the cache runs there, neither its driver nor a timer, while another pod invalidates.
//!
//! `TIDINGS_BLOCK_MS` says for how long.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};
use tidings::coherence::{Mechanism, Mechanisms};
use tidings::store::Memory;
use tidings::testing::RedisServer;
use tidings::{Cache, CacheBuilder, Entity};
use tokio::runtime::Runtime;

const WORKERS: usize = 2;
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// For how long the workers are blocked: in any case for longer than the bound.
fn block() -> Duration {
    let given = std::env::var("TIDINGS_BLOCK_MS").ok();
    let given = given.and_then(|ms| ms.parse().ok()).unwrap_or(5000);
    Duration::from_millis(given).max(Duration::from_millis(1500))
}

/// A pod with a runtime of its own.
struct Pod {
    runtime: Runtime,
    cache: Cache,
    numbers: Entity<u64, u64, Infallible>,
}

impl Pod {
    fn start(builder: CacheBuilder, source: &Arc<AtomicU64>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .unwrap();
        let cache = runtime.block_on(builder.build()).unwrap();
        let source = Arc::clone(source);
        let load = move |_: u64| {
            let version = source.load(SeqCst);
            async move { Ok::<_, Infallible>(version) }
        };
        let numbers = cache.entity("number", load).build().unwrap();
        Self {
            runtime,
            cache,
            numbers,
        }
    }

    fn read(&self) -> u64 {
        *self.runtime.block_on(self.numbers.get(&1)).unwrap()
    }
}

/// One poll of a read, by nobody who could be woken: what it gives at once.
fn glance(numbers: &Entity<u64, u64, Infallible>) -> Option<u64> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(numbers.get(&1)).poll(&mut context) {
        Poll::Ready(value) => Some(*value.unwrap()),
        Poll::Pending => None,
    }
}

/// What a blocked pod served.
struct Served {
    /// On a thread of its own, beside the runtime: whether the old value was still given when the bound
    /// had been over for a while.
    outside: bool,
    /// The first read of each worker when it went on.
    first: Vec<u64>,
}

/// Blocks all workers of a pod that holds a value, and has another pod invalidate that.
fn starve(on: impl Fn(CacheBuilder) -> CacheBuilder, mechanisms: Mechanisms) -> Served {
    let source = Arc::new(AtomicU64::new(0));
    let builder = || on(Cache::builder("starved"));
    let starved = Pod::start(builder().mechanisms(mechanisms), &source);
    let writer = Pod::start(builder(), &source);
    assert_eq!(starved.read(), 0);
    let bound = starved.cache.health().bound;

    // All workers, and this thread.
    let (blocked, go_on) = (Barrier::new(WORKERS + 1), Barrier::new(WORKERS + 1));
    let gates = Arc::new((blocked, go_on));
    let worker = |_| {
        let (gates, numbers) = (Arc::clone(&gates), starved.numbers.clone());
        starved.runtime.spawn(async move {
            gates.0.wait();
            gates.1.wait();
            *numbers.get(&1).await.unwrap()
        })
    };
    let workers: Vec<_> = (0..WORKERS).map(worker).collect();
    gates.0.wait();
    assert_eq!(starved.numbers.peek(&1).as_deref(), Some(&0), "it is held");
    source.store(1, SeqCst);
    writer
        .runtime
        .block_on(writer.numbers.invalidate(&1))
        .unwrap();
    let acknowledged = Instant::now();

    // On a plain thread that knows of no runtime as long as there is something to serve at once.
    let (numbers, handle) = (starved.numbers.clone(), starved.runtime.handle().clone());
    let outside = thread::spawn(move || {
        thread::sleep((bound + bound / 10).saturating_sub(acknowledged.elapsed()));
        let peeked = numbers.peek(&1).is_some();
        // What does not serve asks the store, and needs the runtime for that, whose workers are blocked.
        let _entered = handle.enter();
        peeked || glance(&numbers).is_some()
    });
    thread::sleep(block());
    let outside = outside.join().unwrap();
    gates.1.wait();
    let first = workers.into_iter().map(|worker| {
        let ended = async { tokio::time::timeout(PATIENCE, worker).await };
        writer.runtime.block_on(ended).expect("it goes on").unwrap()
    });
    let first = first.collect();
    // Not in the runtime's own drop: what is left of it would be waited for.
    starved.runtime.shutdown_background();
    writer.runtime.shutdown_background();
    Served { outside, first }
}

fn serves_nothing_old(on: impl Fn(CacheBuilder) -> CacheBuilder) {
    let served = starve(on, Mechanisms::default());
    assert!(!served.outside, "beyond the bound, while all was blocked");
    assert_eq!(served.first, [1; WORKERS], "when it went on");
}

#[test]
fn a_pod_whose_workers_are_all_blocked_serves_nothing_older_than_the_bound_on_redis() {
    let server = RedisServer::start().unwrap();
    serves_nothing_old(|builder| builder.store_url(server.url()));
}

#[test]
fn a_pod_whose_workers_are_all_blocked_serves_nothing_older_than_the_bound_on_memory() {
    let store = Memory::new();
    serves_nothing_old(|builder| builder.store(store.clone()));
}

/// The negative control: a cache that goes by what it has heard.
#[test]
fn without_liveness_a_pod_whose_workers_are_all_blocked_serves_the_old_value() {
    let server = RedisServer::start().unwrap();
    let off = Mechanisms::default().without(Mechanism::Liveness);
    let served = starve(|builder| builder.store_url(server.url()), off);
    assert!(served.outside, "it knows no better");
}
