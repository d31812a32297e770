//! What an invalidation costs the server, by the way its hint is published: server CPU (`INFO cpu`) and
//! messages for each invalidation, and how long until another pod has dropped the entry.
//!
//! Bare subscribers stand for pods: each is a connection that reads what it is sent, which is all that a
//! server sees of one. Two caches run as pods do; one invalidates at a steady rate, in bursts of a
//! millisecond, the other is looked at. All are in one process, beside one server.
//!
//! `cargo bench --bench publishing` takes a minute or two and starts a Redis server; it is skipped where
//! there is none.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use common::{Ratio, judge, key, median, rotated};
use futures_util::future::join_all;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::store::{Publish, Redis};
use tidings::testing::RedisServer;
use tidings::{Cache, Entity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const SUBSCRIBERS: usize = 100;
/// Invalidations a second.
const RATE: usize = 1_000;

const SIDES: [(&str, Publish); 4] = [
    ("immediate", Publish::Immediate),
    (
        "adaptive, 5 ms",
        Publish::Adaptive {
            within: Duration::from_millis(5),
        },
    ),
    (
        "adaptive, 20 ms",
        Publish::Adaptive {
            within: Duration::from_millis(20),
        },
    ),
    (
        "relay, 20 ms",
        Publish::Relay {
            every: Duration::from_millis(20),
        },
    ),
];

fn main() {
    let (rounds, span) = match common::quick() {
        true => (1, Duration::from_millis(300)),
        false => (7, Duration::from_secs(2)),
    };
    if !RedisServer::available() {
        println!("skipped: there is no redis-server");
        return;
    }
    let server = RedisServer::start().expect("a server");
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (mut costs, mut lags) = ([const { Vec::new() }; 4], [const { Vec::new() }; 4]);
        let mut messages = [const { Vec::new() }; 4];
        for round in 0..=rounds {
            for side in rotated(SIDES.len(), round) {
                let cost = run(&server, SIDES[side].1, span).await;
                if round > 0 {
                    costs[side].push(cost.cpu);
                    messages[side].push(cost.messages);
                    lags[side].extend(cost.lags);
                }
            }
        }
        println!("\n{SUBSCRIBERS} subscribers, {RATE} invalidations a second");
        let heads = ["server µs", "messages", "lag p50", "lag p99 ms"];
        println!(
            "{:<20}{:>12}{:>12}{:>12}{:>12}",
            "", heads[0], heads[1], heads[2], heads[3]
        );
        for (at, (name, _)) in SIDES.iter().enumerate() {
            lags[at].sort_by(f64::total_cmp);
            let lag = |part: usize| lags[at].get((lags[at].len().max(1) - 1) * part / 100);
            let lag = |part| lag(part).copied().unwrap_or(f64::NAN);
            println!(
                "{name:<20}{:>12.1}{:>12.3}{:>12.1}{:>12.1}",
                median(costs[at].clone()),
                median(messages[at].clone()),
                lag(50),
                lag(99),
            );
        }
        for (at, (name, _)) in SIDES.iter().enumerate().skip(1) {
            let ratio = Ratio::of(&costs[at], &costs[0]);
            let what = format!("server CPU, {name} / immediate");
            judge(&what, &ratio, "≤ 0.5", ratio.median <= 0.5);
        }
    });
}

/// What one invalidation costs.
struct Cost {
    /// Microseconds of the server.
    cpu: f64,
    messages: f64,
    /// Milliseconds until another pod had dropped an entry.
    lags: Vec<f64>,
}

async fn run(server: &RedisServer, publish: Publish, span: Duration) -> Cost {
    let (pod, other) = (pod(server, publish).await, pod(server, publish).await);
    let subscribers = subscribe(server).await;
    if matches!(publish, Publish::Relay { .. }) {
        while !server
            .cli(&["GET", "{bench:00}u"])
            .expect("it runs")
            .starts_with('R')
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let before = spent(server);
    let looked = tokio::spawn(look(pod.1.clone(), other.1.clone(), span));
    let count = invalidate(&pod.1, span).await;
    let after = spent(server);
    let lags = looked.await.expect("it ends");
    drop(subscribers);
    for cache in [pod.0, other.0] {
        cache.close().await;
    }
    Cost {
        cpu: (after.0 - before.0) / count,
        messages: (after.1 - before.1) / count,
        lags,
    }
}

type Numbers = Entity<String, u64, Infallible>;

async fn pod(server: &RedisServer, publish: Publish) -> (Cache, Numbers) {
    let store = Redis::new(&server.url())
        .expect("an address")
        .publish(publish);
    let cache = Cache::builder("bench").store(store).build().await;
    let cache = cache.expect("the server runs");
    let load = |_: String| ready(Ok::<_, Infallible>(7));
    let entity = cache.entity("customer", load).build();
    (cache, entity.expect("the options are in range"))
}

/// Connections that read what they are sent, until the set is dropped.
async fn subscribe(server: &RedisServer) -> JoinSet<()> {
    let mut set = JoinSet::new();
    let heard = Arc::new(AtomicU64::new(0));
    for _ in 0..SUBSCRIBERS {
        let mut stream = TcpStream::connect(server.addr()).await.expect("it runs");
        let subscribe = b"SUBSCRIBE {bench}c\r\n";
        stream.write_all(subscribe).await.expect("it is sent");
        let mut buffer = vec![0; 16 * 1024];
        // The acknowledgement.
        let _ = stream.read(&mut buffer).await.expect("it answers");
        let heard = Arc::clone(&heard);
        set.spawn(async move {
            while let Ok(read) = stream.read(&mut buffer).await
                && read > 0
            {
                heard.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
    }
    set
}

/// Invalidates at a steady rate; gives how often.
async fn invalidate(numbers: &Numbers, span: Duration) -> f64 {
    let mut turns = interval(Duration::from_millis(1));
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < span {
        turns.tick().await;
        let keys: Vec<_> = (0..RATE / 1000).map(|n| key(count + n)).collect();
        join_all(keys.iter().map(|key| async move {
            numbers.invalidate(key).await.expect("the server runs");
        }))
        .await;
        count += keys.len();
    }
    count as f64
}

/// Looks, now and then, how long the other pod keeps what the first invalidates.
async fn look(pod: Numbers, other: Numbers, span: Duration) -> Vec<f64> {
    let (begin, mut lags, mut number) = (Instant::now(), Vec::new(), 0);
    while begin.elapsed() < span {
        number += 1;
        let key = key(1_000_000_000 + number);
        while other.peek(&key).is_none() {
            other.get(&key).await.expect("it loads");
        }
        let sent = Instant::now();
        pod.invalidate(&key).await.expect("the server runs");
        while other.peek(&key).is_some() {
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        lags.push(sent.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    lags
}

/// Microseconds of CPU, and messages published, since the server began.
fn spent(server: &RedisServer) -> (f64, f64) {
    let info = server.cli(&["INFO", "cpu"]).expect("it answers");
    let seconds = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|number| number.trim().parse().ok())
            .unwrap_or(f64::NAN)
    };
    let stats = server.cli(&["INFO", "commandstats"]).expect("it answers");
    let calls = |line: &str| -> Option<f64> {
        let line = line.strip_prefix("cmdstat_publish:calls=")?;
        line.split(',').next()?.parse().ok()
    };
    let published = stats.lines().find_map(calls).unwrap_or(0.0);
    let cpu = seconds("used_cpu_user:") + seconds("used_cpu_sys:");
    (cpu * 1e6, published)
}
