//! What the benches share: how long to run, what to read, and how to compare.
//!
//! Times of a shared machine move by half from run to run, so every bench compares: all sides take
//! turns in short rounds of one process, and what counts is the median of the ratios within a round.

use std::env;
use std::fmt;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use tidings::testing::RedisServer;
use tokio::runtime::{Builder, Runtime};

pub(crate) const SEED: u64 = 0x5EED_0F71_D165_2026;
pub(crate) const ZIPF_EXPONENT: f64 = 1.0;

/// Says what is run on what. True for a run of seconds that shows that the bench works, little else:
/// with `-- --quick`, with `TIDINGS_BENCH_QUICK=1`, or when `cargo test` starts it.
pub(crate) fn quick() -> bool {
    let has = |wanted| env::args().any(|arg| arg == wanted);
    let quick = has("--quick")
        || !has("--bench")
        || env::var_os("TIDINGS_BENCH_QUICK").is_some_and(|on| on != "0");
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let mode = if quick { ", quick" } else { "" };
    println!("seed {SEED:#x}, zipf exponent {ZIPF_EXPONENT}, {cores} cores{mode}");
    quick
}

// --- where to run --------------------------------------------------------------------------------

/// A server of the bench's own; where none can be started, that is said, and the bench is over.
pub(crate) fn server() -> Option<RedisServer> {
    if RedisServer::available() {
        return Some(RedisServer::start().expect("a server"));
    }
    println!("skipped: there is no redis-server");
    None
}

/// What caches run their own tasks on.
pub(crate) fn runtime(threads: usize) -> Runtime {
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

// --- what to read --------------------------------------------------------------------------------

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Draws index `n` with a probability proportional to `1 / (n + 1)^exponent`.
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(items: usize) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=items).map(|n| {
            sum += (n as f64).powf(-ZIPF_EXPONENT);
            sum
        });
        Self(cumulative.collect())
    }

    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let point = random.unit() * self.0.last().expect("at least one item");
        self.0.partition_point(|&sum| sum <= point)
    }
}

/// A key of 33 bytes, as a namespace, an entity and an id make it.
pub(crate) fn key(n: usize) -> String {
    format!("shop:eu-1:customer/{n:014}")
}

/// The keys that one thread reads, out of so many: some more often than others.
pub(crate) fn trace(keys: usize, reads: usize, thread: u64) -> Vec<String> {
    let zipf = Zipf::new(keys);
    let mut random = Random(SEED * thread);
    (0..reads).map(|_| key(zipf.draw(&mut random))).collect()
}

// --- how to compare ------------------------------------------------------------------------------

/// Each round begins with another side, so that none is always the first.
pub(crate) fn rotated(sides: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..sides).map(move |n| (n + round) % sides)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What each side costs, round by round; a first round is not counted.
pub(crate) fn in_rounds<S>(
    sides: &[S],
    rounds: usize,
    mut cost: impl FnMut(&S) -> f64,
) -> Vec<Vec<f64>> {
    let mut costs = vec![Vec::new(); sides.len()];
    for round in 0..=rounds {
        for side in rotated(sides.len(), round) {
            let cost = cost(&sides[side]);
            if round > 0 {
                costs[side].push(cost);
            }
        }
    }
    costs
}

/// The mean of what `run` gives for each trace, each on a thread of its own, all at the same time.
pub(crate) fn on_threads<T: Sync>(traces: &[T], run: impl Fn(&T) -> f64 + Sync) -> f64 {
    let start = Barrier::new(traces.len());
    let run = |trace: &T| {
        start.wait();
        run(trace)
    };
    let costs: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = traces.iter().map(|t| scope.spawn(|| run(t))).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|cost| cost.expect("a reader panicked")).collect()
    });
    costs.iter().sum::<f64>() / costs.len() as f64
}

/// What a reader's thread polls its reads with.
pub(crate) fn reader() -> Runtime {
    let reader = Builder::new_current_thread().enable_time().build();
    reader.expect("a runtime")
}

/// What a side cost in each round, compared with another side's.
pub(crate) struct Ratio {
    pub(crate) median: f64,
    min: f64,
    max: f64,
}

impl Ratio {
    pub(crate) fn of(costs: &[f64], base: &[f64]) -> Self {
        let each = || costs.iter().zip(base).map(|(cost, base)| cost / base);
        Self {
            median: median(each().collect()),
            min: each().fold(f64::INFINITY, f64::min),
            max: each().fold(0.0, f64::max),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        write!(f, "{median:.2} ({min:.2}–{max:.2})")
    }
}

/// Prints a ratio beside what is asked of it.
pub(crate) fn judge(what: &str, ratio: &Ratio, target: &str, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("{what:<52}{ratio:<22}target {target}: {verdict}");
}

// --- memory --------------------------------------------------------------------------------------

/// The number that this program prints when it is started with `args`; `None` if it prints none.
pub(crate) fn in_child(args: &[&str]) -> Option<f64> {
    let child = Command::new(env::current_exe().ok()?)
        .args(args)
        .output()
        .ok()?;
    String::from_utf8(child.stdout).ok()?.trim().parse().ok()
}

/// What the texts of keys take alone, without the `String` that a map keeps in its entry.
pub(crate) fn resident_bytes_of_keys(entries: usize) -> usize {
    let mut texts: Vec<Box<str>> = Vec::with_capacity(entries);
    let before = resident_bytes();
    texts.extend((0..entries).map(|n| key(n).into_boxed_str()));
    let bytes = resident_bytes() - before - size_of::<Box<str>>() * entries;
    black_box(texts);
    bytes
}

/// 0 where there is no `/proc`.
pub(crate) fn resident_bytes() -> usize {
    let Ok(statm) = fs::read_to_string("/proc/self/statm") else {
        return 0;
    };
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    4096 * pages.unwrap_or(0_usize)
}
