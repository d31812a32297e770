//! What a hit in the store costs: `entity.get(&key).await` with the local level switched off, against
//! a bare `GET` on a multiplexed connection of redis-rs and a bare MessagePack decode.
//!
//! Both sides read the same payload from one server with so many reads in flight at a time, each task
//! with keys of its own, so that no two share a flight. The entity reads the lane's head and the
//! entity's floor with the value, checks the envelope and judges the value by both.
//!
//! `cargo bench --bench store_hit` takes a minute and starts a Redis server; it is skipped where there
//! is none.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Ratio, judge, key, median};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tidings::{Cache, Entity, Origin};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Reads under way at the same time.
const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
/// Keys of one task.
const KEYS: usize = 16;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Customer {
    id: u64,
    name: String,
    email: String,
    address: String,
    tags: Vec<String>,
    orders: u32,
    balance: f64,
}

fn customer(n: usize) -> Customer {
    Customer {
        id: n as u64,
        name: format!("Customer of the number {n:08}"),
        email: format!("customer.{n:08}@mail.example"),
        address: "1 Long Street, 12345 Some Town".to_owned(),
        tags: vec!["wholesale".to_owned(), "eu".to_owned()],
        orders: n as u32,
        balance: n as f64 / 7.0,
    }
}

fn main() {
    let quick = common::quick();
    let (rounds, reads) = if quick { (3, 300) } else { (101, 1_000) };
    let Some(server) = common::server() else {
        return;
    };
    let runtime = common::runtime(2);
    let sides = runtime.block_on(sides(&server.url()));
    let payload = rmp_serde::to_vec_named(&customer(0)).expect("it encodes");
    println!("\nread of {} bytes from the store", payload.len());
    for in_flight in IN_FLIGHT {
        compare(&runtime, &sides, in_flight, rounds, reads);
    }
}

// --- sides ---------------------------------------------------------------------------------------

#[derive(Clone)]
enum Side {
    Bare(MultiplexedConnection),
    Entity(Entity<String, Customer, Infallible>),
}

async fn sides(url: &str) -> [Side; 2] {
    let cache = Cache::builder("bench").store_url(url).build().await;
    let load = |key: String| ready(Ok::<_, Infallible>(customer(number(&key))));
    let entity = cache
        .expect("the server runs")
        .entity("customer", load)
        .local_ttl(Duration::ZERO)
        .build()
        .expect("the options are in range");
    let client = redis::Client::open(url).expect("an address");
    let mut bare = client
        .get_multiplexed_async_connection()
        .await
        .expect("the server runs");
    for n in 0..IN_FLIGHT[3] * KEYS {
        let payload = rmp_serde::to_vec_named(&customer(n)).expect("it encodes");
        let mut set = redis::cmd("SET");
        let set = set.arg(key(n)).arg(payload);
        set.exec_async(&mut bare).await.expect("it is stored");
        entity.get(&key(n)).await.expect("it loads");
        // Filled behind the caller.
        while entity.get_with(&key(n)).await.expect("it loads").origin != Origin::Store {
            tokio::task::yield_now().await;
        }
    }
    [Side::Bare(bare), Side::Entity(entity)]
}

fn number(key: &str) -> usize {
    let digits = key.rsplit('/').next().expect("a part");
    digits.parse().expect("a number")
}

impl Side {
    async fn read(&mut self, key: &String) -> Customer {
        match self {
            Self::Bare(connection) => {
                let mut get = redis::cmd("GET");
                let bytes: Vec<u8> = get.arg(key).query_async(connection).await.expect("it runs");
                rmp_serde::from_slice(&bytes).expect("it decodes")
            }
            Self::Entity(entity) => {
                let value = entity.get(key).await.expect("it loads");
                Arc::into_inner(value).expect("nobody else has it")
            }
        }
    }
}

// --- comparison ----------------------------------------------------------------------------------

fn compare(runtime: &Runtime, sides: &[Side; 2], in_flight: usize, rounds: usize, reads: usize) {
    let each = (reads * in_flight.min(8)).div_ceil(in_flight);
    let costs = common::in_rounds(sides, rounds, |side| {
        runtime.block_on(micros_per_read(side, in_flight, each))
    });
    let (bare, entity) = (&costs[0], &costs[1]);
    println!(
        "{in_flight} in flight: bare {:.1} µs per read, entity {:.1} µs",
        median(bare.clone()),
        median(entity.clone())
    );
    let (cost, throughput) = (Ratio::of(entity, bare), Ratio::of(bare, entity));
    match in_flight {
        1 => judge(
            "  latency, entity / bare",
            &cost,
            "≤ 1.25",
            cost.median <= 1.25,
        ),
        64 => judge(
            "  throughput, entity / bare",
            &throughput,
            "≥ 0.9",
            throughput.median >= 0.9,
        ),
        _ => println!("  {:<50}{throughput}", "throughput, entity / bare"),
    }
}

/// Wall time over all reads: the latency if there is one in flight, the inverse of the throughput else.
async fn micros_per_read(side: &Side, in_flight: usize, each: usize) -> f64 {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..in_flight {
        let mut side = side.clone();
        let keys: Vec<_> = (task * KEYS..(task + 1) * KEYS).map(key).collect();
        tasks.spawn(async move {
            for key in keys.iter().cycle().take(each) {
                black_box(side.read(key).await);
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("a reader panicked");
    }
    begin.elapsed().as_nanos() as f64 / 1000.0 / (in_flight * each) as f64
}
