//! What it costs a Redis server to invalidate a tag, counted on the server, whatever the number of
//! entries that carry it.
//!
//! `TIDINGS_TAGGED_ENTRIES=1000000` makes them a million, which takes a minute or two.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tidings::testing::RedisServer;
use tidings::{Cache, Entity, Ttl};

const ENTRIES: u64 = 20_000;

type Versions = Entity<u64, u64, Infallible>;

/// What loads see, and how often there was one.
#[derive(Clone, Default)]
struct Source(Arc<(AtomicU64, AtomicUsize)>);

impl Source {
    fn load(&self) -> u64 {
        self.0.1.fetch_add(1, SeqCst);
        self.0.0.load(SeqCst)
    }
}

async fn pod(server: &RedisServer, source: &Source) -> (Cache, Versions) {
    let cache = Cache::builder("scale").store_url(server.url());
    let cache = cache.build().await.unwrap();
    let (one, many) = (source.clone(), source.clone());
    let load = move |_: u64| {
        let version = one.load();
        async move { Ok::<_, Infallible>(version) }
    };
    let load_many = move |keys: Vec<u64>| {
        let many = many.clone();
        async move { Ok(keys.into_iter().map(move |key| (key, Ok(many.load())))) }
    };
    let versions = cache.entity("version", load).loader_many(load_many);
    let versions = versions.tags(|_, _| ["org:7"]).ttl(Ttl::Forever);
    // What matters is what the store holds.
    let versions = versions.local_ttl(Duration::ZERO).build().unwrap();
    (cache, versions)
}

/// How often each command was run.
fn commands(server: &RedisServer) -> BTreeMap<String, u64> {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let line = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = rest.split(',').next()?.parse().ok()?;
        Some((name.to_owned(), calls))
    };
    stats.lines().filter_map(line).collect()
}

/// What `act` makes the server run, without what it does anyway: polls and this very question.
async fn cost_of(server: &RedisServer, act: impl Future<Output = ()>) -> BTreeMap<String, u64> {
    let before = commands(server);
    act.await;
    let mut after = commands(server);
    after.retain(|name, calls| {
        *calls -= before.get(name).copied().unwrap_or_default();
        // A poll is `MGET`, `INFO`, `TIME` and `UNLINK`.
        let anyway = ["mget", "info", "time", "unlink"].contains(&&**name);
        *calls > 0 && !anyway
    });
    after
}

fn stored(server: &RedisServer) -> u64 {
    let size = server.cli(&["DBSIZE"]).unwrap();
    let digits = size.chars().filter(char::is_ascii_digit);
    digits.collect::<String>().parse().unwrap()
}

/// Stores `keys` by pods that are gone afterwards, with all that they do behind their callers. What a
/// busy server did not take in time is stored by the next one.
async fn store(server: &RedisServer, source: &Source, keys: &[u64]) {
    for _ in 0..10 {
        let (cache, versions) = pod(server, source).await;
        for some in keys.chunks(2_000) {
            versions.get_many(some).await;
        }
        let scripts = || commands(server).get("evalsha").copied();
        let mut before = None;
        while before != scripts() {
            before = scripts();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cache.close().await;
        if stored(server) >= keys.len() as u64 {
            return;
        }
    }
    panic!("only {} are stored", stored(server));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_of_any_number_of_entries_is_invalidated_by_one_script_call() {
    let entries = std::env::var("TIDINGS_TAGGED_ENTRIES");
    let entries = entries.map_or(ENTRIES, |entries| entries.parse().unwrap());
    let server = RedisServer::start().unwrap();
    let source = Source::default();
    let (cache, _) = pod(&server, &source).await;
    cache.invalidate(["other:1"]).await.unwrap(); // the server knows the script from here on
    let invalidate = async || drop(cache.invalidate(["org:7"]).await.unwrap());

    store(&server, &source, &[0]).await;
    let of_one = cost_of(&server, invalidate()).await;

    let keys: Vec<u64> = (0..entries).collect();
    let began = Instant::now();
    store(&server, &source, &keys).await;
    println!("{entries} entries stored in {:?}", began.elapsed());

    source.0.0.store(1, SeqCst);
    let began = Instant::now();
    let of_all = cost_of(&server, invalidate()).await;
    println!("invalidated in {:?}: {of_all:?}", began.elapsed());
    assert_eq!(of_all, of_one);
    assert_eq!(of_all["evalsha"], 1);

    let (_other, on_other) = pod(&server, &source).await;
    let loads = source.0.1.load(SeqCst);
    let step = usize::try_from(entries / 1_000).unwrap();
    for key in keys.iter().step_by(step) {
        assert_eq!(*on_other.get(key).await.unwrap(), 1);
    }
    let again = source.0.1.load(SeqCst) - loads;
    assert_eq!(again, 1_000, "none was left over");
}
