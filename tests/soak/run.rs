//! One run: what happens when, and the verdict.

use crate::crew::{Crew, STEADY};
use crate::event::{Event, events_of, now};
use crate::ground::Ground;
use crate::growth::Trend;
use crate::history::{History, Read, Violation, Write};
use crate::options::Options;
use crate::pod::{NAMESPACE, Sample, Shelf};
use crate::timeline::{Fate, Timelines};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidings::store::{Acknowledge, Redis};
use tidings::testing::RedisServer;
use tidings::{Stamp, Tag};
use tokio::task::block_in_place;
use tokio::time::{sleep, sleep_until, timeout};

const SECONDS_VARIABLE: &str = "TIDINGS_SOAK_SECONDS";
const SECONDS: u64 = 60;
const EVERY_VARIABLE: &str = "TIDINGS_SOAK_EVERY";
const EVERY: u64 = 20;
const OPTIONS_VARIABLE: &str = "TIDINGS_SOAK_OPTIONS";
/// Two runs go side by side.
const PODS: usize = 3;
const WATCH_EVERY: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// What figures may differ by for reasons of the moment: a failover, a stopped pod.
const SLACK_KB: f64 = 8.0 * 1024.0;
const SLACK_COUNT: f64 = 10.0;

fn seconds(variable: &str, otherwise: u64) -> Duration {
    let set = std::env::var(variable).ok();
    Duration::from_secs(set.map_or(otherwise, |set| set.parse().unwrap()))
}

/// Runs pods on `start`'s servers, and panics if a promise was broken. The first pod's options have the
/// number `options`, unless another one is asked for.
pub(crate) async fn soak<G: Ground>(name: &'static str, options: usize, start: impl FnOnce() -> G) {
    if !RedisServer::available() {
        return;
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{name}"));
    // Left over from the last run.
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).unwrap();
    let source = block_in_place(RedisServer::start).unwrap();
    let mut ground = block_in_place(start);
    let clocks = Clocks::new();
    let set = std::env::var(OPTIONS_VARIABLE).ok();
    let options = options + set.map_or(0, |set| set.parse().unwrap());
    let (store, origin) = (ground.url(), source.url());
    let mut crew = Crew::start(name, &store, &origin, folder, PODS, options).await;
    let shelf = Shelf::open(Redis::new(&store).unwrap(), &origin).await;
    let bound = shelf.cache.health().bound;
    let in_failover = shelf.cache.health().failover_bound();
    let in_failover = in_failover.expect("set up as the docs say");
    let watch = Watch::start(&ground);

    let failovers = failovers(name, &mut ground, &mut crew, clocks).await;

    crew.quiet().await;
    sleep(bound).await;
    crew.end().await;
    let clients = watch.clients.lock().unwrap().clone();
    let mut timelines = watch.end().await;
    timelines.read_logs().await;
    let mut evidence = Evidence::default();
    for number in 0..crew.born() {
        evidence.add(number, events_of(&crew.history(number)), clocks);
    }
    // One that never wrote sees what all pods left in the store.
    let newcomer = crew.born();
    let fresh = Shelf::open(Redis::new(&store).unwrap(), &origin).await;
    for key in crate::pod::keys() {
        evidence.add(newcomer, vec![fresh.read(key).await], clocks);
    }
    evidence.complete(&shelf.committed().await);

    let verdict = Verdict {
        bound,
        in_failover,
        failovers,
        trends: trends(&crew.survivors(), &clients),
        killed: std::mem::take(&mut crew.killed),
        pods: (0..crew.born())
            .map(|number| crew.options(number))
            .collect(),
        near: near(&crew.survivors()),
        evidence,
        timelines,
    };
    verdict.give(name);
}

/// A failover, from its beginning until all pods had been whole again for a moment.
#[derive(Clone, Copy, Debug)]
struct Failover {
    began: Instant,
    over: Instant,
    healed_in: Duration,
}

impl Failover {
    fn is_during(&self, read: &Read) -> bool {
        (self.began..=self.over).contains(&read.start)
    }
}

/// One each time, with trouble among the pods between them.
async fn failovers(
    name: &str,
    ground: &mut impl Ground,
    crew: &mut Crew,
    clocks: Clocks,
) -> Vec<Failover> {
    let (length, every) = (
        seconds(SECONDS_VARIABLE, SECONDS),
        seconds(EVERY_VARIABLE, EVERY),
    );
    let begin = tokio::time::Instant::now();
    let mut all = Vec::new();
    for turn in 0.. {
        let due = begin + every / 2 + every * turn as u32;
        if due + every / 2 > begin + length {
            break;
        }
        sleep_until(due).await;
        let began = now();
        let means = block_in_place(|| {
            let strike = ground.strike(turn);
            // At once, so that pods meet the old primary again while they turn to the new one.
            ground.mend(&strike);
            strike.means
        });
        let healed_in = crew.whole_since(began).await;
        let began = clocks.instant(began);
        all.push(Failover {
            began,
            over: began + healed_in + STEADY,
            healed_in,
        });
        sleep_until(due + every / 2).await;
        let trouble = crew.trouble(turn).await;
        let at = begin.elapsed();
        println!("{name}: {at:?} {means:?}, whole after {healed_in:?}; {trouble}");
    }
    crew.whole_since(now()).await;
    all
}

/// Translates the times of events.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    instant: Instant,
    nanos: u64,
}

impl Clocks {
    fn new() -> Self {
        Self {
            instant: Instant::now(),
            nanos: now(),
        }
    }

    fn instant(self, nanos: u64) -> Instant {
        self.instant + Duration::from_nanos(nanos - self.nanos)
    }
}

/// Looks at the servers all the time.
struct Watch {
    clients: Arc<Mutex<Vec<u64>>>,
    stop: tokio_util::sync::CancellationToken,
    watching: tokio::task::JoinHandle<Timelines>,
}

impl Watch {
    fn start(ground: &impl Ground) -> Self {
        let mut timelines = Timelines::new(&ground.url(), NAMESPACE);
        let servers = ground.servers();
        let clients: Arc<Mutex<Vec<u64>>> = Arc::default();
        let stop = tokio_util::sync::CancellationToken::new();
        let (seen, stopped) = (Arc::clone(&clients), stop.clone());
        let watching = tokio::spawn(async move {
            let mut turns = tokio::time::interval(WATCH_EVERY);
            while !stopped.is_cancelled() {
                turns.tick().await;
                timelines.look().await;
                let mut sum = 0;
                for &server in &servers {
                    let count = timeout(ANSWER_WITHIN, connected_clients(server)).await;
                    sum += count.ok().flatten().unwrap_or_default();
                }
                seen.lock().unwrap().push(sum);
            }
            timelines
        });
        Self {
            clients,
            stop,
            watching,
        }
    }

    async fn end(self) -> Timelines {
        self.stop.cancel();
        self.watching.await.unwrap()
    }
}

async fn connected_clients(server: SocketAddr) -> Option<u64> {
    let client = redis::Client::open(format!("redis://{server}")).unwrap();
    let mut link = client.get_multiplexed_async_connection().await.ok()?;
    let mut info = redis::cmd("INFO");
    let info: String = info.arg("clients").query_async(&mut link).await.ok()?;
    let line = |line: &str| line.strip_prefix("connected_clients:")?.parse().ok();
    info.lines().find_map(line)
}

fn trends(survivors: &[(usize, Vec<Sample>)], clients: &[u64]) -> Vec<Trend> {
    let mut trends = Vec::new();
    for (number, samples) in survivors {
        let mut add = |what: &str, figure: fn(&Sample) -> u64, slack| {
            let figures: Vec<u64> = samples.iter().map(figure).collect();
            trends.push(Trend::new(
                format!("{what} of pod {number}"),
                &figures,
                slack,
            ));
        };
        add("memory (KiB)", |sample| sample.resident_kb, SLACK_KB);
        add("tasks", |sample| sample.tasks, SLACK_COUNT);
        add("descriptors", |sample| sample.descriptors, SLACK_COUNT);
    }
    let of = "connections at the servers".to_owned();
    trends.push(Trend::new(of, clients, SLACK_COUNT));
    trends
}

fn near(survivors: &[(usize, Vec<Sample>)]) -> BTreeMap<usize, u64> {
    let last = |samples: &[Sample]| samples.last().map_or(0, |sample| sample.near);
    let pods = survivors.iter();
    pods.map(|(number, samples)| (*number, last(samples)))
        .collect()
}

/// A tag that a pod was told is invalidated, and where that was logged.
struct Acknowledged {
    pod: usize,
    tag: Tag,
    stamp: Stamp,
}

impl Acknowledged {
    fn new(pod: usize, tag: String, stamp: &str) -> Self {
        Self {
            pod,
            tag: tag.into(),
            stamp: stamp.parse().unwrap(),
        }
    }
}

/// What all pods did.
#[derive(Default)]
struct Evidence {
    history: History,
    acknowledged: Vec<Acknowledged>,
    /// Calls that did not return the acknowledgement itself.
    pending: usize,
}

impl Evidence {
    /// Takes what one pod wrote.
    fn add(&mut self, pod: usize, events: Vec<Event>, clocks: Clocks) {
        let mut calls: BTreeMap<u64, Vec<(u64, u64, String)>> = BTreeMap::new();
        let (mut returned, mut acked) = (BTreeMap::new(), BTreeMap::new());
        let mut marks = BTreeMap::new();
        for event in events {
            match event {
                Event::Read {
                    key,
                    start,
                    took,
                    version,
                    served,
                } => self.history.reads.push(Read {
                    pod,
                    key,
                    start: clocks.instant(start),
                    took: Duration::from_nanos(took),
                    version,
                    origin: served.map(|(origin, _)| origin),
                    bound: served.map(|(_, bound)| Duration::from_nanos(bound)),
                }),
                Event::Committed {
                    call,
                    key,
                    version,
                    tag,
                } => calls.entry(call).or_default().push((key, version, tag)),
                Event::Marked { call, tag } => drop(marks.insert(call, tag)),
                Event::Returned { call, at } => drop(returned.insert(call, at)),
                Event::Acknowledged { call, at, stamp } => {
                    acked.insert(call, (at, stamp));
                }
                Event::Failed { what } => {
                    let text = format!("pod {pod}: {what}");
                    self.history.failures.push(text);
                }
            }
        }
        for (call, tag) in marks {
            if let Some((_, stamp)) = acked.get(&call) {
                self.acknowledged.push(Acknowledged::new(pod, tag, stamp));
            }
        }
        for (call, commits) in calls {
            let ack = acked.get(&call);
            for (key, version, tag) in commits {
                self.history.writes.push(Write {
                    pod,
                    key,
                    version,
                    // One that did not return was never seen to.
                    returned: match returned.get(&call) {
                        Some(&at) => clocks.instant(at),
                        None => Instant::now(),
                    },
                    acked: ack.map(|&(at, _)| clocks.instant(at)),
                });
                if let Some((_, stamp)) = ack {
                    self.acknowledged.push(Acknowledged::new(pod, tag, stamp));
                }
            }
            let at_once = ack.map(|&(at, _)| at).zip(returned.get(&call).copied());
            self.pending += usize::from(at_once.is_none_or(|(ack, ret)| ack > ret + 1_000_000));
        }
    }

    /// Adds what was committed by pods that were killed before they could write it down.
    fn complete(&mut self, committed: &[(u64, u64)]) {
        for &(key, version) in committed {
            self.history.writes.push(Write {
                pod: NOBODY,
                key,
                version,
                returned: Instant::now(),
                acked: None,
            });
        }
    }
}

const NOBODY: usize = usize::MAX;

struct Verdict {
    bound: Duration,
    in_failover: Duration,
    failovers: Vec<Failover>,
    trends: Vec<Trend>,
    killed: BTreeSet<usize>,
    /// The options of each pod that there ever was.
    pods: Vec<Options>,
    /// How many reads of each pod that lives replicas have answered.
    near: BTreeMap<usize, u64>,
    evidence: Evidence,
    timelines: Timelines,
}

impl Verdict {
    fn is_in_failover(&self, read: &Read) -> bool {
        self.failovers.iter().any(|one| one.is_during(read))
    }

    /// Prints what was seen, and panics if it is not as promised.
    fn give(self, name: &str) {
        let history = &self.evidence.history;
        let fates = self.fates();
        let count = |fate| fates.iter().filter(|&&(_, is)| is == fate).count();
        let healed = self.failovers.iter().map(|one| one.healed_in);
        println!(
            "{name}: {} failovers, whole again after {:?} at most; {} pods killed",
            self.failovers.len(),
            healed.max().unwrap_or_default(),
            self.killed.len(),
        );
        let slowest = history.reads.iter().map(|read| read.took).max();
        let slowest = slowest.unwrap_or_default();
        println!("{name}: {}; slowest {slowest:?}", history.summary());
        println!(
            "{name}: stale by at most {:?} (bound {:?}), during a failover {:?} (bound {:?})",
            history.worst(|read| !self.is_in_failover(read)),
            self.bound,
            history.worst(|read| self.is_in_failover(read)),
            self.in_failover,
        );
        println!(
            "{name}: {} acknowledged ({} calls were pending): {} kept, {} lost and logged again, {} lost; {} forks",
            fates.len(),
            self.evidence.pending,
            count(Fate::Kept),
            count(Fate::LoggedAgain),
            count(Fate::Lost),
            self.timelines.forks(),
        );
        let of_replicas =
            |&&(pod, _): &&(usize, Fate)| self.pods[pod].acknowledge != Acknowledge::Primary;
        let replicated: Vec<_> = fates.iter().filter(of_replicas).collect();
        let lost =
            |of: &[&(usize, Fate)]| of.iter().filter(|(_, fate)| *fate == Fate::Lost).count();
        println!(
            "{name}: {} of them acknowledged by a replica, {} of these lost; reads that replicas answered: {:?}",
            replicated.len(),
            lost(&replicated),
            self.near,
        );
        println!(
            "{name}: {} reads went back behind a version that was not acknowledged",
            history.steps_back(|read| read.version).len(),
        );
        for trend in &self.trends {
            println!("{name}: {trend}");
        }

        history.refuse(&self.violations());
        let is_lost = |(pod, fate): &&(usize, Fate)| match fate {
            Fate::Kept | Fate::LoggedAgain => false,
            // Whoever could have logged it again is gone.
            Fate::Lost => !self.killed.contains(pod),
            Fate::Unknown => true,
        };
        let lost: Vec<_> = fates.iter().filter(is_lost).collect();
        assert!(lost.is_empty(), "{lost:?}");
        let grown: Vec<_> = self.trends.iter().filter(|trend| trend.grows()).collect();
        assert!(grown.is_empty(), "{grown:?}");
        let unanswered =
            |&(&pod, &reads): &(&usize, &u64)| self.pods[pod].reads_replicas != (reads > 0);
        let unanswered: Vec<_> = self.near.iter().filter(unanswered).collect();
        assert!(unanswered.is_empty(), "reads of replicas: {unanswered:?}");
        assert!(!self.failovers.is_empty() && history.reads.len() > 1000);
    }

    fn fates(&self) -> Vec<(usize, Fate)> {
        let all = self.evidence.acknowledged.iter();
        all.map(|one| (one.pod, self.timelines.fate(&one.tag, &one.stamp)))
            .collect()
    }

    /// What is not allowed: outside of failovers nothing, and within one no more than its window.
    fn violations(&self) -> Vec<Violation> {
        let mut found = self.evidence.history.violations(self.bound);
        found.retain(|violation| match violation {
            Violation::Stale { read, missed_for } | Violation::Claim { read, missed_for } => {
                !self.is_in_failover(read) || *missed_for > self.in_failover
            }
            // From one primary to the other, of which only one was told. Not for longer than the window,
            // or the read is stale, too.
            Violation::Backwards { read, .. } => !self.is_in_failover(read),
            // Nobody was told that it is acknowledged.
            Violation::Lost { write } => write.pod != NOBODY && !self.killed.contains(&write.pod),
            _ => true,
        });
        found
    }
}
