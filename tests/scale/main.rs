//! Scenario 41 of `docs/guarantees.md` in virtual time: a thousand pods, a hundred thousand invalidations a
//! second, on a cluster of eight shards with relays.
//!
//! `TIDINGS_SCALE_MS` makes the span longer (2 s), `TIDINGS_SCALE_EVERY_MS` changes the pace of the
//! relays (50 ms), `TIDINGS_SCALE_SEED` the seed.

mod model;
mod world;

use model::{PER_MESSAGE, PER_TICK, SCRIPT, Sent};
use std::time::Duration;
use tidings::coherence::{Epoch, Hint, Kind, Lane, LogEntry, Nonce};
use world::{Outcome, Plan, World, percentile};

const PODS: usize = 1000;
const RATE: f64 = 100_000.0;
/// What a cluster has.
const LANES: u16 = 16;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn plan() -> Plan {
    let seed = from_env("TIDINGS_SCALE_SEED", 0x5EED_0041);
    println!("seed {seed:#x}");
    Plan {
        seed,
        pods: PODS,
        followed: 10,
        nodes: 8,
        lanes: LANES,
        rate: RATE,
        every: Duration::from_millis(from_env("TIDINGS_SCALE_EVERY_MS", 50)),
        span: Duration::from_millis(from_env("TIDINGS_SCALE_MS", 2_000)),
    }
}

fn report(plan: &Plan, outcome: &Outcome) {
    let seconds = outcome.span.as_secs_f64();
    let nodes = outcome.spent.len() as f64;
    let part = |of: fn(&model::Spent) -> f64| {
        let sum: f64 = outcome.spent.iter().map(of).sum();
        sum / nodes / seconds / 1e7
    };
    let egress: f64 = outcome.spent.iter().map(|node| node.egress).sum();
    println!(
        "{} nodes, every {:?}: CPU of a node {:.0} % (busiest {:.0} %): fan-out {:.1}, scripts {:.1}, flushes {:.1}, \
         polls {:.1}, log reads {:.1}; {:.0} MB/s out of each",
        plan.nodes,
        plan.every,
        part(model::Spent::all),
        outcome.load()[0] * 100.0,
        part(|node| node.fan_out),
        part(|node| node.scripts),
        part(|node| node.flushes),
        part(|node| node.polls),
        part(|node| node.log_reads),
        egress / nodes / seconds / 1e6,
    );
    let of = |sorted: &[f32]| [50, 99, 100].map(|at| percentile(sorted, at));
    let [p50, p99, most] = of(&outcome.lags);
    println!("applied after p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms");
    let [p50, p99, most] = of(&outcome.acks);
    println!("acknowledged after p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms");
    println!(
        "{} logged, {} reads of the log by {} pods",
        outcome.logged, outcome.log_reads, plan.followed
    );
}

#[test]
fn a_thousand_pods_and_a_hundred_thousand_invalidations_a_second_fit_eight_shards() {
    let plan = plan();
    let outcome = World::run(plan);
    report(&plan, &outcome);
    let expected = RATE * plan.span.as_secs_f64();
    assert!((outcome.logged as f64 / expected - 1.0).abs() < 0.1);
    assert!(outcome.load()[0] < 0.6, "of a core, for the busiest node");
    assert!(percentile(&outcome.lags, 99) < 100.0, "until applied");
    assert_eq!(outcome.flushes, 0, "no pod falls out of step");
}

/// A simulation in which everything fits shows nothing.
#[test]
fn the_same_on_a_quarter_of_the_shards_does_not_fit() {
    let plan = Plan {
        nodes: 2,
        followed: 2,
        span: Duration::from_millis(200),
        ..plan()
    };
    let outcome = World::run(plan);
    report(&plan, &outcome);
    assert!(outcome.load()[0] > 1.0, "more than there is");
}

/// What publishing each at once would take, on one node: from a server so busy that all messages share a
/// write with others, to one that writes each by itself.
#[test]
fn a_thousand_pods_and_a_hundred_thousand_hints_a_second_do_not_fit_one_node() {
    let entry = LogEntry {
        seq: 1,
        kind: Kind::Invalidate,
        prev: Nonce(1),
        nonce: Nonce(2),
        hashes: vec![1, 2],
    };
    let hint = Hint {
        lane: Lane(0),
        epoch: Epoch(1),
        server_ms: 1,
        entry,
    };
    let mut sent = Sent::default();
    sent.add(hint.encode().len());
    let cores = |nanos: f64| (PODS as f64 * nanos + SCRIPT) * RATE / 1e9;
    let (most, least) = (cores(sent.cost()), cores(sent.cost() - PER_TICK));
    println!(
        "immediate on one node: {least:.0} to {most:.0} cores, {:.1} GB/s",
        PODS as f64 * RATE * sent.bytes as f64 / 1e9
    );
    assert!(least > 1.0, "even if no message needs a write of its own");
    assert!(most > least && PER_MESSAGE > 0.0);
}
