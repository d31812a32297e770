//! One pod, in a process of its own: reads, reads lists, changes records and groups of them, and tells on
//! its standard output how it is.

use crate::event::{Event, EventLog, now};
use crate::options::Options;
use redis::aio::MultiplexedConnection;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tidings::store::Redis;
use tidings::{
    Cache, CacheError, Entity, InvalidateError, Invalidation, Served, Stamp, StoreState, Tag,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What its lines begin with; the test harness writes others.
pub(crate) const ANSWER: &str = "pod> ";
pub(crate) const NAMESPACE: &str = "soak";
/// Records are invalidated one by one and in lists.
const RECORDS: u64 = 96;
/// Pages are invalidated by the tag of their group alone. They have the keys from here on.
const PAGES_FROM: u64 = 100;
const PAGES: u64 = 48;
const GROUPS: u64 = 12;

const READERS: u64 = 2;
const READ_EVERY: Duration = Duration::from_millis(10);
const WRITE_EVERY: Duration = Duration::from_millis(100);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Marks are calls too, numbered from here on.
const MARKS_FROM: u64 = 1 << 32;
/// Every so many reads of a reader are one list.
const LIST_EVERY: u64 = 16;
const LIST: u64 = 6;
/// An invalidation that waits for longer does not wait for the machine.
const CALL_TAKES_MS: u64 = 1000;
/// How long a load may take: the source may be as slow as the machine.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a pod that is started in the middle of a failover waits before it tries again.
const BUILD_PAUSE: Duration = Duration::from_millis(100);

const NUMBER_VARIABLE: &str = "TIDINGS_SOAK_POD";
const OPTIONS_VARIABLE: &str = "TIDINGS_SOAK_POD_OPTIONS";
const STORE_VARIABLE: &str = "TIDINGS_SOAK_STORE";
const SOURCE_VARIABLE: &str = "TIDINGS_SOAK_SOURCE";
const HISTORY_VARIABLE: &str = "TIDINGS_SOAK_HISTORY";

pub(crate) type Versions = Entity<u64, u64, redis::RedisError>;

/// What a pod is told at its start.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// Of all pods that there ever were.
    pub(crate) number: usize,
    /// The number of its options.
    pub(crate) options: usize,
    pub(crate) store: String,
    pub(crate) source: String,
    pub(crate) history: PathBuf,
}

impl Orders {
    pub(crate) fn from_env() -> Option<Self> {
        let variable = |name| std::env::var(name).ok();
        Some(Self {
            number: variable(NUMBER_VARIABLE)?.parse().unwrap(),
            options: variable(OPTIONS_VARIABLE)?.parse().unwrap(),
            store: variable(STORE_VARIABLE)?,
            source: variable(SOURCE_VARIABLE)?,
            history: variable(HISTORY_VARIABLE)?.into(),
        })
    }

    pub(crate) fn env(&self) -> [(&'static str, String); 5] {
        [
            (NUMBER_VARIABLE, self.number.to_string()),
            (OPTIONS_VARIABLE, self.options.to_string()),
            (STORE_VARIABLE, self.store.clone()),
            (SOURCE_VARIABLE, self.source.clone()),
            (HISTORY_VARIABLE, self.history.display().to_string()),
        ]
    }
}

/// How a pod was at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: u64,
    pub(crate) resident_kb: u64,
    pub(crate) descriptors: u64,
    pub(crate) tasks: u64,
    pub(crate) lanes: u64,
    pub(crate) live_lanes: u64,
    /// For how long the oldest invalidation waits that is not acknowledged.
    pub(crate) pending_ms: u64,
    pub(crate) is_up: bool,
    pub(crate) links: u64,
    pub(crate) flushes: u64,
    /// How many reads replicas have answered.
    pub(crate) near: u64,
}

impl Sample {
    fn of(cache: &Cache) -> Self {
        let health = cache.health();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let tasks = tokio::runtime::Handle::current().metrics();
        let near = cache.stats().store.get("read a replica").cloned();
        Self {
            at: now(),
            resident_kb: resident_kb(),
            descriptors: descriptors as u64,
            tasks: tasks.num_alive_tasks() as u64,
            lanes: health.lanes as u64,
            live_lanes: health.live_lanes as u64,
            pending_ms: health.oldest_pending.unwrap_or_default().as_millis() as u64,
            is_up: matches!(health.store, StoreState::Up),
            links: health.links,
            flushes: health.flushes,
            near: near.map_or(0, |near| near.calls - near.failed),
        }
    }

    /// Whether the pod was fully at work.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_up && self.live_lanes == self.lanes && self.pending_ms < CALL_TAKES_MS
    }

    fn to_line(self) -> String {
        let words = [
            self.at,
            self.resident_kb,
            self.descriptors,
            self.tasks,
            self.lanes,
            self.live_lanes,
            self.pending_ms,
            u64::from(self.is_up),
            self.links,
            self.flushes,
            self.near,
        ];
        words.map(|word| word.to_string()).join(" ")
    }
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        let words = words.map_err(|error| error.to_string())?;
        let words: [u64; 11] = words.try_into().map_err(|_| line.to_owned())?;
        let [
            at,
            resident_kb,
            descriptors,
            tasks,
            lanes,
            live_lanes,
            pending_ms,
            is_up,
            links,
            flushes,
            near,
        ] = words;
        Ok(Self {
            at,
            resident_kb,
            descriptors,
            tasks,
            lanes,
            live_lanes,
            pending_ms,
            is_up: is_up == 1,
            links,
            flushes,
            near,
        })
    }
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.unwrap().split_whitespace().next();
    words.unwrap().parse().unwrap()
}

/// The records and pages of one cache, with the source that they are loaded from.
#[derive(Clone)]
pub(crate) struct Shelf {
    pub(crate) cache: Cache,
    records: Versions,
    pages: Versions,
    source: MultiplexedConnection,
}

impl Shelf {
    /// Retries for as long as the store is away.
    pub(crate) async fn open(store: Redis, source: &str) -> Self {
        let client = redis::Client::open(source).unwrap();
        let patient = redis::AsyncConnectionConfig::new();
        let patient = patient.set_response_timeout(Some(SOURCE_TIMEOUT));
        let source = client.get_multiplexed_async_connection_with_config(&patient);
        let source = source.await.unwrap();
        let cache = loop {
            match Cache::builder(NAMESPACE).store(store.clone()).build().await {
                Ok(cache) => break cache,
                Err(_) => sleep(BUILD_PAUSE).await,
            }
        };
        let load = |from: u64| {
            let source = source.clone();
            move |key: u64| version(source.clone(), from + key)
        };
        let records = cache.entity("record", load(0)).build().unwrap();
        let pages = cache.entity("page", load(PAGES_FROM));
        let pages = pages.tags(|key, _| [group(*key)]).build().unwrap();
        Self {
            cache,
            records,
            pages,
            source,
        }
    }

    /// The last version of each key at the source.
    pub(crate) async fn committed(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for key in keys() {
            all.push((key, version(self.source.clone(), key).await.unwrap()));
        }
        all
    }

    /// Reads one key, and says what came of it.
    pub(crate) async fn read(&self, key: u64) -> Event {
        let start = now();
        let read = match key.checked_sub(PAGES_FROM) {
            Some(page) => self.pages.get_with(&page).await,
            None => self.records.get_with(&key).await,
        };
        let took = now() - start;
        match read {
            Ok(served) => Event::Read {
                key,
                start,
                took,
                version: *served.value,
                served: Some((served.origin, claim(&served))),
            },
            Err(error) => failed(key, &error),
        }
    }

    async fn read_list(&self, first: u64, history: &EventLog) {
        let keys: Vec<u64> = (0..LIST).map(|n| (first + 5 * n) % RECORDS).collect();
        let start = now();
        let values = self.records.get_many(&keys).await;
        let took = now() - start;
        for (&key, value) in keys.iter().zip(values) {
            history.add(&match value {
                Ok(version) => Event::Read {
                    key,
                    start,
                    took,
                    version: *version,
                    served: None,
                },
                Err(error) => failed(key, &error),
            });
        }
    }

    async fn commit(&self, key: u64) -> u64 {
        let mut source = self.source.clone();
        let mut commit = redis::cmd("INCR");
        let commit = commit.arg(source_key(key));
        commit.query_async(&mut source).await.unwrap()
    }
}

pub(crate) fn keys() -> impl Iterator<Item = u64> {
    (0..RECORDS).chain(PAGES_FROM..PAGES_FROM + PAGES)
}

fn source_key(key: u64) -> String {
    format!("version:{key}")
}

async fn version(mut source: MultiplexedConnection, key: u64) -> redis::RedisResult<u64> {
    let mut get = redis::cmd("GET");
    let get = get.arg(source_key(key));
    let version: Option<u64> = get.query_async(&mut source).await?;
    Ok(version.unwrap_or_default())
}

fn group(page: u64) -> String {
    format!("group:{}", page % GROUPS)
}

fn claim(served: &Served<u64>) -> u64 {
    let bound = served.bound().expect("nothing here has grace");
    u64::try_from(bound.as_nanos()).unwrap()
}

fn failed(key: u64, error: &CacheError<redis::RedisError>) -> Event {
    let what = format!("key {key}: {error}");
    Event::Failed { what }
}

/// Works until standard input says that it is enough, or ends.
pub(crate) fn run(orders: Orders) {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(orders));
}

async fn serve(orders: Orders) {
    let history = Arc::new(EventLog::create(&orders.history));
    let store = Options::number(orders.options).store(&orders.store);
    let shelf = Shelf::open(store, &orders.source).await;
    let (stop_writer, stop_readers) = (CancellationToken::new(), CancellationToken::new());
    let writes = write(
        shelf.clone(),
        orders.number,
        Arc::clone(&history),
        stop_writer.clone(),
    );
    let writer = tokio::spawn(writes);
    let readers = TaskTracker::new();
    for reader in 0..READERS {
        readers.spawn(read(
            shelf.clone(),
            reader * 17,
            Arc::clone(&history),
            stop_readers.clone(),
        ));
    }
    let sampler = tokio::spawn(sample(shelf.cache.clone()));

    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut told = async || commands.next_line().await.unwrap_or_default();
    if told().await.as_deref() != Some("quiet") {
        return;
    }
    stop_writer.cancel();
    writer.await.unwrap();
    println!("{ANSWER}quiet");
    if told().await.as_deref() != Some("end") {
        return;
    }
    stop_readers.cancel();
    readers.close();
    readers.wait().await;
    for key in keys() {
        history.add(&shelf.read(key).await);
    }
    sampler.abort();
    shelf.cache.close().await;
    println!("{ANSWER}ended {}", shelf.cache.under_way().tasks);
}

async fn sample(cache: Cache) {
    let mut turns = interval(SAMPLE_EVERY);
    loop {
        turns.tick().await;
        println!("{ANSWER}sample {}", Sample::of(&cache).to_line());
    }
}

async fn read(shelf: Shelf, first: u64, history: Arc<EventLog>, stop: CancellationToken) {
    // Bursts after it was stopped or slow: that is when reads are dangerous.
    let mut turns = interval(READ_EVERY);
    let mut keys = keys().collect::<Vec<_>>().into_iter().cycle();
    let mut keys = keys.by_ref().skip(first as usize);
    let mut number = 0;
    while !stop.is_cancelled() {
        turns.tick().await;
        number += 1;
        if number % LIST_EVERY == 0 {
            shelf.read_list(number, &history).await;
        } else if let Some(key) = keys.next() {
            history.add(&shelf.read(key).await);
        }
    }
}

/// One call after the other is begun, whatever becomes of those before.
async fn write(shelf: Shelf, pod: usize, history: Arc<EventLog>, stop: CancellationToken) {
    let calls = TaskTracker::new();
    let mut turns = interval(WRITE_EVERY);
    for call in 0.. {
        tokio::select! {
            _ = turns.tick() => {}
            () = stop.cancelled() => break,
        }
        let (shelf, history) = (shelf.clone(), Arc::clone(&history));
        calls.spawn(async move {
            change(&shelf, pod as u64, call, &history).await;
            mark(&shelf, pod as u64, MARKS_FROM + call, &history).await;
        });
    }
    calls.close();
    calls.wait().await;
}

/// Commits new versions, and invalidates them: mostly of one record, sometimes of three, now and then of
/// all pages of a group.
async fn change(shelf: &Shelf, pod: u64, call: u64, history: &EventLog) {
    let turn = call * 7 + pod * 5;
    let of_record = |n: u64| (turn + n * 11) % RECORDS;
    let (keys, group) = match call % 8 {
        7 => {
            let group = turn % GROUPS;
            let pages = (0..PAGES).filter(|page| page % GROUPS == group);
            (pages.map(|page| PAGES_FROM + page).collect(), Some(group))
        }
        3 | 6 => ((0..3).map(of_record).collect(), None),
        _ => (vec![of_record(0)], None),
    };
    for &key in &keys {
        let version = shelf.commit(key).await;
        let tag = match group {
            Some(group) => Tag::of("group", &group),
            None => Tag::of("record", &key),
        };
        history.add(&Event::Committed {
            call,
            key,
            version,
            tag: tag.to_string(),
        });
    }
    let invalidation = match group {
        Some(group) => shelf.cache.invalidate([Tag::of("group", &group)]),
        None if keys.len() > 1 => shelf.records.invalidate_many(&keys),
        None => shelf.records.invalidate(&keys[0]),
    };
    see_through(invalidation, call, history).await;
}

/// Invalidates a tag that nobody invalidates again: should it be lost, nothing takes its place.
async fn mark(shelf: &Shelf, pod: u64, call: u64, history: &EventLog) {
    let tag = Tag::of("mark", &format!("{pod}-{call}"));
    history.add(&Event::Marked {
        call,
        tag: tag.to_string(),
    });
    see_through(shelf.cache.invalidate([tag]), call, history).await;
}

/// Waits until the invalidation is acknowledged, however long that takes.
async fn see_through(invalidation: Invalidation, call: u64, history: &EventLog) {
    let outcome = invalidation.await;
    history.add(&Event::Returned { call, at: now() });
    let acknowledged = |stamp: &Stamp| Event::Acknowledged {
        call,
        at: now(),
        stamp: stamp.to_string(),
    };
    let failed = |error: InvalidateError| Event::Failed {
        what: format!("call {call}: {error}"),
    };
    history.add(&match outcome {
        Ok(stamp) => acknowledged(&stamp),
        Err(InvalidateError::Pending(pending)) => match pending.settled().await {
            Ok(stamp) => acknowledged(&stamp),
            Err(error) => failed(error),
        },
        Err(error) => failed(error),
    });
}
