//! The fault: three pods, a writer, and a Redis that is killed and started again.

use crate::Plan;
use crate::common::Random;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidings::testing::RedisServer;
use tidings::{Cache, Entity, Event};
use tokio::time::{interval, sleep, sleep_until};

const PODS: usize = 3;
const RECORDS: u64 = 200;
/// Reads between two pauses of a reader, which are a millisecond or two.
const BURST: usize = 10;
/// How long a load takes.
const QUERY: Duration = Duration::from_millis(2);
const COMMIT_EVERY: Duration = Duration::from_millis(20);
/// Readers of one pod.
const READERS: usize = 4;
/// What is drawn as one point.
pub(crate) const SLICE: Duration = Duration::from_millis(100);

/// What was measured while one point lasted, over all pods.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slice {
    /// Reads answered from memory, by the store, and by loads.
    pub(crate) hits: u64,
    pub(crate) stored: u64,
    pub(crate) loads: u64,
    /// The longest that a value which was read had been replaced in the source.
    pub(crate) staleness: Duration,
}

/// What was measured.
pub(crate) struct Story {
    pub(crate) slices: Vec<Slice>,
    pub(crate) bound: Duration,
    /// When all pods had left their lanes, and when all had the store in use again.
    pub(crate) lapsed: Option<Duration>,
    pub(crate) healed: Option<Duration>,
}

type Records = Entity<u64, u64, Infallible>;

/// When each version of each record was committed.
#[derive(Clone)]
struct Source(Arc<Vec<Mutex<Vec<Instant>>>>);

impl Source {
    fn new() -> Self {
        let row = || Mutex::new(vec![Instant::now()]);
        Self(Arc::new((0..RECORDS).map(|_| row()).collect()))
    }

    fn commits(&self, record: u64) -> std::sync::MutexGuard<'_, Vec<Instant>> {
        self.0[record as usize]
            .lock()
            .expect("nobody panics with it")
    }

    fn commit(&self, record: u64) {
        self.commits(record).push(Instant::now());
    }

    fn newest(&self, record: u64) -> u64 {
        self.commits(record).len() as u64 - 1
    }

    /// How long `version` had been replaced at `then`.
    fn replaced(&self, record: u64, version: u64, then: Instant) -> Duration {
        let next = self.commits(record).get(version as usize + 1).copied();
        next.map_or(Duration::ZERO, |next| then.saturating_duration_since(next))
    }

    fn records(&self, cache: &Cache) -> Records {
        let source = self.clone();
        let load = move |record| {
            let source = source.clone();
            async move {
                let version = source.newest(record);
                sleep(QUERY).await;
                Ok(version)
            }
        };
        let records = cache.entity("record", load).build();
        records.expect("the options are in range")
    }
}

pub(crate) async fn run(plan: &Plan) -> Story {
    let server = tokio::task::spawn_blocking(RedisServer::start);
    let server = server.await.expect("it ends").expect("a server");
    let source = Source::new();
    let mut pods = Vec::new();
    for _ in 0..PODS {
        let cache = Cache::builder("picture").store_url(server.url()).build();
        let cache = cache.await.expect("the server runs");
        let records = source.records(&cache);
        pods.push((cache, records));
    }
    for (_, records) in &pods {
        let warm: Vec<u64> = (0..RECORDS).collect();
        records.get_many(&warm).await;
    }
    let began = Instant::now();
    let points = plan.end.as_millis() / SLICE.as_millis();
    let staleness: Arc<Vec<AtomicU64>> = Arc::new((0..points).map(|_| AtomicU64::new(0)).collect());
    for (pod, (_, records)) in pods.iter().enumerate() {
        for reader in 0..READERS {
            let (records, source) = (records.clone(), source.clone());
            let seed = (pod * READERS + reader) as u64;
            tokio::spawn(read(seed, records, source, began, Arc::clone(&staleness)));
        }
    }
    tokio::spawn(write(pods[0].1.clone(), source.clone()));
    let followed: Vec<_> = pods.iter().map(|(cache, _)| follow(cache, began)).collect();
    let outage = tokio::spawn(outage(server, began, plan.kill, plan.restart));
    let mut slices = count(&pods, began, points as usize).await;
    for (slice, staleness) in slices.iter_mut().zip(&*staleness) {
        slice.staleness = Duration::from_micros(staleness.load(Relaxed));
    }
    let _server = outage.await.expect("it ends");
    let bound = pods[0].0.health().bound;
    for (cache, _) in pods {
        cache.close().await;
    }
    let (mut lapsed, mut healed) = (Some(Duration::ZERO), Some(Duration::ZERO));
    for followed in followed {
        let (one_lapsed, one_healed) = followed.await.expect("it ends");
        lapsed = lapsed.zip(one_lapsed).map(|(a, b)| a.max(b));
        healed = healed.zip(one_healed).map(|(a, b)| a.max(b));
    }
    Story {
        slices,
        bound,
        lapsed,
        healed,
    }
}

async fn read(
    seed: u64,
    records: Records,
    source: Source,
    began: Instant,
    staleness: Arc<Vec<AtomicU64>>,
) {
    let mut random = Random(crate::common::SEED + seed);
    loop {
        for _ in 0..BURST {
            let record = random.next() % RECORDS;
            let asked = Instant::now();
            let Ok(version) = records.get(&record).await else {
                return; // closed
            };
            let replaced = source.replaced(record, *version, asked);
            let slice = asked.duration_since(began).as_millis() / SLICE.as_millis();
            if let Some(worst) = staleness.get(slice as usize) {
                worst.fetch_max(replaced.as_micros() as u64, Relaxed);
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// Commits, then invalidates; an invalidation that is pending is repeated by the cache.
async fn write(records: Records, source: Source) {
    let mut pace = interval(COMMIT_EVERY);
    for record in (0..RECORDS).cycle() {
        pace.tick().await;
        source.commit(record);
        let records = records.clone();
        tokio::spawn(async move {
            let _ = records.invalidate(&record).await;
        });
    }
}

/// When the last lane of a pod had lapsed after its link broke, and when its store was in use again.
fn follow(
    cache: &Cache,
    began: Instant,
) -> tokio::task::JoinHandle<(Option<Duration>, Option<Duration>)> {
    let mut events = cache.events();
    tokio::spawn(async move {
        let (mut broken, mut lapsed, mut healed) = (false, None, None);
        while let Some(event) = events.next().await {
            match event {
                Event::LinkDown { .. } => broken = true,
                Event::LaneLapsed { .. } if broken => lapsed = Some(began.elapsed()),
                Event::LinkUp if broken => healed = Some(began.elapsed()),
                _ => {}
            }
        }
        (lapsed, healed)
    })
}

async fn outage(
    server: RedisServer,
    began: Instant,
    kill: Duration,
    restart: Duration,
) -> RedisServer {
    let mut server = server;
    sleep_until((began + kill).into()).await;
    server.kill();
    sleep_until((began + restart).into()).await;
    let server = tokio::task::spawn_blocking(move || {
        server.restart_empty().expect("it starts again");
        server
    });
    server.await.expect("it ends")
}

/// What all pods did while each point lasted.
async fn count(pods: &[(Cache, Records)], began: Instant, points: usize) -> Vec<Slice> {
    let total = || {
        let mut sum = Slice::default();
        for (_, records) in pods {
            let stats = records.stats();
            sum.hits += stats.hits;
            sum.stored += stats.store_hits;
            sum.loads += stats.loads;
        }
        sum
    };
    let mut slices = Vec::new();
    let mut last = total();
    for point in 1..=points {
        sleep_until((began + SLICE * point as u32).into()).await;
        let now = total();
        slices.push(Slice {
            hits: now.hits - last.hits,
            stored: now.stored - last.stored,
            loads: now.loads - last.loads,
            ..Slice::default()
        });
        last = now;
    }
    slices
}
