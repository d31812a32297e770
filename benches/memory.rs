//! What the local level of an entity adds to its keys and values: bytes per entry.
//!
//! Each side fills a process of its own and tells what that added to the resident set; the floor, the
//! keys' texts and the values alone, is taken off. The entity gets its entries by plain reads. Its
//! store is in the same process, but keeps only a few values.
//!
//! `cargo bench --bench memory` takes some seconds. It prints nothing of use where there is no `/proc`.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::env;
use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;

use common::{in_child, key, resident_bytes};
use tidings::store::Memory;
use tidings::{Cache, LocalEngine, Ttl};

type Value = [u8; 32];

/// What an `Arc` adds to a value of its own: two counters.
const ARC_BYTES: usize = 16;
const SIDES: [&str; 5] = [
    "entity",
    "entity on moka",
    "quick_cache",
    "moka::future",
    "papaya",
];

fn main() {
    let args: Vec<String> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--side") {
        let entries = args[at + 2].parse().expect("a number of entries");
        let added = of_one_side(&args[at + 1], entries);
        println!("{}", added as f64 / entries as f64);
        return;
    }
    let entries = if common::quick() { 50_000 } else { 500_000 };
    let measure = |side: &str| in_child(&["--side", side, &entries.to_string()]);
    let floor = measure("keys and values");
    println!("\nbytes per entry beside key and value, {entries} entries");
    for side in SIDES {
        match (measure(side), floor) {
            (Some(bytes), Some(floor)) => println!("{side:<16}{:>6.0}", bytes - floor),
            _ => println!("{side:<16}{:>6}", "unknown"),
        }
    }
}

/// Bytes that a full map adds to this process.
fn of_one_side(side: &str, entries: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match side {
            "entity" => entity(LocalEngine::Quick, entries).await,
            "entity on moka" => entity(LocalEngine::Moka, entries).await,
            "quick_cache" => {
                added(async || {
                    let map = quick_cache::sync::Cache::<_, _>::new(entries + entries / 4);
                    (0..entries).for_each(|n| map.insert(key(n), value(n)));
                    assert_eq!(map.len(), entries, "something was evicted");
                    map
                })
                .await
            }
            "moka::future" => {
                added(async || {
                    let map = moka::future::Cache::new(2 * entries as u64);
                    for n in 0..entries {
                        map.insert(key(n), value(n)).await;
                    }
                    map.run_pending_tasks().await;
                    map
                })
                .await
            }
            "papaya" => {
                added(async || {
                    let map = papaya::HashMap::new();
                    for n in 0..entries {
                        map.pin().insert(key(n), value(n));
                    }
                    map
                })
                .await
            }
            _ => {
                let keys = common::resident_bytes_of_keys(entries);
                keys + (size_of::<Value>() + ARC_BYTES) * entries
            }
        }
    })
}

/// An entity's own share: the store and the connection are there before.
async fn entity(engine: LocalEngine, entries: usize) -> usize {
    let store = Memory::new().max_entries(1_000);
    let cache = Cache::builder("bench").store(store).build().await;
    let cache = cache.expect("the embedded store is always there");
    let load = |key: String| ready(Ok::<_, Infallible>([key.as_bytes()[0]; 32]));
    let build = |name| cache.entity(name, load).ttl(Ttl::Forever);
    // Whatever the runtime and the store keep for reuse is there after some thousand loads.
    let warm = build("warm").capacity(1).build().expect("in range");
    for n in 0..5_000 {
        warm.get(&key(n)).await.expect("it loads");
    }
    let room = (entries + entries / 4) as u64;
    added(async || {
        let full = build("customer").capacity(room).local_engine(engine);
        let full = full.build().expect("in range");
        for n in 0..entries {
            full.get(&key(n)).await.expect("it loads");
            if n % 64 == 0 {
                // Fills run behind the reads, and must not pile up.
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(full.local().len(), entries as u64, "something was evicted");
        full
    })
    .await
}

async fn added<T>(fill: impl AsyncFnOnce() -> T) -> usize {
    let before = resident_bytes();
    let full = fill().await;
    let added = resident_bytes() - before;
    black_box(full);
    added
}

fn value(n: usize) -> Arc<Value> {
    Arc::new([n as u8; 32])
}
