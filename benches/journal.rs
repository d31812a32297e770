//! What a journal costs: an invalidation that the store acknowledges, and one that is told to be pending,
//! with a journal and without; and what each record would cost if it had to reach the disk.
//!
//! The store is the embedded one, which answers at once: with one behind a network the ratio of the first
//! is nearer to one. The file is in the folder for temporary files; on a file system in memory, syncing
//! costs nothing and says nothing.
//!
//! `cargo bench --bench journal` takes some seconds.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Ratio, judge, median, rotated};
use tidings::store::Memory;
use tidings::{Cache, Entity};

/// As long as the record of a key of 33 bytes.
const RECORD: [u8; 96] = [7; 96];

fn main() {
    let (rounds, calls) = if common::quick() { (3, 20) } else { (31, 200) };
    let folder = std::env::temp_dir().join(format!("tidings-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let runtime = common::runtime(2);
    runtime.block_on(async {
        let pods = [
            Pod::new(None).await,
            Pod::new(Some(folder.join("journal"))).await,
        ];
        let mut costs = [const { Vec::new() }; 6];
        for round in 0..=rounds {
            for side in rotated(2, round) {
                let acknowledged = pods[side].acknowledged(calls).await;
                let pending = pods[side].pending(calls).await;
                let written = written(&folder, calls, side == 1);
                if round > 0 {
                    costs[side].push(acknowledged);
                    costs[2 + side].push(pending);
                    costs[4 + side].push(written);
                }
            }
        }
        let of = |first: usize| Ratio::of(&costs[first + 1], &costs[first]);
        let at = |n: usize| median(costs[n].clone());
        println!("\n{:<40}{:>12}{:>12}", "µs, median", "without", "with");
        println!(
            "{:<40}{:>12.1}{:>12.1}",
            "acknowledged, journal",
            at(0),
            at(1)
        );
        println!("{:<40}{:>12.1}{:>12.1}", "pending, journal", at(2), at(3));
        println!(
            "{:<40}{:>12.1}{:>12.1}",
            "a bare record, synced",
            at(4),
            at(5)
        );
        let (acknowledged, synced) = (of(0), of(4));
        judge(
            "acknowledged: journal / none",
            &acknowledged,
            "≤ 1.3",
            acknowledged.median <= 1.3,
        );
        println!("{:<52}{}", "pending: journal / none", of(2));
        println!("{:<52}{synced}", "a bare record: synced / not");
    });
    std::fs::remove_dir_all(&folder).expect("it goes");
}

struct Pod {
    store: Memory,
    cache: Cache,
    numbers: Entity<u64, u64, Infallible>,
}

impl Pod {
    async fn new(journal: Option<PathBuf>) -> Self {
        let store = Memory::new();
        let mut builder = Cache::builder("bench").store(store.clone());
        if let Some(path) = journal {
            builder = builder.journal(path);
        }
        let cache = builder.build().await.expect("a cache");
        let load = |key: u64| async move { Ok::<_, Infallible>(key) };
        let numbers = cache.entity("number", load).build().expect("an entity");
        Self {
            store,
            cache,
            numbers,
        }
    }

    async fn acknowledged(&self, calls: u64) -> f64 {
        let began = Instant::now();
        for key in 0..calls {
            self.numbers.invalidate(&key).await.expect("acknowledged");
        }
        micros(began, calls)
    }

    /// Other keys each time, so that each is a record.
    async fn pending(&self, calls: u64) -> f64 {
        self.store.faults().set_down(true);
        while self.numbers.invalidate(&u64::MAX).await.is_ok() {}
        let began = Instant::now();
        for key in 0..calls {
            self.numbers.invalidate(&key).await.expect_err("pending");
        }
        let cost = micros(began, calls);
        self.store.faults().set_down(false);
        while self.cache.health().pending > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cost
    }
}

fn written(folder: &Path, calls: u64, synced: bool) -> f64 {
    let mut file = File::create(folder.join("bare")).expect("a file");
    let began = Instant::now();
    for _ in 0..calls {
        file.write_all(&RECORD).expect("written");
        if synced {
            file.sync_data().expect("synced");
        }
    }
    micros(began, calls)
}

fn micros(began: Instant, calls: u64) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / calls as f64
}
