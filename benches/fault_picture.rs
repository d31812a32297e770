//! A picture of a fault and its healing: hits, loads, lag and the bound while Redis is killed and comes
//! back. Draws `docs/pictures/fault.svg` from what was measured.
//!
//! Three pods in this process, on a Redis server of their own, read the same records as fast as a busy
//! service does; one of them commits a change every 20 ms and invalidates it. The source is in this
//! process, so that it is known for every read how long ago what it gave had been replaced.
//!
//! `cargo bench --bench fault_picture` takes twelve seconds; it is skipped where there is no Redis. A
//! short run draws into `target/tmp` instead.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;
#[path = "fault_picture/draw.rs"]
mod draw;
#[path = "fault_picture/run.rs"]
mod run;

use std::path::Path;
use std::time::Duration;
use tidings::testing::RedisServer;

/// What happens when, counted from the beginning.
pub(crate) struct Plan {
    pub(crate) kill: Duration,
    pub(crate) restart: Duration,
    pub(crate) end: Duration,
}

const FULL: Plan = Plan {
    kill: Duration::from_secs(3),
    restart: Duration::from_secs(6),
    end: Duration::from_secs(12),
};
const QUICK: Plan = Plan {
    kill: Duration::from_millis(700),
    restart: Duration::from_millis(1700),
    end: Duration::from_millis(4000),
};

fn main() {
    let quick = common::quick();
    if !RedisServer::available() {
        println!("skipped: there is no redis-server");
        return;
    }
    let (plan, folder) = match quick {
        true => (QUICK, concat!(env!("CARGO_TARGET_TMPDIR"), "/pictures")),
        false => (FULL, concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures")),
    };
    let runtime = common::runtime(2);
    let story = runtime.block_on(run::run(&plan));
    let file = Path::new(folder).join("fault.svg");
    std::fs::create_dir_all(folder).expect("a folder for pictures");
    std::fs::write(&file, draw::draw(&plan, &story)).expect("the picture can be written");
    let worst = story.slices.iter().map(|slice| slice.staleness);
    let worst = worst.max().unwrap_or_default();
    let reads: u64 = story
        .slices
        .iter()
        .map(|slice| slice.hits + slice.stored + slice.loads)
        .sum();
    println!("{reads} reads; the stalest gave what had been replaced {worst:?} before");
    println!(
        "the bound is {:?}; drawn into {}",
        story.bound,
        file.display()
    );
}
