//! The store is away for long, under a steady load: what it costs those who read, those who write, and
//! the source.

use crate::fleet::{Fleet, PATIENCE, Plan, READERS};
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tidings::testing::RedisServer;
use tidings::{Cache, CircuitState, Entity, Origin, StoreState};
use tokio::task::JoinSet;

const PODS: u64 = 3;
const KEYS: u64 = 20;
const READS_PER_SECOND: u64 = 500;
const LOAD_TAKES: Duration = Duration::from_millis(20);
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// How long the store is away; the full length is that of the promise in `docs/pending.md`.
fn away() -> Duration {
    let seconds = std::env::var("TIDINGS_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(6, |text| text.parse().expect("seconds")))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    /// The process is gone: connections break, and new ones are refused.
    Killed,
    /// The process is stopped: everything hangs.
    Stopped,
}

/// No read fails or is staler than it may be, the source is asked by each pod once per key and bound,
/// and every invalidation is acknowledged within two seconds of the store's return.
async fn nobody_notices(outage: Outage) {
    let readers = PODS * READERS;
    let plan = Plan {
        pods: PODS as usize,
        keys: KEYS,
        write_every: WRITE_EVERY,
        read_every: Duration::from_secs(readers).div_f64(READS_PER_SECOND as f64),
        load_takes: Some(LOAD_TAKES),
        ..Plan::default()
    };
    let mut fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    fleet.work(2000).await;
    let (before, began) = (fleet.loads(), Instant::now());
    match outage {
        Outage::Killed => fleet.server.kill(),
        Outage::Stopped => fleet.server.pause().unwrap(),
    }
    tokio::time::sleep(away()).await;
    let gone = began.elapsed();
    let (loads, pending) = (fleet.loads() - before, pending(&fleet));
    match outage {
        Outage::Killed => fleet.server.restart().unwrap(),
        Outage::Stopped => fleet.server.resume().unwrap(),
    }
    let back = Instant::now();
    fleet.heals().await;
    let healed = back.elapsed();
    fleet.work(500).await;

    let bound = fleet.bound();
    let history = fleet.history().await;
    history.refuse(&history.violations(bound));
    let during = |at: Instant| at >= began && at < began + gone;
    let mut waits: Vec<_> = history
        .reads
        .iter()
        .filter(|read| during(read.start))
        .collect();
    waits.sort_unstable_by_key(|read| read.took);
    let (reads, writes) = (
        waits.len(),
        history
            .writes
            .iter()
            .filter(|write| during(write.returned))
            .count(),
    );
    let allowed = loads_allowed(gone, writes as u64);
    println!(
        "{outage:?} for {gone:.1?}: {reads} reads, median {:.1?}, 99 % {:.1?}, longest {:.1?}; \
         {loads} loads of {allowed} allowed; {writes} writes, {pending} pending at the end; all \
         acknowledged and live {healed:.0?} after the return",
        waits[reads / 2].took,
        waits[reads * 99 / 100].took,
        waits[reads - 1].took,
    );
    let expected = READS_PER_SECOND as f64 * gone.as_secs_f64();
    assert!(
        reads as f64 > expected / 2.0,
        "{reads} reads: no load to speak of"
    );
    assert_ne!((writes, pending), (0, 0));
    assert!(loads <= allowed, "{loads} loads of {allowed}");
}

fn pending(fleet: &Fleet) -> usize {
    fleet.pods.iter().map(|pod| pod.health().pending).sum()
}

/// Each pod loads each key once per life of a confirmation, and once more where one of its own
/// invalidations has taken the key away: two keys at most, or all of them for each sixteenth.
fn loads_allowed(gone: Duration, writes: u64) -> u64 {
    let lives = gone.as_secs() + 2;
    KEYS * PODS * lives + 2 * writes + (writes / 16 + 1) * KEYS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_the_store_is_gone() {
    nobody_notices(Outage::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_the_store_is_stopped() {
    nobody_notices(Outage::Stopped).await;
}

async fn read_all(
    numbers: &Entity<u64, u64, Infallible>,
    keys: impl IntoIterator<Item = u64>,
) -> Vec<Origin> {
    let mut reads = JoinSet::new();
    for key in keys {
        let numbers = numbers.clone();
        reads.spawn(async move { numbers.get_with(&key).await.unwrap().origin });
    }
    reads.join_all().await
}

/// Stopped, the server costs the readers of the moment their time limit. That opens the breaker, before a
/// poll has had the time to find the link dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_opens_the_breaker_and_closes_it_when_it_goes_on() {
    let server = RedisServer::start().unwrap();
    let limit = Duration::from_millis(30);
    let builder = Cache::builder("stopped").store_url(server.url());
    let cache = builder.read_timeout(limit).build().await.unwrap();
    let load = |key: u64| async move { Ok::<_, Infallible>(key) };
    let numbers = cache.entity("number", load).build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut fresh = 0..;
    // On a busy machine the poll may come first.
    while cache.health().circuit_openings == 0 {
        assert!(Instant::now() < deadline, "{:?}", cache.health());
        server.pause().unwrap();
        let origins = read_all(&numbers, fresh.by_ref().take(20)).await;
        assert_eq!(origins, [Origin::Loader; 20]);
        if cache.health().circuit_openings == 0 {
            server.resume().unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    let invalidation = tokio::spawn(numbers.invalidate(&1));
    let origins = read_all(&numbers, fresh.by_ref().take(20)).await;
    assert_eq!(origins, [Origin::Loader; 20]);
    server.resume().unwrap();
    // Asked for while the breaker was open: it waited for the store, and not for the breaker.
    invalidation.await.unwrap().unwrap();
    while cache.health().circuit != CircuitState::Closed
        || !matches!(cache.health().store, StoreState::Up)
    {
        assert!(Instant::now() < deadline, "{:?}", cache.health());
        read_all(&numbers, fresh.by_ref().take(1)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
