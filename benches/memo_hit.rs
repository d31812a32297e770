//! What a hit of a memo costs: `memo.get(&key).await` against the engine's own `get`.
//!
//! The memo hashes the key, finds the entry, asks whether it may be served, and counts the hit. The map
//! only finds it, and knows of no time; so there are two of each: a memo whose values expire, beside the
//! map of values with the moment at which they end, which a caller compares with the clock (the kernel's
//! coarse one, the cheapest there is); and a memo whose values never expire, beside the map of nothing but
//! values. All have the same keys and `Arc` values, and room for all keys; the maps have the library's default
//! hasher. Their locks are the standard library's, as this crate builds it; by default they would be
//! parking_lot's.
//!
//! `cargo bench --bench memo_hit` takes a minute and a half.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::ready;
use std::hash::Hash;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Random, Ratio, SEED, Zipf, judge, median};
use tidings::store::Memory;
use tidings::{Cache, Clock, Memo, Millis, Ttl};
use tokio::runtime::Runtime;

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
    let runtime = common::reader();
    for keys in [MANY, FEW] {
        compare(&scale, &runtime, "33-byte text", keys, common::key);
        compare(&scale, &runtime, "number", keys, |n| n as u64);
    }
}

// --- sides ---------------------------------------------------------------------------------------

trait Key: Hash + Eq + Clone + Debug + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Debug + Send + Sync + 'static> Key for K {}

enum Side<K> {
    Quick(Quick<K, Value>),
    /// With the millisecond at which each value ends.
    Timed(Quick<K, (Value, Millis)>),
    Memo(&'static str, Memo<K, Value, Infallible>),
}

type Quick<K, V> = quick_cache::sync::Cache<K, V, quick_cache::UnitWeighter, Foldhash>;

/// What quick_cache hashes with by default; we build it without.
type Foldhash = foldhash::quality::RandomState;

impl<K: Key> Side<K> {
    fn name(&self) -> &'static str {
        match self {
            Self::Quick(_) => "quick_cache",
            Self::Timed(_) => "quick_cache, TTL by hand",
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
            Self::Timed(map) => {
                let begin = Instant::now();
                for key in trace {
                    let found = map.get(black_box(key));
                    black_box(found.filter(|(_, ends)| now() < *ends));
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

/// Of the kernel's coarse clock.
#[inline]
fn now() -> Millis {
    Clock::default().now()
}

/// Room to spare: no shard may be so full that it evicts.
fn quick<K: Key, V: Clone>(keys: usize) -> Quick<K, V> {
    quick_cache::sync::Cache::with(
        2 * keys,
        2 * keys as u64,
        quick_cache::UnitWeighter,
        Foldhash::default(),
        Default::default(),
    )
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
    let (bare, timed) = (quick(keys), quick(keys));
    let (ends, others) = (now() + Duration::from_secs(3600), values());
    let values = values();
    for key in (0..keys).map(&key) {
        expiring.get(&key).await.expect("it computes");
        lasting.get(&key).await.expect("it computes");
        bare.insert(key.clone(), Value::clone(&values[&key]));
        timed.insert(key.clone(), (Value::clone(&others[&key]), ends));
    }
    let resident = (0..keys).map(&key).all(|key| {
        let memos = expiring.peek(&key).is_some() && lasting.peek(&key).is_some();
        memos && bare.peek(&key).is_some() && timed.peek(&key).is_some()
    });
    assert!(resident, "something was evicted");
    vec![
        Side::Quick(bare),
        Side::Memo("memo, no TTL", lasting),
        Side::Timed(timed),
        Side::Memo("memo", expiring),
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
        let costs = common::in_rounds(&sides, scale.rounds, |side| {
            common::on_threads(&traces[..threads], |trace| {
                common::reader().block_on(side.read(trace))
            })
        });
        println!("{threads} thread(s), ns and ratio to the bare quick_cache");
        for (side, cost) in sides.iter().zip(&costs) {
            let ratio = Ratio::of(cost, &costs[0]);
            let nanos = median(cost.clone());
            println!("  {:<26}{nanos:>6.0}   {ratio}", side.name());
        }
        for (memo, engine) in [(1, 0), (3, 2)] {
            let name = format!("  {} / {}", sides[memo].name(), sides[engine].name());
            let ratio = Ratio::of(&costs[memo], &costs[engine]);
            judge(&name, &ratio, "≤ 1.3", ratio.median <= 1.3);
        }
    }
}
