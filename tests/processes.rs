//! Pods as processes of their own, killed and stopped by signals.
//!
//! A pod is this very program, run again for the one test [`pod`] with the address of its server in the
//! environment. It takes commands line by line, and answers in lines that begin with [`ANSWER`].
//! Records live under plain keys of the same server, so that all pods have one source; how a key is
//! loaded depends on the key.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tidings::testing::{Fault, Proxy, RedisServer};
use tidings::{Cache, CacheError, Entity, InvalidateError, StoreState};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{sleep, timeout};

const SERVER_VARIABLE: &str = "TIDINGS_TEST_POD";
/// The address of the source, where it is not that of the server, and the path of a journal.
const SOURCE_VARIABLE: &str = "TIDINGS_TEST_SOURCE";
const JOURNAL_VARIABLE: &str = "TIDINGS_TEST_JOURNAL";
const ANSWER: &str = "pod> ";
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Within what a pod must be at work again.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

/// Its load takes a while.
const SLOW: u64 = 1;
/// Its first load never ends.
const HUNG: u64 = 2;
/// From here on, keys have versions that change.
const VERSIONED: u64 = 10;
const VERSIONS: u64 = 3;

type Records = Entity<u64, u64, redis::RedisError>;

async fn records(url: &str) -> (Cache, Records) {
    // Patient: on a machine with much else to do, pods would else load beside the store.
    let mut cache = Cache::builder("processes")
        .store_url(url)
        .read_timeout(Duration::from_secs(5));
    if let Ok(path) = std::env::var(JOURNAL_VARIABLE) {
        cache = cache.journal(path);
    }
    let cache = cache.build().await.unwrap();
    let source = std::env::var(SOURCE_VARIABLE).unwrap_or_else(|_| url.to_owned());
    let client = redis::Client::open(source).unwrap();
    let source = client.get_multiplexed_async_connection().await.unwrap();
    let load = move |key: u64| load(source.clone(), key);
    let records = cache.entity("record", load).build().unwrap();
    (cache, records)
}

async fn load(mut source: redis::aio::MultiplexedConnection, key: u64) -> redis::RedisResult<u64> {
    let mut count = redis::cmd("INCR");
    let count = count.arg(format!("loads:{key}"));
    let number: u64 = count.query_async(&mut source).await?;
    match key {
        HUNG if number == 1 => {
            let mut note = redis::cmd("SET");
            let note = note.arg("loader").arg(std::process::id());
            note.query_async::<()>(&mut source).await?;
            sleep(Duration::from_secs(600)).await;
        }
        SLOW | HUNG => sleep(Duration::from_millis(300)).await,
        _ => {}
    }
    let mut get = redis::cmd("GET");
    let get = get.arg(format!("source:{key}"));
    let version: Option<u64> = get.query_async(&mut source).await?;
    Ok(version.unwrap_or_default())
}

/// Nanoseconds of the clock that all processes of a machine share.
fn now() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    at.tv_sec.unsigned_abs() * 1_000_000_000 + at.tv_nsec.unsigned_abs()
}

/// The pod. As a test of its own, it does nothing.
#[test]
fn pod() {
    let Ok(url) = std::env::var(SERVER_VARIABLE) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(&url));
    // A load may hang.
    runtime.shutdown_background();
}

async fn serve(url: &str) {
    let (cache, records) = records(url).await;
    println!("{ANSWER}ready");
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    let mut spinner = None;
    while let Ok(Some(command)) = commands.next_line().await {
        let words: Vec<_> = command.split(' ').collect();
        match words[..] {
            ["read", key, tasks] => {
                let (key, tasks): (u64, usize) = (key.parse().unwrap(), tasks.parse().unwrap());
                let read = |_| {
                    let records = records.clone();
                    tokio::spawn(async move { records.get(&key).await.is_ok() })
                };
                let mut good = 0;
                for read in (0..tasks).map(read).collect::<Vec<_>>() {
                    good += usize::from(read.await.unwrap());
                }
                println!("{ANSWER}{good}");
            }
            ["health"] => {
                let health = cache.health();
                let up = matches!(health.store, StoreState::Up);
                let whole = up && health.live_lanes == health.lanes && health.pending == 0;
                println!("{ANSWER}{}", if whole { "whole" } else { "ailing" });
            }
            ["invalidate", first, count] => {
                let (first, count): (u64, u64) = (first.parse().unwrap(), count.parse().unwrap());
                let mut pending = 0;
                for key in first..first + count {
                    let called = records.invalidate(&key).await;
                    pending += u64::from(matches!(called, Err(InvalidateError::Pending(_))));
                }
                println!("{ANSWER}{pending}");
            }
            ["replayed"] => {
                let journal = cache.health().journal;
                println!("{ANSWER}{}", journal.map_or(0, |journal| journal.replayed));
            }
            ["version", key] => {
                let version = records.get(&key.parse().unwrap()).await.unwrap();
                println!("{ANSWER}{version}");
            }
            ["flushes"] => println!("{ANSWER}{}", cache.health().flushes),
            ["links"] => println!("{ANSWER}{}", cache.health().links),
            ["spin"] => spinner = Some(Spinner::start(records.clone())),
            ["seen"] => {
                let seen = spinner.take().map(Spinner::stop).unwrap();
                println!("{ANSWER}pause {}", seen.longest_pause);
                for ((key, version), last) in seen.last {
                    println!("{ANSWER}seen {key} {version} {last}");
                }
                println!("{ANSWER}end");
            }
            _ => panic!("unknown command {command}"),
        }
    }
}

/// A thread that reads without a pause.
struct Spinner {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Seen>,
}

/// What it saw.
#[derive(Default)]
struct Seen {
    /// When the last read began that gave a version of a key: the older a version is when it is
    /// served, the worse.
    last: HashMap<(u64, u64), u64>,
    /// The longest time between the beginnings of two reads.
    longest_pause: u64,
}

impl Spinner {
    fn start(records: Records) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut before = now();
            for key in (VERSIONED..VERSIONED + VERSIONS).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let start = now();
                seen.longest_pause = seen.longest_pause.max(start - before);
                before = start;
                match runtime.block_on(records.get(&key)) {
                    Ok(version) => seen.last.insert((key, *version), start),
                    // A load that was under way when the process was stopped has had its five seconds,
                    // or the source's half of one.
                    Err(CacheError::Timeout { .. }) => continue,
                    Err(CacheError::Load(error)) if error.is_timeout() => continue,
                    Err(error) => panic!("{error:?}"),
                };
            }
            seen
        });
        Self { stop, thread }
    }

    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A pod in another process; killed on drop.
struct Pod {
    process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Pod {
    async fn start(server: &RedisServer) -> Self {
        Self::start_with(&[(SERVER_VARIABLE, &server.url())]).await
    }

    async fn start_with(variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pod", "--nocapture"]);
        command.envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut pod = Self {
            process,
            commands,
            answers,
        };
        assert_eq!(pod.answer().await, "ready");
        pod
    }

    async fn tell(&mut self, command: &str) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        loop {
            let line = timeout(PATIENCE, self.answers.next_line()).await;
            let line = line.expect("the pod answers").unwrap();
            // The test harness may have begun the line.
            if let Some((_, answer)) = line.expect("the pod lives").split_once(ANSWER) {
                return answer.to_owned();
            }
        }
    }

    async fn ask(&mut self, command: &str) -> String {
        self.tell(command).await;
        self.answer().await
    }

    fn id(&self) -> Option<u32> {
        self.process.id()
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
}

async fn pods(server: &RedisServer, count: usize) -> Vec<Pod> {
    let mut pods = Vec::new();
    for _ in 0..count {
        pods.push(Pod::start(server).await);
    }
    pods
}

#[tokio::test]
async fn a_cold_key_that_all_pods_ask_for_at_once_is_loaded_once() {
    let server = RedisServer::start().unwrap();
    let mut pods = pods(&server, 8).await;
    for pod in &mut pods {
        pod.tell(&format!("read {SLOW} 50")).await;
    }
    for pod in &mut pods {
        assert_eq!(pod.answer().await, "50");
    }
    let loads = server.cli(&["GET", &format!("loads:{SLOW}")]).unwrap();
    assert_eq!(loads, "1");
}

#[tokio::test]
async fn another_pod_takes_over_when_the_loading_one_is_killed() {
    let server = RedisServer::start().unwrap();
    let mut pods = pods(&server, 8).await;
    for pod in &mut pods {
        pod.tell(&format!("read {HUNG} 10")).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let loader = loop {
        if let Ok(id) = server.cli(&["GET", "loader"]).unwrap().parse::<u32>() {
            break id;
        }
        assert!(Instant::now() < deadline, "nobody loads");
        sleep(Duration::from_millis(2)).await;
    };
    let loader = pods.iter().position(|pod| pod.id() == Some(loader));
    let mut loader = pods.remove(loader.expect("one of them loads"));
    loader.process.kill().await.unwrap();
    for pod in &mut pods {
        assert_eq!(pod.answer().await, "10", "nobody fails or times out");
    }
    let loads = server.cli(&["GET", &format!("loads:{HUNG}")]).unwrap();
    assert_eq!(loads, "2", "the hung one, and the one that took over");
}

/// For how many milliseconds pods are stopped, one time after the other, parted by commas.
fn stops() -> Vec<u64> {
    let set = std::env::var("TIDINGS_STOP_MILLIS").unwrap_or_else(|_| "500,2000,5000".to_owned());
    set.split(',').map(|stop| stop.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_stopped_serves_nothing_older_than_the_bound_when_it_goes_on() {
    for stop in stops() {
        let server = RedisServer::start().unwrap();
        nothing_old_after_a_stop(&server, async |_| sleep(Duration::from_millis(stop)).await).await;
    }
}

/// The server gives up a subscriber that takes nothing any more, and what was on its way is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_stopped_until_its_buffer_overflowed_misses_nothing() {
    let server = RedisServer::start().unwrap();
    let limit = ["client-output-buffer-limit", "pubsub 256kb 256kb 1"];
    server.cli(&["CONFIG", "SET", limit[0], limit[1]]).unwrap();
    let flood = "x".repeat(64 * 1024);
    let subscribers = || {
        let clients = server.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).unwrap();
        clients.lines().count()
    };
    let links = nothing_old_after_a_stop(&server, async |channel| {
        assert_eq!(subscribers(), 2);
        let deadline = Instant::now() + PATIENCE;
        // The one that is left is the writer's.
        while subscribers() > 1 {
            assert!(Instant::now() < deadline, "it is never given up");
            server.cli(&["PUBLISH", channel, &flood]).unwrap();
            sleep(Duration::from_millis(2)).await;
        }
        sleep(Duration::from_millis(1500)).await;
    })
    .await;
    assert_eq!(links, 2, "its connection was replaced");
}

/// Stops a pod that reads without a pause while another one writes, and lets it go on after `meanwhile`,
/// which is given the channel of the hints. Looks when each version was served last, and that the pod
/// has lost nothing, neither what it held nor what it missed. Gives how many links it has had.
async fn nothing_old_after_a_stop(server: &RedisServer, meanwhile: impl AsyncFnOnce(&str)) -> u64 {
    let mut stopped = Pod::start(server).await;
    let (cache, records) = records(&server.url()).await;
    let bound = cache.health().bound;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(server.url(), records, Arc::clone(&stop)));

    stopped.tell("spin").await;
    sleep(Duration::from_secs(1)).await;
    stopped.signal(Signal::STOP);
    let began = Instant::now();
    meanwhile("{processes}c").await;
    let gone = began.elapsed();
    stopped.signal(Signal::CONT);
    let deadline = Instant::now() + HEALED_WITHIN;
    while stopped.ask("health").await != "whole" {
        assert!(Instant::now() < deadline, "not live again");
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let acked = writer.await.unwrap();

    let pause = stopped.ask("seen").await;
    let pause: u64 = pause.strip_prefix("pause ").unwrap().parse().unwrap();
    assert!(
        Duration::from_nanos(pause) >= gone / 2,
        "it read until it was stopped: {pause}"
    );
    let seen = seen_in_time(&mut stopped, &acked, bound).await;
    assert!(seen >= 10, "too few versions seen: {seen}");

    sleep(bound).await;
    for key in VERSIONED..VERSIONED + VERSIONS {
        let versions = acked.iter().filter(|ack| ack.key == key);
        let last = versions.map(|ack| ack.version).max().unwrap();
        let served = stopped.ask(&format!("version {key}")).await;
        assert_eq!(served, last.to_string());
    }
    assert_eq!(stopped.ask("flushes").await, "16", "one for each lane");
    let links = stopped.ask("links").await;
    println!("stopped for {gone:?}: {seen} versions seen, {links} links");
    links.parse().unwrap()
}

/// Reads what a pod has seen; panics if it served a version for too long. Gives how many there were.
async fn seen_in_time(pod: &mut Pod, acked: &[Acked], bound: Duration) -> usize {
    let bound = u64::try_from(bound.as_nanos()).unwrap();
    let mut seen = 0;
    loop {
        let answer = pod.answer().await;
        let Some(line) = answer.strip_prefix("seen ") else {
            return seen;
        };
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [key, version, last] = numbers[..] else {
            panic!("unexpected answer {line}");
        };
        let newer = acked
            .iter()
            .filter(|ack| ack.key == key && ack.version > version);
        let missed_since = newer.map(|ack| ack.at).min().unwrap_or(u64::MAX);
        assert!(
            last <= missed_since.saturating_add(bound),
            "version {version} of key {key} served {} ns too long",
            last - missed_since - bound
        );
        seen += 1;
    }
}

/// A pod that is cut off invalidates, is told that it is pending, and is killed. Gives what another pod
/// serves of the keys once the first one was started again, with its journal or without.
async fn after_a_pod_was_killed_with_pending_invalidations(journal: bool) -> Vec<u64> {
    const KEYS: u64 = 20;
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let folder =
        std::env::temp_dir().join(format!("tidings-killed-{}-{journal}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (url, path) = (server.url(), folder.join("journal"));
    let through = proxy.url();
    let mut variables = vec![(SERVER_VARIABLE, &*through), (SOURCE_VARIABLE, &*url)];
    if journal {
        variables.push((JOURNAL_VARIABLE, path.to_str().unwrap()));
    }
    let (cache, records) = records(&url).await;
    let keys: Vec<u64> = (VERSIONED..VERSIONED + KEYS).collect();
    for key in &keys {
        assert_eq!(*records.get(key).await.unwrap(), 0);
    }
    let mut killed = Pod::start_with(&variables).await;
    proxy.set(Fault::Refuse);
    let deadline = Instant::now() + PATIENCE;
    while killed.ask("health").await == "whole" {
        assert!(Instant::now() < deadline, "it is cut off");
    }
    for key in &keys {
        let source = format!("source:{key}");
        server.cli(&["SET", &source, "1"]).unwrap();
    }
    let command = format!("invalidate {VERSIONED} {KEYS}");
    assert_eq!(killed.ask(&command).await, KEYS.to_string());
    killed.signal(Signal::KILL);
    killed.process.wait().await.unwrap();

    proxy.set(Fault::None);
    let mut next = Pod::start_with(&variables).await;
    let expected = if journal { KEYS } else { 0 };
    assert_eq!(next.ask("replayed").await, expected.to_string());
    let deadline = Instant::now() + PATIENCE;
    while next.ask("health").await != "whole" {
        assert!(Instant::now() < deadline, "all is acknowledged");
        sleep(Duration::from_millis(5)).await;
    }
    sleep(cache.health().bound).await;
    let mut served = Vec::new();
    for key in &keys {
        served.push(*records.get(key).await.unwrap());
    }
    std::fs::remove_dir_all(&folder).unwrap();
    served
}

#[tokio::test]
async fn a_pod_that_was_killed_does_not_forget_its_pending_invalidations() {
    let served = after_a_pod_was_killed_with_pending_invalidations(true).await;
    assert_eq!(served, [1; 20]);
}

/// What the journal is for: the same without one.
#[tokio::test]
async fn without_a_journal_pending_invalidations_die_with_their_pod() {
    let served = after_a_pod_was_killed_with_pending_invalidations(false).await;
    assert_eq!(served, [0; 20]);
}

struct Acked {
    key: u64,
    version: u64,
    at: u64,
}

/// Commits and invalidates, until told to stop.
async fn write(url: String, records: Records, stop: Arc<AtomicBool>) -> Vec<Acked> {
    let client = redis::Client::open(url).unwrap();
    let mut source = client.get_multiplexed_async_connection().await.unwrap();
    let mut acked = Vec::new();
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = VERSIONED + number % VERSIONS;
        let mut commit = redis::cmd("SET");
        let commit = commit.arg(format!("source:{key}")).arg(number);
        commit.query_async::<()>(&mut source).await.unwrap();
        records.invalidate(&key).await.unwrap();
        acked.push(Acked {
            key,
            version: number,
            at: now(),
        });
        sleep(Duration::from_millis(10)).await;
    }
    acked
}
