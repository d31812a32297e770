//! What tags cost a hit in the local level: `entity.get(&key).await` of entries with one tag, and with
//! three, against entries without.
//!
//! All sides have the same keys and values. There are a thousand tags, so that many entries share each.
//!
//! `cargo bench --bench tagged_hit` takes half a minute.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::time::Instant;

use common::{Ratio, judge, key, median};
use tidings::store::Memory;
use tidings::{Cache, Entity, Ttl};

type Values = Entity<String, [u8; 16], Infallible>;

const TAGS: u64 = 1_000;

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
    rounds: 5,
    reads: 50_000,
    keys: 10_000,
};

fn main() {
    let scale = if common::quick() { QUICK } else { FULL };
    // Runs the cache's own task; the reads have threads of their own.
    let runtime = common::runtime(1);
    let sides = runtime.block_on(sides(scale.keys));
    println!("read of one of {} resident keys", scale.keys);
    for threads in 1..=2 {
        compare(&scale, &sides, threads);
    }
}

fn compare(scale: &Scale, sides: &[(&str, Values)], threads: u64) {
    let traces: Vec<_> = (1..=threads)
        .map(|thread| common::trace(scale.keys, scale.reads, thread))
        .collect();
    let costs = common::in_rounds(sides, scale.rounds, |(_, side)| {
        nanos_per_read(side, &traces)
    });
    println!("{threads} thread(s), ns and ratio to no tags");
    for ((name, _), cost) in sides.iter().zip(&costs) {
        let ratio = Ratio::of(cost, &costs[0]);
        println!("  {name:<14}{:>6.0}   {ratio}", median(cost.clone()));
    }
    let ratio = Ratio::of(&costs[1], &costs[0]);
    judge("  one tag / no tags", &ratio, "≤ 1.3", ratio.median <= 1.3);
}

async fn sides(keys: usize) -> Vec<(&'static str, Values)> {
    let cache = Cache::builder("bench").store(Memory::new()).build().await;
    let cache = cache.expect("the embedded store is always there");
    let mut sides = Vec::new();
    for (name, tags) in [("no tags", 0), ("one tag", 1), ("three tags", 3)] {
        let load = |_: String| ready(Ok::<_, Infallible>([7; 16]));
        let entity = cache
            .entity(format!("customer-{tags}"), load)
            .tags(move |key: &String, _| {
                let number = number_of(key) % TAGS;
                (0..tags).map(move |n| format!("tag-{n}:{number}"))
            })
            .ttl(Ttl::Forever)
            .capacity(2 * keys as u64)
            .build()
            .expect("the options are in range");
        for key in (0..keys).map(key) {
            entity.get(&key).await.expect("it loads");
        }
        let resident = (0..keys).all(|n| entity.peek(&key(n)).is_some());
        assert!(resident, "something was evicted");
        sides.push((name, entity));
    }
    sides
}

/// Any number that a key always gives.
fn number_of(key: &str) -> u64 {
    key.bytes()
        .fold(7, |hash: u64, byte| hash.wrapping_mul(31) + u64::from(byte))
}

fn nanos_per_read(side: &Values, traces: &[Vec<String>]) -> f64 {
    common::on_threads(traces, |trace| {
        let runtime = common::reader();
        let begin = Instant::now();
        runtime.block_on(async {
            for key in trace {
                black_box(side.get(black_box(key)).await.expect("it loads"));
            }
        });
        begin.elapsed().as_nanos() as f64 / trace.len() as f64
    })
}
