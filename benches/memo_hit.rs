//! What a hit of a memo costs: `memo.get(&key).await` against the bare engine.
//!
//! The memo hashes the key, finds the entry, asks whether it may be served, and counts the hit; the map
//! only finds it. Both have the same keys and `Arc` values, and room for all keys; the bare map has the
//! library's default hasher. Its locks are the standard library's, as this crate builds it; by default it
//! would take parking_lot's. One memo's values expire, so that each hit asks the clock; another's never do.
//!
//! `cargo bench --bench memo_hit` takes a minute.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::ready;
use std::hash::Hash;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Random, Ratio, SEED, Zipf, judge, median, rotated};
use tidings::store::Memory;
use tidings::{Cache, Memo, Ttl};
use tokio::runtime::{Builder, Runtime};

type Value = Arc<[u8; 16]>;

struct Scale {
    rounds: usize,
    reads: usize,
}

const FULL: Scale = Scale {
    rounds: 41,
    reads: 400_000,
};
const QUICK: Scale = Scale {
    rounds: 3,
    reads: 50_000,
};
/// So many keys are more than a core's own caches hold, and so many are fewer.
const MANY: usize = 100_000;
const FEW: usize = 1_000;
/// Coprime to both.
const SCATTER: usize = 61_803;

fn main() {
    let scale = if common::quick() { QUICK } else { FULL };
    // One thread, so that what every side keeps is allocated alike. The reads have threads of their own.
    let runtime = reader();
    for keys in [MANY, FEW] {
        compare(&scale, &runtime, "33-byte text", keys, common::key);
        compare(&scale, &runtime, "number", keys, |n| n as u64);
    }
}

// --- sides ---------------------------------------------------------------------------------------

trait Key: Hash + Eq + Clone + Debug + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> Key for K {}

enum Side<K> {
    Quick(quick_cache::sync::Cache<K, Value, quick_cache::UnitWeighter, Foldhash>),
    Memo(&'static str, Memo<K, Value, Infallible>),
}

/// What quick_cache hashes with by default; we build it without.
type Foldhash = foldhash::quality::RandomState;

impl<K: Key> Side<K> {
    fn name(&self) -> &'static str {
        match self {
            Self::Quick(_) => "quick_cache",
            Self::Memo(name, _) => name,
        }
    }

    /// Nanoseconds per read.
    async fn read(&self, trace: &[K]) -> f64 {
        // The loops are apart, so that no side pays for a branch.
        let begin = match self {
            Self::Quick(map) => {
                let begin = Instant::now();
                for key in trace {
                    black_box(map.get(black_box(key)));
                }
                begin
            }
            Self::Memo(_, memo) => {
                let begin = Instant::now();
                for key in trace {
                    black_box(memo.get(black_box(key)).await.expect("it is there"));
                }
                begin
            }
        };
        begin.elapsed().as_nanos() as f64 / trace.len() as f64
    }
}

async fn sides<K: Key>(keys: usize, key: impl Fn(usize) -> K) -> Vec<Side<K>> {
    let cache = Cache::builder("bench").store(Memory::new()).build().await;
    let cache = cache.expect("the embedded store is always there");
    // Each side's are allocated in one go, so that they lie alike.
    let values = || -> HashMap<K, Value> {
        let values = (0..keys).map(|n| (key(n), Value::new([7; 16])));
        values.collect()
    };
    let memo = |ttl| {
        let values = values();
        let compute = move |key: K| ready(Ok::<_, Infallible>(Value::clone(&values[&key])));
        let memo = cache.memo("value", compute).ttl(ttl);
        let memo = memo.capacity(2 * keys as u64).build();
        memo.expect("the options are in range")
    };
    let (expiring, lasting) = (
        memo(Ttl::For(Duration::from_secs(3600))),
        memo(Ttl::Forever),
    );
    // Room to spare: no shard may be so full that it evicts.
    let quick = quick_cache::sync::Cache::with(
        2 * keys,
        2 * keys as u64,
        quick_cache::UnitWeighter,
        Foldhash::default(),
        Default::default(),
    );
    let values = values();
    for key in (0..keys).map(&key) {
        expiring.get(&key).await.expect("it computes");
        lasting.get(&key).await.expect("it computes");
        quick.insert(key.clone(), Value::clone(&values[&key]));
    }
    let resident = (0..keys).map(&key).all(|key| {
        expiring.peek(&key).is_some() && lasting.peek(&key).is_some() && quick.peek(&key).is_some()
    });
    assert!(resident, "something was evicted");
    vec![
        Side::Quick(quick),
        Side::Memo("memo", expiring),
        Side::Memo("memo, no TTL", lasting),
    ]
}

// --- reads ---------------------------------------------------------------------------------------

fn trace<K>(scale: &Scale, keys: usize, key: &impl Fn(usize) -> K, thread: u64) -> Vec<K> {
    let zipf = Zipf::new(keys);
    let mut random = Random(SEED * thread);
    // Scattered, or the hot ones would have been inserted side by side and share cache lines.
    let reads = (0..scale.reads).map(|_| key(zipf.draw(&mut random) * SCATTER % keys));
    reads.collect()
}

fn compare<K: Key>(
    scale: &Scale,
    runtime: &Runtime,
    name: &str,
    keys: usize,
    key: impl Fn(usize) -> K,
) {
    let sides = runtime.block_on(sides(keys, &key));
    let traces: Vec<_> = (1..=2).map(|n| trace(scale, keys, &key, n)).collect();
    println!("\nhit of one of {keys} resident keys, each a {name}");
    for threads in 1..=2 {
        let mut costs = vec![Vec::new(); sides.len()];
        for round in 0..=scale.rounds {
            for side in rotated(sides.len(), round) {
                let cost = nanos_per_read(&sides[side], &traces[..threads]);
                if round > 0 {
                    costs[side].push(cost);
                }
            }
        }
        println!("{threads} thread(s), ns and ratio to the bare quick_cache");
        for (side, cost) in sides.iter().zip(&costs) {
            let ratio = Ratio::of(cost, &costs[0]);
            let nanos = median(cost.clone());
            println!("  {:<14}{nanos:>6.0}   {ratio}", side.name());
        }
        let ratio = Ratio::of(&costs[1], &costs[0]);
        judge("  memo / quick_cache", &ratio, "≤ 1.3", ratio.median <= 1.3);
    }
}

fn nanos_per_read<K: Key>(side: &Side<K>, traces: &[Vec<K>]) -> f64 {
    let start = Barrier::new(traces.len());
    let run = |trace: &[K]| {
        let runtime = reader();
        start.wait();
        runtime.block_on(side.read(trace))
    };
    let nanos: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = traces.iter().map(|t| scope.spawn(|| run(t))).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|nanos| nanos.expect("a reader panicked"))
            .collect()
    });
    nanos.iter().sum::<f64>() / nanos.len() as f64
}

fn reader() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
}
