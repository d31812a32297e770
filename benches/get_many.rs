//! What `get_many` of a hundred keys costs against a hundred concurrent `get`s and against a bare
//! `MGET` on a multiplexed connection of redis-rs with a bare MessagePack decode; for keys that the
//! store has, and for keys that nobody has yet. Then what the store's part would cost if leases were
//! asked for at once, without a read before them.
//!
//! `cargo bench --bench get_many` takes a minute and starts a Redis server; it is skipped where there
//! is none.

#[expect(dead_code, reason = "each bench uses a part")]
mod common;

use std::convert::Infallible;
use std::future::ready;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Ratio, judge, median, rotated};
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tidings::coherence::{Epoch, Lane, Nonce};
use tidings::store::{Fill, LeaseRequest, Link, Namespace, Opening, Place, Redis, Replaces, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, Entity};
use tokio::task::JoinSet;

/// Keys of one batch.
const KEYS: u64 = 100;

type Customers = Entity<u64, Customer, Infallible>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Customer {
    id: u64,
    name: String,
    email: String,
    address: String,
}

fn customer(id: u64) -> Customer {
    Customer {
        id,
        name: format!("Customer of the number {id:08}"),
        email: format!("customer.{id:08}@mail.example"),
        address: "1 Long Street, 12345 Some Town".to_owned(),
    }
}

fn main() {
    let quick = common::quick();
    let (rounds, batches) = if quick { (3, 20) } else { (51, 200) };
    let Some(server) = common::server() else {
        return;
    };
    let runtime = common::runtime(2);
    runtime.block_on(async {
        warm(&server, rounds, batches).await;
        cold(&server, rounds, batches / 10).await;
        port(&server, rounds, batches).await;
    });
}

async fn customers(server: &RedisServer) -> Customers {
    let cache = Cache::builder("bench")
        .store_url(server.url())
        .build()
        .await;
    let load = |id| ready(Ok::<_, Infallible>(customer(id)));
    let load_many = |ids: Vec<u64>| ready(Ok(ids.into_iter().map(|id| (id, Ok(customer(id))))));
    let builder = cache.expect("the server runs").entity("customer", load);
    let builder = builder.loader_many(load_many).local_ttl(Duration::ZERO);
    builder.build().expect("the options are in range")
}

async fn by_get_many(customers: &Customers, keys: &[u64]) {
    for got in customers.get_many(keys).await {
        black_box(got.expect("it loads"));
    }
}

async fn by_gets(customers: &Customers, keys: &[u64]) {
    let mut gets = JoinSet::new();
    for &key in keys {
        let customers = customers.clone();
        gets.spawn(async move { customers.get(&key).await.map(drop) });
    }
    while let Some(got) = gets.join_next().await {
        got.expect("no panic").expect("it loads");
    }
}

async fn by_mget(connection: &mut MultiplexedConnection, keys: &[u64]) {
    let mut mget = redis::cmd("MGET");
    keys.iter().for_each(|key| {
        mget.arg(format!("bare:{key}"));
    });
    let values: Vec<Vec<u8>> = mget.query_async(connection).await.expect("it runs");
    for value in values {
        black_box(rmp_serde::from_slice::<Customer>(&value).expect("it decodes"));
    }
}

/// The sides' costs in each round, in microseconds a batch; the first round warms up.
async fn rounds<const N: usize>(
    rounds: usize,
    batches: usize,
    mut run: impl AsyncFnMut(usize),
) -> [Vec<f64>; N] {
    let mut costs = std::array::from_fn(|_| Vec::new());
    for round in 0..=rounds {
        for side in rotated(N, round) {
            let begin = Instant::now();
            for _ in 0..batches {
                run(side).await;
            }
            if round > 0 {
                costs[side].push(begin.elapsed().as_nanos() as f64 / 1000.0 / batches as f64);
            }
        }
    }
    costs
}

/// Keys that the store has.
async fn warm(server: &RedisServer, count: usize, batches: usize) {
    let customers = customers(server).await;
    let client = redis::Client::open(server.url()).expect("an address");
    let connection = client.get_multiplexed_async_connection().await;
    let mut bare = connection.expect("the server runs");
    let keys: Vec<_> = (0..KEYS).collect();
    for key in &keys {
        let payload = rmp_serde::to_vec_named(&customer(*key)).expect("it encodes");
        let mut set = redis::cmd("SET");
        let set = set.arg(format!("bare:{key}")).arg(payload);
        set.exec_async(&mut bare).await.expect("it is stored");
    }
    by_get_many(&customers, &keys).await;
    tokio::time::sleep(Duration::from_millis(200)).await; // filled behind the caller
    let [many, gets, mget] = rounds(count, batches, async |side| match side {
        0 => by_get_many(&customers, &keys).await,
        1 => by_gets(&customers, &keys).await,
        _ => by_mget(&mut bare, &keys).await,
    })
    .await;
    let figures = [&many, &gets, &mget].map(|costs| median(costs.clone()));
    println!("{KEYS} keys that the store has: {figures:.0?} µs (get_many, gets, MGET)");
    let ratio = Ratio::of(&many, &gets);
    judge("  get_many / gets", &ratio, "≤ 0.8", ratio.median <= 0.8);
    let ratio = Ratio::of(&many, &mget);
    judge("  get_many / MGET", &ratio, "≤ 2.5", ratio.median <= 2.5);
}

/// Keys that nobody has: each batch is of new ones.
async fn cold(server: &RedisServer, count: usize, batches: usize) {
    let customers = customers(server).await;
    let next = AtomicU64::new(1_000);
    let fresh = || {
        let first = next.fetch_add(KEYS, Relaxed);
        (first..first + KEYS).collect::<Vec<_>>()
    };
    let [many, gets] = rounds(count, batches.max(1), async |side| match side {
        0 => by_get_many(&customers, &fresh()).await,
        _ => by_gets(&customers, &fresh()).await,
    })
    .await;
    let figures = [&many, &gets].map(|costs| median(costs.clone()));
    println!("{KEYS} cold keys: {figures:.0?} µs (get_many, gets)");
    let ratio = Ratio::of(&many, &gets);
    judge("  get_many / gets", &ratio, "≤ 0.8", ratio.median <= 0.8);
}

/// What the link alone takes: reads, and leases with and without a read before them.
async fn port(server: &RedisServer, count: usize, batches: usize) {
    let namespace = Namespace {
        name: "bench".to_owned(),
        lanes: 16,
    };
    let store = Redis::new(&server.url()).expect("an address");
    let (link, _hints) = store.connect(&namespace).await.expect("the server runs");
    let names: Vec<_> = (0..KEYS).map(|key| format!("there:{key}")).collect();
    fill(&*link, &names).await;
    assert_eq!(found(&*link, &names).await, names.len());
    let next = AtomicU64::new(1_000_000);
    let fresh = || {
        let first = next.fetch_add(KEYS, Relaxed);
        (first..first + KEYS)
            .map(|key| format!("k:{key}"))
            .collect::<Vec<_>>()
    };
    let [reads, leases, both, only] = rounds(count, batches, async |side| match side {
        0 => drop(found(&*link, &names).await),
        1 => drop(leased(&*link, &names).await),
        2 => {
            let names = fresh();
            found(&*link, &names).await;
            leased(&*link, &names).await;
        }
        _ => drop(leased(&*link, &fresh()).await),
    })
    .await;
    let figures = [&reads, &leases, &both, &only].map(|costs| median(costs.clone()));
    println!(
        "the link alone: {figures:.0?} µs (read, leases of what is there, read and lease, lease)"
    );
    println!(
        "  {:<50}{}",
        "lease / read, keys that are there",
        Ratio::of(&leases, &reads)
    );
    println!(
        "  {:<50}{}",
        "lease / read and lease, keys that are not",
        Ratio::of(&only, &both)
    );
}

fn places(names: &[String]) -> Vec<Place<'_>> {
    let lanes = (0..16).cycle();
    let places = names.iter().zip(lanes).map(|(name, lane)| Place {
        lane: Lane(lane),
        hash: u64::from(lane),
        entity: "customer",
        key: name.as_bytes(),
    });
    places.collect()
}

/// Puts values of 200 bytes under all names.
async fn fill(link: &dyn Link, names: &[String]) {
    let request = request();
    let asked: Vec<_> = places(names).into_iter().map(|at| (at, request)).collect();
    for ((place, request), reply) in asked.iter().zip(link.lease_many(&asked).await) {
        let at = reply.expect("it is granted").head.at;
        let mut envelope = vec![0xD7, 1, 1, 0];
        for word in [request.token, at.epoch.0, at.seq] {
            envelope.extend(word.to_be_bytes());
        }
        envelope.resize(200, 0);
        let fill = Fill {
            token: request.token,
            replaces: Replaces::Lease,
            epoch: at.epoch,
            envelope: &envelope,
            ttl: None,
        };
        assert!(link.fill(*place, fill).await.expect("it is filled"));
    }
}

async fn found(link: &dyn Link, names: &[String]) -> usize {
    let found = link.read_many(&places(names)).await;
    let found = found.into_iter().map(|found| found.expect("it is read"));
    found.filter(|found| found.value.is_some()).count()
}

fn request() -> LeaseRequest<'static> {
    LeaseRequest {
        token: 1,
        ttl: Duration::from_secs(5),
        unusable: None,
        opening: Opening {
            epoch: Epoch(1),
            nonce: Nonce(1),
        },
    }
}

async fn leased(link: &dyn Link, names: &[String]) -> usize {
    let request = request();
    let asked: Vec<_> = places(names).into_iter().map(|at| (at, request)).collect();
    let replies = link.lease_many(&asked).await;
    replies.into_iter().filter(Result::is_ok).count()
}
