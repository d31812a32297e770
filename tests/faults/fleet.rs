//! Pods that read and write the same few records, each behind a network of its own, on one server that
//! can be broken: the load under which every fault is tried.

use crate::history::{History, Read, Write};
use crate::options::Options;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tidings::coherence::Mechanisms;
use tidings::store::{Publish, Redis};
use tidings::testing::{Fault, MessageFault, Proxy, RedisServer};
use tidings::{Cache, Entity, EntityStats, Health, InvalidateError, OnStoreAbsent, StoreState};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Within what everything must be well again once a fault has ended.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// How long something that must happen, at no stated time, may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const READERS: u64 = 2;

type Versions = Entity<u64, u64, Infallible>;

/// How a fleet is made up.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) pods: usize,
    pub(crate) keys: u64,
    /// Time between two writes; each goes to another key and another pod, but never to the first: a pod
    /// that only reads has nothing but the store to learn from.
    pub(crate) write_every: Duration,
    /// Time between the beginnings of two reads of a reader, on average.
    pub(crate) read_every: Duration,
    /// How long each load takes; `None` for various times.
    pub(crate) load_takes: Option<Duration>,
    pub(crate) mechanisms: Mechanisms,
    /// User and password that the pods connect with.
    pub(crate) user: Option<(&'static str, &'static str)>,
    pub(crate) on_store_absent: OnStoreAbsent,
    pub(crate) publish: Publish,
    /// Where no two pods have the same options, the number of the first one's.
    pub(crate) mixed: Option<usize>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            pods: 3,
            keys: 6,
            write_every: Duration::from_millis(20),
            read_every: Duration::from_millis(2),
            load_takes: None,
            mechanisms: Mechanisms::default(),
            user: None,
            on_store_absent: OnStoreAbsent::Fail,
            publish: Publish::default(),
            mixed: None,
        }
    }
}

/// The system of record: a version number per key.
#[derive(Debug)]
pub(crate) struct Source {
    versions: Vec<AtomicU64>,
    loads: AtomicU64,
    load_takes: Option<Duration>,
}

impl Source {
    fn version(&self, key: u64) -> u64 {
        self.versions[key as usize].load(Ordering::SeqCst)
    }

    fn commit(&self, key: u64) -> u64 {
        self.versions[key as usize].fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Reads what is committed, then takes its time: now and then long enough for several writes.
    async fn load(&self, key: u64) -> u64 {
        let version = self.version(key);
        let number = self.loads.fetch_add(1, Ordering::Relaxed);
        let various = if number.is_multiple_of(16) {
            45
        } else {
            number % 3
        };
        let takes = self.load_takes.unwrap_or(Duration::from_millis(various));
        if !takes.is_zero() {
            sleep(takes).await;
        }
        version
    }
}

/// One pod.
pub(crate) struct Pod {
    proxy: Option<Proxy>,
    pub(crate) cache: Cache,
    versions: Versions,
}

impl Pod {
    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it has a network to itself")
    }

    pub(crate) fn health(&self) -> Health {
        self.cache.health()
    }

    pub(crate) fn stats(&self) -> EntityStats {
        self.versions.stats()
    }

    /// Why the pod is not fully at work, if it is not.
    pub(crate) fn ailment(&self) -> Option<String> {
        let health = self.health();
        let up = matches!(health.store, StoreState::Up);
        let live = health.live_lanes == health.lanes;
        (!up || !live || health.pending > 0).then(|| format!("{health:?}"))
    }
}

/// Where a fleet keeps its data.
pub(crate) trait Site {
    /// How the next pod gets there: what its URL has behind the user, and the network it has to itself.
    fn way(&self) -> (String, Option<Proxy>);
}

impl Site for RedisServer {
    fn way(&self) -> (String, Option<Proxy>) {
        let proxy = Proxy::start(self.addr()).unwrap();
        (format!("redis://{}", proxy.addr()), Some(proxy))
    }
}

/// Pods under load.
pub(crate) struct Fleet<S = RedisServer> {
    pub(crate) server: S,
    pub(crate) pods: Vec<Pod>,
    source: Arc<Source>,
    stop_writers: CancellationToken,
    stop_readers: CancellationToken,
    readers: JoinSet<(Vec<Read>, Vec<String>)>,
    writer: JoinHandle<Vec<JoinHandle<Write>>>,
}

impl Fleet {
    /// A fleet at work on a server of its own.
    pub(crate) async fn start() -> Self {
        Self::on(RedisServer::start().unwrap(), Plan::default()).await
    }

    /// How many entries the server has taken to its logs.
    pub(crate) fn logged(&self) -> u64 {
        let stats = self.cli("INFO commandstats");
        let adds = stats.lines().find(|line| line.starts_with("cmdstat_xadd:"));
        let calls = adds.unwrap().split(['=', ',']).nth(1);
        calls.unwrap().parse().unwrap()
    }

    /// A command as the operator gives it.
    pub(crate) fn cli(&self, command: &str) -> String {
        let words: Vec<_> = command.split(' ').collect();
        self.server.cli(&words).unwrap()
    }
}

impl<S: Site> Fleet<S> {
    /// A fleet at work on `server`.
    pub(crate) async fn on(server: S, plan: Plan) -> Self {
        let source = Arc::new(Source {
            versions: (0..plan.keys).map(|_| AtomicU64::new(0)).collect(),
            loads: AtomicU64::new(0),
            load_takes: plan.load_takes,
        });
        let mut pods = Vec::new();
        for _ in 0..plan.pods {
            pods.push(pod(&server, &plan, pods.len(), &source).await);
        }
        let (stop_writers, stop_readers) = (CancellationToken::new(), CancellationToken::new());
        let mut readers = JoinSet::new();
        for (pod, Pod { versions, .. }) in pods.iter().enumerate() {
            for first in 0..READERS {
                let (versions, stop) = (versions.clone(), stop_readers.clone());
                readers.spawn(read(pod, versions, first, plan.clone(), stop));
            }
        }
        let writers = pods.iter().map(|pod| pod.versions.clone()).enumerate();
        let writers = writers.skip(1).collect();
        let writer = write(writers, Arc::clone(&source), plan, stop_writers.clone());
        Self {
            server,
            pods,
            source,
            stop_writers,
            stop_readers,
            readers,
            writer: tokio::spawn(writer),
        }
    }

    /// Lets the pods work.
    pub(crate) async fn work(&self, millis: u64) {
        sleep(Duration::from_millis(millis)).await;
    }

    /// Breaks the network of every pod.
    pub(crate) fn networks(&self, fault: Fault) {
        self.pods.iter().for_each(|pod| pod.proxy().set(fault));
    }

    /// Does to the messages of every pod.
    pub(crate) fn messages(&self, fault: MessageFault) {
        self.pods
            .iter()
            .for_each(|pod| pod.proxy().set_messages(fault));
    }

    /// Waits until every pod is fully at work, which must be soon.
    pub(crate) async fn heals(&self) {
        let deadline = Instant::now() + HEALED_WITHIN;
        for (number, pod) in self.pods.iter().enumerate() {
            while let Some(ailment) = pod.ailment() {
                let late = Instant::now() >= deadline;
                assert!(
                    !late,
                    "pod {number} not healed in {HEALED_WITHIN:?}: {ailment}"
                );
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Waits until `seen` holds of every pod.
    pub(crate) async fn each_pod(&self, what: &str, seen: impl Fn(&Pod) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        for (number, pod) in self.pods.iter().enumerate() {
            while !seen(pod) {
                let late = Instant::now() >= deadline;
                assert!(!late, "pod {number} never {what}: {:?}", pod.health());
                sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Stops writing, waits until the bound has passed, and gives what happened. Pods that do not
    /// agree with the source by then are in it as failures.
    pub(crate) async fn history(mut self) -> History {
        let bound = self.bound();
        let mut history = History::default();
        self.stop_writers.cancel();
        for write in (&mut self.writer).await.unwrap() {
            match tokio::time::timeout(PATIENCE, write).await {
                Ok(write) => history.writes.push(write.unwrap()),
                Err(_) => history.failures.push("never acknowledged".to_owned()),
            }
        }
        sleep(bound).await;
        self.stop_readers.cancel();
        while let Some(done) = self.readers.join_next().await {
            let (reads, failures) = done.unwrap();
            history.reads.extend(reads);
            history.failures.extend(failures);
        }
        for (number, pod) in self.pods.iter().enumerate() {
            for (key, version) in self.source.versions.iter().enumerate() {
                let seen = pod.versions.get(&(key as u64)).await.map(|seen| *seen);
                let expected = version.load(Ordering::SeqCst);
                if !matches!(seen, Ok(seen) if seen == expected) {
                    let text =
                        format!("pod {number}, key {key}: {seen:?} of {expected} in the end");
                    history.failures.push(text);
                }
            }
        }
        history
    }

    /// How often the source was read so far.
    pub(crate) fn loads(&self) -> u64 {
        self.source.loads.load(Ordering::Relaxed)
    }

    pub(crate) fn bound(&self) -> Duration {
        self.pods[0].health().bound
    }

    /// Ends the run; panics if a promise was broken.
    pub(crate) async fn finish(self) {
        let bound = self.bound();
        let history = self.history().await;
        println!("{}", history.summary());
        assert!(history.reads.len() > 500, "idle: {}", history.summary());
        assert!(history.writes.len() > 30, "idle: {}", history.summary());
        history.refuse(&history.violations(bound));
    }
}

async fn pod(site: &impl Site, plan: &Plan, number: usize, source: &Arc<Source>) -> Pod {
    let (url, proxy) = site.way();
    let url = match plan.user {
        Some((user, password)) => url.replace("://", &format!("://{user}:{password}@")),
        None => url,
    };
    let store = match plan.mixed {
        Some(first) => {
            let options = Options::number(first + number);
            println!("pod {number}: {options}");
            options.store(&url)
        }
        None => Redis::new(&url).unwrap().publish(plan.publish),
    };
    let cache = Cache::builder("faults")
        .store(store)
        .on_store_absent(plan.on_store_absent)
        .mechanisms(plan.mechanisms);
    let cache = cache.build().await.unwrap();
    let source = Arc::clone(source);
    let load = move |key: u64| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(source.load(key).await) }
    };
    let versions = cache.entity("version", load).build().unwrap();
    Pod {
        proxy,
        cache,
        versions,
    }
}

async fn read(
    pod: usize,
    versions: Versions,
    first: u64,
    plan: Plan,
    stop: CancellationToken,
) -> (Vec<Read>, Vec<String>) {
    let (mut reads, mut failures) = (Vec::new(), Vec::new());
    // What a slow read delays is made up for.
    let mut turns = tokio::time::interval(plan.read_every);
    for key in (0..plan.keys).cycle().skip(first as usize * 3) {
        turns.tick().await;
        if stop.is_cancelled() {
            break;
        }
        let start = Instant::now();
        match versions.get_with(&key).await {
            Ok(served) => reads.push(Read {
                pod,
                key,
                start,
                took: start.elapsed(),
                version: *served.value,
                origin: Some(served.origin),
                bound: Some(served.bound().expect("nothing here has grace")),
            }),
            Err(error) => failures.push(format!("pod {pod}, key {key}: {error}")),
        }
    }
    (reads, failures)
}

/// Commits and invalidates, one after the other, without waiting for acknowledgements: mostly the key
/// alone, sometimes with another one, now and then by a clear of everything.
async fn write(
    pods: Vec<(usize, Versions)>,
    source: Arc<Source>,
    plan: Plan,
    stop: CancellationToken,
) -> Vec<JoinHandle<Write>> {
    let mut writes = Vec::new();
    while !stop.is_cancelled() {
        let number = writes.len();
        // Every pod writes every key in the long run.
        let key = number as u64 * 7 / 3 % plan.keys;
        let (pod, versions) = pods[number % pods.len()].clone();
        let source = Arc::clone(&source);
        writes.push(tokio::spawn(async move {
            let version = source.commit(key);
            let outcome = match number % 16 {
                15 => versions.clear().await,
                n if n % 4 == 3 => {
                    versions
                        .invalidate_many(&[key, (key + 1) % plan.keys])
                        .await
                }
                _ => versions.invalidate(&key).await,
            };
            let returned = Instant::now();
            let acked = match outcome {
                Ok(_) => Some(returned),
                Err(InvalidateError::Pending(pending)) => {
                    pending.settled().await.ok().map(|_| Instant::now())
                }
                Err(_) => None,
            };
            Write {
                pod,
                key,
                version,
                returned,
                acked,
            }
        }));
        tokio::select! {
            () = sleep(plan.write_every) => {}
            () = stop.cancelled() => {}
        }
    }
    writes
}
