//! What it costs a local hit to be seen: `entity.get(&key).await` counted, against the same uncounted,
//! without a recorder and with one.
//!
//! The uncounted entity exists for this bench alone (a switch of the feature `testing`). The recorder is
//! that of a Prometheus exporter; there can be one in a process, so the second half of the rounds has it.
//! Then both sides are exported four times a second, and the counted one counts besides.
//!
//! `cargo bench --all-features --bench telemetry` takes half a minute.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use common::{Ratio, judge, key, median};
use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::time::Instant;
use tidings::store::Memory;
use tidings::{Cache, Entity, Ttl};

type Customers = Entity<String, [u8; 16], Infallible>;

struct Scale {
    rounds: usize,
    reads: usize,
    keys: usize,
}

const FULL: Scale = Scale {
    rounds: 41,
    reads: 400_000,
    keys: 1_000,
};
const QUICK: Scale = Scale {
    rounds: 3,
    reads: 50_000,
    keys: 1_000,
};

fn main() {
    let scale = if common::quick() { QUICK } else { FULL };
    // Runs the caches' own tasks; the reads have threads of their own.
    let runtime = common::runtime(1);
    let sides =
        runtime.block_on(async { [entity(&scale, false).await, entity(&scale, true).await] });
    compare(&scale, &sides, "without a recorder", 1.05);
    #[cfg(feature = "metrics")]
    {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder();
        let recorder = recorder.expect("it is the first");
        compare(&scale, &sides, "with a recorder", 1.25);
        assert!(
            !recorder.render().is_empty() || common::quick(),
            "it has recorded"
        );
    }
    let counted = [&sides[0], &sides[1]].map(|side| side.stats().hits);
    assert!(
        counted[0] == 0 && counted[1] > 0,
        "one side counts: {counted:?}"
    );
}

async fn entity(scale: &Scale, counted: bool) -> Customers {
    let cache = Cache::builder("bench").store(Memory::new()).build().await;
    let cache = cache.expect("the embedded store is always there");
    let load = |_: String| ready(Ok::<_, Infallible>([7; 16]));
    let entity = cache.entity("customer", load).ttl(Ttl::Forever);
    let entity = entity.capacity(2 * scale.keys as u64);
    let entity = if counted { entity } else { entity.uncounted() };
    let entity = entity.build().expect("the options are in range");
    for n in 0..scale.keys {
        entity.get(&key(n)).await.expect("it loads");
    }
    entity
}

fn compare(scale: &Scale, sides: &[Customers; 2], name: &str, most: f64) {
    let traces: Vec<_> = (1..=2)
        .map(|thread| common::trace(scale.keys, scale.reads, thread))
        .collect();
    println!("\nhit of one of {} resident keys, {name}", scale.keys);
    for threads in 1..=2 {
        let costs = common::in_rounds(sides, scale.rounds, |side| {
            common::on_threads(&traces[..threads], |trace| nanos_per_read(side, trace))
        });
        let ratio = Ratio::of(&costs[1], &costs[0]);
        let [uncounted, counted] = [0, 1].map(|side| median(costs[side].clone()));
        println!("{threads} thread(s): {uncounted:.1} ns uncounted, {counted:.1} ns counted");
        let target = format!("≤ {most}");
        judge(
            "  counted / uncounted",
            &ratio,
            &target,
            ratio.median <= most,
        );
    }
}

fn nanos_per_read(side: &Customers, trace: &[String]) -> f64 {
    common::reader().block_on(async {
        let begin = Instant::now();
        for key in trace {
            black_box(side.get(black_box(key)).await.expect("it is there"));
        }
        begin.elapsed().as_nanos() as f64 / trace.len() as f64
    })
}
