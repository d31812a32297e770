//! What an invalidation costs the server, by the way its hint is published: server CPU (`INFO cpu`) and
//! messages for each invalidation, and how long until another pod has dropped the entry.
//!
//! Bare subscribers stand for pods: each is a connection that reads what it is sent, which is all that a
//! server sees of one. Two caches run as pods do; one invalidates at a steady rate, the other is looked at.
//! All are in one process, beside one server.
//!
//! `cargo bench --bench publishing` takes a minute or two and starts a Redis server; it is skipped where
//! there is none.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use common::{Ratio, judge, key, median, rotated};
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
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const SUBSCRIBERS: usize = 100;
/// Invalidations a second, at most: each waits for the one before.
const RATE: u32 = 1_000;

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
    let Some(server) = common::server() else {
        return;
    };
    let runtime = common::runtime(2);
    runtime.block_on(async {
        let (mut costs, mut lags) = ([const { Vec::new() }; 4], [const { Vec::new() }; 4]);
        let (mut messages, mut rates) = ([const { Vec::new() }; 4], [const { Vec::new() }; 4]);
        for round in 0..=rounds {
            for side in rotated(SIDES.len(), round) {
                let cost = run(&server, SIDES[side].1, span).await;
                if round > 0 {
                    costs[side].push(cost.cpu);
                    messages[side].push(cost.messages);
                    rates[side].push(cost.rate);
                    lags[side].extend(cost.lags);
                }
            }
        }
        println!("\n{SUBSCRIBERS} subscribers; for each invalidation:");
        let heads = ["server µs", "messages", "rate", "lag p50", "lag p99 ms"];
        println!(
            "{:<20}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "", heads[0], heads[1], heads[2], heads[3], heads[4]
        );
        for (at, (name, _)) in SIDES.iter().enumerate() {
            lags[at].sort_by(f64::total_cmp);
            let lag = |part: usize| lags[at].get((lags[at].len().max(1) - 1) * part / 100);
            let lag = |part| lag(part).copied().unwrap_or(f64::NAN);
            println!(
                "{name:<20}{:>12.1}{:>12.3}{:>12.0}{:>12.1}{:>12.1}",
                median(costs[at].clone()),
                median(messages[at].clone()),
                median(rates[at].clone()),
                lag(50),
                lag(99),
            );
        }
        for (at, (name, _)) in SIDES.iter().enumerate().skip(2) {
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
    /// How many there were in a second.
    rate: f64,
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
    invalidate(&pod.1, span).await;
    let lags = looked.await.expect("it ends");
    let after = spent(server);
    drop(subscribers);
    for cache in [pod.0, other.0] {
        cache.close().await;
    }
    let logged = after.logged - before.logged;
    Cost {
        cpu: (after.micros - before.micros) / logged,
        messages: (after.published - before.published) / logged,
        rate: logged / span.as_secs_f64(),
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

/// Invalidates one key after the other, as far apart as they would come from many pods: what comes in one
/// go shares the server's writes anyway.
async fn invalidate(numbers: &Numbers, span: Duration) {
    let mut turns = interval(Duration::from_secs(1) / RATE);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begin = Instant::now();
    for n in 0.. {
        turns.tick().await;
        if begin.elapsed() >= span {
            return;
        }
        numbers.invalidate(&key(n)).await.expect("the server runs");
    }
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

/// What the server did since it began.
struct Spent {
    /// Of CPU.
    micros: f64,
    published: f64,
    /// Entries.
    logged: f64,
}

fn spent(server: &RedisServer) -> Spent {
    let info = |section| server.cli(&["INFO", section]).expect("it answers");
    let (cpu, stats) = (info("cpu"), info("commandstats"));
    let number = |text: &str, name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split(',').next()?.trim().parse().ok());
        number.unwrap_or(0.0)
    };
    let seconds = number(&cpu, "used_cpu_user:") + number(&cpu, "used_cpu_sys:");
    Spent {
        micros: seconds * 1e6,
        published: number(&stats, "cmdstat_publish:calls="),
        logged: number(&stats, "cmdstat_xadd:calls="),
    }
}
