//! What a hit in the local level costs: `entity.get(&key).await` against the bare maps.
//!
//! The entity hashes the key, finds the entry, and asks the coherence rules and the clock whether it
//! may be served; the maps only find it. Every side has the same `String` keys and `Arc` values, its
//! own default hasher, and room for all keys; all that is read is resident. In a second row each tenth
//! read is of a key that is not there, which the entity answers with a peek: a `get` would load it.
//!
//! `cargo bench --bench local_hit` takes half a minute.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use common::{Random, Ratio, SEED, Zipf, judge, key, median};
use tidings::store::Memory;
use tidings::{Cache, Entity, Ttl};

type Value = [u8; 16];

struct Scale {
    rounds: usize,
    reads: usize,
    keys: usize,
}

const FULL: Scale = Scale {
    rounds: 41,
    reads: 400_000,
    keys: 100_000,
};
const QUICK: Scale = Scale {
    rounds: 3,
    reads: 50_000,
    keys: 10_000,
};

fn main() {
    let scale = if common::quick() { QUICK } else { FULL };
    // Runs the cache's own task; the reads have threads of their own.
    let runtime = common::runtime(1);
    let sides = runtime.block_on(sides(scale.keys));
    for (name, hits) in [("all hit", 1.0), ("every tenth is not there", 0.9)] {
        compare(&scale, &sides, name, hits);
    }
}

// --- sides ---------------------------------------------------------------------------------------

enum Side {
    Entity(Entity<String, Value, Infallible>),
    Quick(quick_cache::sync::Cache<String, Arc<Value>, quick_cache::UnitWeighter, Foldhash>),
    Moka(moka::future::Cache<String, Arc<Value>>),
    Papaya(papaya::HashMap<String, Arc<Value>>),
}

/// What quick_cache hashes with by default; we build it without.
type Foldhash = foldhash::quality::RandomState;

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Self::Entity(_) => "entity",
            Self::Quick(_) => "quick_cache",
            Self::Moka(_) => "moka::future",
            Self::Papaya(_) => "papaya",
        }
    }

    /// Nanoseconds per read.
    async fn read(&self, trace: &[Read]) -> f64 {
        // The loops are apart, so that no side pays for a branch.
        let begin = match self {
            Self::Entity(entity) => {
                let begin = Instant::now();
                for Read { key, there } in trace {
                    if *there {
                        black_box(entity.get(black_box(key)).await.expect("it loads"));
                    } else {
                        black_box(entity.peek(black_box(key)));
                    }
                }
                begin
            }
            Self::Quick(map) => {
                let begin = Instant::now();
                for Read { key, .. } in trace {
                    black_box(map.get(black_box(key)));
                }
                begin
            }
            Self::Moka(map) => {
                let begin = Instant::now();
                for Read { key, .. } in trace {
                    black_box(map.get(black_box(key)).await);
                }
                begin
            }
            Self::Papaya(map) => {
                let begin = Instant::now();
                for Read { key, .. } in trace {
                    black_box(map.pin().get(black_box(key)).cloned());
                }
                begin
            }
        };
        begin.elapsed().as_nanos() as f64 / trace.len() as f64
    }
}

async fn sides(keys: usize) -> Vec<Side> {
    let cache = Cache::builder("bench").store(Memory::new()).build().await;
    let load = |_: String| ready(Ok::<_, Infallible>([7; 16]));
    let entity = cache
        .expect("the embedded store is always there")
        .entity("customer", load)
        .ttl(Ttl::Forever)
        .capacity(2 * keys as u64)
        .build()
        .expect("the options are in range");
    // Room to spare: no shard may be so full that it evicts.
    let quick = quick_cache::sync::Cache::with(
        2 * keys,
        2 * keys as u64,
        quick_cache::UnitWeighter,
        Foldhash::default(),
        Default::default(),
    );
    let moka = moka::future::Cache::new(2 * keys as u64);
    let papaya = papaya::HashMap::new();
    for key in (0..keys).map(key) {
        let value = entity.get(&key).await.expect("it loads");
        papaya.pin().insert(key.clone(), Arc::new(*value));
        quick.insert(key.clone(), Arc::new(*value));
        moka.insert(key, Arc::new(*value)).await;
    }
    moka.run_pending_tasks().await;
    let resident =
        (0..keys).all(|n| entity.peek(&key(n)).is_some() && quick.peek(&key(n)).is_some());
    assert!(resident, "something was evicted");
    vec![
        Side::Quick(quick),
        Side::Entity(entity),
        Side::Moka(moka),
        Side::Papaya(papaya),
    ]
}

// --- reads ---------------------------------------------------------------------------------------

struct Read {
    key: String,
    there: bool,
}

fn trace(scale: &Scale, hits: f64, thread: u64) -> Vec<Read> {
    let zipf = Zipf::new(scale.keys);
    let mut random = Random(SEED * thread);
    let pick = |_| {
        let n = zipf.draw(&mut random);
        let there = random.unit() < hits;
        Read {
            key: key(if there { n } else { scale.keys + n }),
            there,
        }
    };
    (0..scale.reads).map(pick).collect()
}

fn compare(scale: &Scale, sides: &[Side], name: &str, hits: f64) {
    let traces: Vec<_> = (1..=2).map(|thread| trace(scale, hits, thread)).collect();
    println!("\nread of one of {} resident keys, {name}", scale.keys);
    for threads in 1..=2 {
        let costs = common::in_rounds(sides, scale.rounds, |side| {
            common::on_threads(&traces[..threads], |trace| {
                common::reader().block_on(side.read(trace))
            })
        });
        println!("{threads} thread(s), ns and ratio to the bare quick_cache");
        for (side, cost) in sides.iter().zip(&costs) {
            let ratio = Ratio::of(cost, &costs[0]);
            println!(
                "  {:<14}{:>6.0}   {ratio}",
                side.name(),
                median(cost.clone())
            );
        }
        if hits == 1.0 {
            let (map, future) = (
                Ratio::of(&costs[1], &costs[0]),
                Ratio::of(&costs[1], &costs[2]),
            );
            judge("  entity / quick_cache", &map, "≤ 1.6", map.median <= 1.6);
            judge(
                "  entity / moka::future",
                &future,
                "≤ 0.35",
                future.median <= 0.35,
            );
        }
    }
}
