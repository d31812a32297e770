//! The measurements behind the default of `LocalEngine`.
//!
//! Three tables: the cost of a read at one and two threads, the share of hits that each policy
//! gets from three traces, and the memory per entry. papaya, a map without bound or policy, is the
//! floor that no cache goes below.
//!
//! All sides run in one process in interleaved rounds, and figures are medians; those in brackets
//! are medians of the ratios within a round, which noise from outside hardly moves.
//!
//! `cargo bench --bench engines` takes a minute. With `-- --quick`, with `TIDINGS_BENCH_QUICK=1`, or
//! when `cargo test` starts it, it takes some seconds and shows that the bench works, little else.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::env;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::{Random, SEED, Zipf, in_child, key, median, resident_bytes, rotated};
use tidings::LocalEngine;
use tidings::probe::LocalProbe;
use xxhash_rust::xxh3::xxh3_64;

fn main() {
    let args: Vec<String> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--memory") {
        return memory_of_one_side(&args[at + 1], &args[at + 2]);
    }
    let scale = if common::quick() {
        Scale::QUICK
    } else {
        Scale::FULL
    };
    read_cost(&scale);
    hit_ratio(&scale);
    memory(&scale);
}

struct Scale {
    rounds: usize,
    reads: usize,
    universe: usize,
    trace: usize,
    resident: usize,
}

impl Scale {
    const FULL: Self = Self {
        rounds: 21,
        reads: 1_000_000,
        universe: 100_000,
        trace: 3_000_000,
        resident: 1_000_000,
    };
    const QUICK: Self = Self {
        rounds: 3,
        reads: 100_000,
        universe: 20_000,
        trace: 200_000,
        resident: 100_000,
    };
}

// --- sides ---------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Quick,
    Moka,
    Papaya,
}

const ENGINES: [Side; 2] = [Side::Quick, Side::Moka];
const SIDES: [Side; 3] = [Side::Quick, Side::Moka, Side::Papaya];

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick_cache",
            Self::Moka => "moka",
            Self::Papaya => "papaya",
        }
    }

    fn map(self, entries: usize) -> Map {
        let entries = entries as u64;
        match self {
            Self::Quick => Map::Local(LocalProbe::new(LocalEngine::Quick, entries)),
            Self::Moka => Map::Local(LocalProbe::new(LocalEngine::Moka, entries)),
            Self::Papaya => Map::Papaya(papaya::HashMap::default()),
        }
    }
}

type Value = Arc<[u8]>;

enum Map {
    Local(LocalProbe),
    Papaya(papaya::HashMap<String, Value, BuildHasherDefault<Xxh3>>),
}

impl Map {
    #[inline]
    fn get(&self, key: &String) -> Option<Value> {
        match self {
            Self::Local(local) => local.get(key),
            Self::Papaya(map) => map.pin().get(key).cloned(),
        }
    }

    fn insert(&self, key: &str, value: &Value) {
        match self {
            Self::Local(local) => local.insert(key.to_owned(), Arc::clone(value)),
            Self::Papaya(map) => {
                map.pin().insert(key.to_owned(), Arc::clone(value));
            }
        }
    }
}

/// The hash that the probe computes, for papaya.
#[derive(Default)]
struct Xxh3(u64);

impl Hasher for Xxh3 {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u8(&mut self, _end_of_string: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

// --- traces --------------------------------------------------------------------------------------

fn keys(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(key).collect()
}

fn value() -> Value {
    Arc::from(&[7; 16][..])
}

// --- cost of a read ------------------------------------------------------------------------------

fn read_cost(scale: &Scale) {
    let present = keys(0, scale.universe);
    let absent = keys(scale.universe, scale.universe);
    let zipf = Zipf::new(scale.universe);
    // Nine reads in ten hit, whatever the policy: all that is looked for is resident, or never was.
    let traces: Vec<Vec<&String>> = (1..=2)
        .map(|thread| {
            let mut random = Random(SEED * thread);
            let mut pick = |_| {
                let n = zipf.draw(&mut random);
                let hit = random.unit() < 0.9;
                if hit { &present[n] } else { &absent[n] }
            };
            (0..scale.reads).map(&mut pick).collect()
        })
        .collect();
    let maps = SIDES.map(|side| {
        // Room to spare: no shard may be so full that it evicts.
        let map = side.map(2 * scale.universe);
        present.iter().for_each(|key| map.insert(key, &value()));
        map
    });

    println!(
        "\nns per read, 90 % hits, zipf over {} keys",
        scale.universe
    );
    println!("{:<14}{:>22}{:>22}", "", "1 thread", "2 threads");
    let mut cells = vec![[const { Vec::new() }; 2]; SIDES.len()];
    for round in 0..=scale.rounds {
        for threads in 1..=2 {
            for side in rotated(SIDES.len(), round) {
                let cost = nanos_per_read(&maps[side], &traces[..threads]);
                if round > 0 {
                    cells[side][threads - 1].push(cost);
                }
            }
        }
    }
    for (side, cell) in SIDES.iter().zip(&cells) {
        print!("{:<14}", side.name());
        for (costs, base) in cell.iter().zip(&cells[0]) {
            let ratios = costs.iter().zip(base).map(|(cost, base)| cost / base);
            let ratio = median(ratios.collect());
            let nanos = format!("{:.0} [{ratio:.2}]", median(costs.clone()));
            print!("{nanos:>22}");
        }
        println!();
    }
}

fn nanos_per_read(map: &Map, traces: &[Vec<&String>]) -> f64 {
    let start = Barrier::new(traces.len());
    let mut times: Vec<Duration> = Vec::new();
    thread::scope(|scope| {
        let run = |trace: &'_ Vec<&String>| {
            start.wait();
            let begin = Instant::now();
            for key in trace {
                black_box(map.get(black_box(key)));
            }
            begin.elapsed()
        };
        let threads: Vec<_> = traces.iter().map(|t| scope.spawn(move || run(t))).collect();
        times.extend(
            threads
                .into_iter()
                .map(|t| t.join().expect("a reader panicked")),
        );
    });
    let total: Duration = times.iter().sum();
    total.as_nanos() as f64 / traces.iter().map(Vec::len).sum::<usize>() as f64
}

// --- hit ratio -----------------------------------------------------------------------------------

fn hit_ratio(scale: &Scale) {
    println!(
        "\nhit ratio in %, capacity 1 % and 5 % of {} keys",
        scale.universe
    );
    print!("{:<26}", "");
    for side in ENGINES {
        print!("{:>14} 1%{:>14} 5%", side.name(), side.name());
    }
    println!();
    let capacities = [scale.universe / 100, scale.universe / 20];
    for (name, trace) in [
        ("zipf", zipf_trace as fn(&Scale, usize) -> Vec<u32>),
        ("zipf with scans", scan_trace),
        ("loop over all keys", |scale, _| {
            loop_trace(scale, scale.universe)
        }),
        ("loop over 1.25 capacities", |scale, capacity| {
            loop_trace(scale, capacity + capacity / 4)
        }),
    ] {
        print!("{name:<26}");
        for side in ENGINES {
            for capacity in capacities {
                let ratio = hits(side, capacity, &trace(scale, capacity));
                print!("{:>17.1}", 100.0 * ratio);
            }
        }
        println!();
    }
}

fn zipf_trace(scale: &Scale, _capacity: usize) -> Vec<u32> {
    let (zipf, mut random) = (Zipf::new(scale.universe), Random(SEED));
    (0..scale.trace)
        .map(|_| zipf.draw(&mut random) as u32)
        .collect()
}

/// After each two capacities of zipf reads, a scan reads as many keys as one capacity, none of them
/// ever again: a third of the trace cannot hit.
fn scan_trace(scale: &Scale, capacity: usize) -> Vec<u32> {
    let (zipf, mut random) = (Zipf::new(scale.universe), Random(SEED));
    let mut never_seen = scale.universe as u32..;
    let mut trace = Vec::with_capacity(scale.trace);
    while trace.len() < scale.trace {
        trace.extend((0..2 * capacity).map(|_| zipf.draw(&mut random) as u32));
        trace.extend(never_seen.by_ref().take(capacity));
    }
    trace
}

fn loop_trace(scale: &Scale, length: usize) -> Vec<u32> {
    (0..length as u32).cycle().take(scale.trace).collect()
}

/// Reads the trace through a map that loads what it misses; the share of hits.
fn hits(side: Side, capacity: usize, trace: &[u32]) -> f64 {
    let (map, value) = (side.map(capacity), value());
    let mut hits = 0_usize;
    for n in trace {
        let key = format!("customer/{n}");
        match map.get(&key) {
            Some(_) => hits += 1,
            None => map.insert(&key, &value),
        }
    }
    hits as f64 / trace.len() as f64
}

// --- memory --------------------------------------------------------------------------------------

/// What each side adds to the resident set in a process of its own, less what the keys take alone.
fn memory(scale: &Scale) {
    println!(
        "\nbytes per entry beside the key's text and the value, {} entries",
        scale.resident
    );
    let floor = memory_in_child("keys", scale.resident);
    for side in SIDES {
        match (memory_in_child(side.name(), scale.resident), floor) {
            (Some(bytes), Some(floor)) => println!("{:<14}{:>8.0}", side.name(), bytes - floor),
            _ => println!("{:<14}{:>8}", side.name(), "unknown"),
        }
    }
}

fn memory_in_child(side: &str, entries: usize) -> Option<f64> {
    in_child(&["--memory", side, &entries.to_string()])
}

fn memory_of_one_side(side: &str, entries: &str) {
    let entries: usize = entries.parse().expect("a number of entries");
    let bytes = match SIDES.into_iter().find(|known| known.name() == side) {
        None => common::resident_bytes_of_keys(entries),
        Some(side) => {
            let (before, value) = (resident_bytes(), value());
            let map = side.map(entries + entries / 4);
            (0..entries).for_each(|n| map.insert(&key(n), &value));
            if let Map::Local(local) = &map {
                assert_eq!(local.len(), entries as u64, "something was evicted");
            }
            let bytes = resident_bytes() - before;
            black_box(map);
            bytes
        }
    };
    println!("{}", bytes as f64 / entries as f64);
}
