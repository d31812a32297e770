//! Writers that die between their commit and their invalidation, with a real PostgreSQL and a real Redis,
//! or what `TIDINGS_TEST_STORE` says.
//!
//! A writer is this very program, run again for the one test [`writer`] with the addresses of both
//! servers in the environment. It begins, says so, waits for a line, commits, says so, and is killed at that.
//! The readers are two pods in this process, which have all rows in memory when it begins.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[expect(dead_code, reason = "others need more of it")]
#[path = "support/servers.rs"]
mod servers;

use servers::{Servers, servers};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tidings::store::Redis;
use tidings::testing::PostgresServer;
use tidings::{Cache, Entity, MAX_GUARD_TTL};
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

const REDIS_VARIABLE: &str = "TIDINGS_TEST_WRITER";
const SOURCE_VARIABLE: &str = "TIDINGS_TEST_WRITER_SOURCE";
const GUARDED_VARIABLE: &str = "TIDINGS_TEST_WRITER_GUARDED";
const ROW_VARIABLE: &str = "TIDINGS_TEST_WRITER_ROW";
/// How many are killed.
const KILLS_VARIABLE: &str = "TIDINGS_WRITER_KILLS";
const ANSWER: &str = "writer> ";
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Writers that live at the same time, each of a row of its own: how many makes no difference to any of
/// them, and much to how long a hundred take.
const AT_ONCE: u64 = 20;

type Records = Entity<u64, u64, tokio_postgres::Error>;

/// Nanoseconds of the clock that all processes of a machine share.
fn now() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    at.tv_sec.unsigned_abs() * 1_000_000_000 + at.tv_nsec.unsigned_abs()
}

/// Waits until `look` gives true.
async fn eventually(what: &str, look: impl Fn() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Tries what a loaded machine may refuse, until it does not.
async fn insist<T, E: std::fmt::Debug>(attempt: impl AsyncFn() -> Result<T, E>) -> T {
    let began = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error:?}"),
        }
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A pod, and how often it has loaded each row.
async fn records(redis: &str, source: &str, guarded: bool) -> (Cache, Records, Arc<AtomicUsize>) {
    let namespace = if guarded { "guarded" } else { "unguarded" };
    // Ten writers begin at once, each with connections to every node.
    let store = Redis::new(redis).unwrap().connect_timeout(PATIENCE / 3);
    let build = async || Cache::builder(namespace).store(store.clone()).build().await;
    let cache = insist(build).await;
    let client = Arc::new(connect(source).await);
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let load = move |id: u64| {
        let (client, counted) = (Arc::clone(&client), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, SeqCst);
            let select = format!("SELECT version FROM records WHERE id = {id}");
            let row = client.query_one(&select, &[]).await?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap())
        }
    };
    let records = cache.entity("record", load).build().unwrap();
    (cache, records, loads)
}

/// The writer. As a test of its own, it does nothing.
#[test]
fn writer() {
    let Ok(redis) = std::env::var(REDIS_VARIABLE) else {
        return;
    };
    let source = std::env::var(SOURCE_VARIABLE).unwrap();
    let guarded = std::env::var(GUARDED_VARIABLE).is_ok();
    let row: u64 = std::env::var(ROW_VARIABLE).unwrap().parse().unwrap();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(write(&redis, &source, row, guarded));
}

async fn write(redis: &str, source: &str, row: u64, guarded: bool) {
    let (_cache, records, _) = records(redis, source, guarded).await;
    let client = connect(source).await;
    let mut lines = std::io::stdin().lines();
    let update = format!("BEGIN; UPDATE records SET version = version + 1 WHERE id = {row}");
    client.batch_execute(&update).await.unwrap();
    let mut guard = None;
    if guarded {
        guard = Some(insist(async || records.begin_write(&row).ttl(MAX_GUARD_TTL).await).await);
    }
    println!("{ANSWER}begun");
    lines.next().unwrap().unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    println!("{ANSWER}{}", now());
    // Here it would finish the guard, or invalidate.
    lines.next();
    drop(guard);
}

/// A writer in another process; killed on drop.
struct Writer {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(redis: &Servers, source: &PostgresServer, row: u64, guarded: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "writer", "--nocapture"]);
        command.env(REDIS_VARIABLE, redis.url());
        command.env(SOURCE_VARIABLE, source.url());
        command.env(ROW_VARIABLE, row.to_string());
        if guarded {
            command.env(GUARDED_VARIABLE, "1");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    fn answer(&mut self) -> String {
        for line in (&mut self.answers).lines() {
            // The test harness may have begun the line.
            if let Some((_, answer)) = line.unwrap().split_once(ANSWER) {
                return answer.to_owned();
            }
        }
        panic!("the writer is gone");
    }

    /// Lets it commit.
    fn commit(&self) {
        let mut lines = self.process.stdin.as_ref().unwrap();
        lines.write_all(b"commit\n").unwrap();
    }

    /// Kills it as soon as its commit has returned; gives when that was.
    fn kill(mut self) -> u64 {
        self.answer().parse().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Gone already, if it fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A thread that reads some rows over and over.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<HashMap<u64, u64>>,
}

impl Reader {
    fn start(records: &Records, rows: Range<u64>) -> Self {
        let (stop, records) = (Arc::new(AtomicBool::new(false)), records.clone());
        let (stopped, runtime) = (Arc::clone(&stop), Handle::current());
        let thread = std::thread::spawn(move || {
            let mut last = HashMap::new();
            for id in rows.cycle() {
                if stopped.load(SeqCst) {
                    break;
                }
                let start = now();
                if *runtime.block_on(records.get(&id)).unwrap() == 0 {
                    last.insert(id, start);
                }
                // The writers need the processors too.
                std::thread::sleep(Duration::from_micros(100));
            }
            last
        });
        Self { stop, thread }
    }

    /// When the last read began that gave the old version of a row.
    fn stop(self) -> HashMap<u64, u64> {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap()
    }
}

/// What killed writers left.
#[derive(Debug, Default)]
struct Seen {
    /// By how many nanoseconds a read of an old version began later than its commit had returned, at worst.
    worst: u64,
    /// Rows of which the old version was read beyond the bound.
    stale: u64,
    /// Rows of which it was read within.
    raced: u64,
    bound: u64,
}

/// Kills writers behind their commits.
async fn kill_writers(kills: u64, guarded: bool) -> Seen {
    let source = PostgresServer::start().unwrap();
    source
        .sql("CREATE TABLE records (id bigint PRIMARY KEY, version bigint NOT NULL)")
        .unwrap();
    let rows = format!("INSERT INTO records SELECT id, 0 FROM generate_series(1, {kills}) id");
    source.sql(&rows).unwrap();
    let redis = servers();
    let mut pods = Vec::new();
    for _ in 0..2 {
        pods.push(records(&redis.url(), &source.url(), guarded).await);
    }
    let bound = pods[0].0.health().bound;
    let mut seen = Seen {
        bound: u64::try_from(bound.as_nanos()).unwrap(),
        ..Seen::default()
    };
    for first in (1..=kills).step_by(AT_ONCE as usize) {
        let rows = first..(first + AT_ONCE).min(kills + 1);
        let reader = |(_, all, _): &(_, Records, _)| Reader::start(all, rows.clone());
        let readers: Vec<_> = pods.iter().map(reader).collect();
        for (_, all, _) in &pods {
            let in_memory = |id| all.peek(&id).is_some();
            eventually("all is in memory", || rows.clone().all(in_memory)).await;
        }
        let start = |row| Writer::start(&redis, &source, row, guarded);
        let mut writers: Vec<_> = rows.clone().map(start).collect();
        for writer in &mut writers {
            assert_eq!(writer.answer(), "begun");
        }
        // Every pod has loaded the old version of something since.
        for (_, _, loads) in pods.iter().filter(|_| guarded) {
            let before = loads.load(SeqCst);
            eventually("a load under the guard", || loads.load(SeqCst) > before).await;
        }
        let mut committed = HashMap::new();
        for (row, writer) in rows.clone().zip(writers) {
            writer.commit();
            committed.insert(row, writer.kill());
        }
        // Longer than the bound, for all of it to show.
        tokio::time::sleep(bound + bound / 2).await;
        let read: Vec<_> = readers.into_iter().map(Reader::stop).collect();
        for (row, committed) in committed {
            let last = read.iter().filter_map(|read| read.get(&row)).max();
            let late = last.copied().unwrap_or_default().saturating_sub(committed);
            seen.worst = seen.worst.max(late);
            seen.stale += u64::from(late > seen.bound);
            seen.raced += u64::from(late > 0);
        }
    }
    println!("{kills} killed: {seen:?}");
    seen
}

fn kills() -> u64 {
    let kills = std::env::var(KILLS_VARIABLE).ok();
    kills.and_then(|kills| kills.parse().ok()).unwrap_or(100)
}

/// 100 writers that die before they can say what they have committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_killed_between_commit_and_finish_leaves_nothing_stale() {
    let seen = kill_writers(kills(), true).await;
    assert!(seen.raced > 0, "no old version was read after its commit");
    assert_eq!(seen.stale, 0, "{seen:?}");
}

/// The negative control: the same without a guard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_guard_a_writer_that_is_killed_leaves_the_old_value() {
    let seen = kill_writers(kills(), false).await;
    assert!(seen.stale > 0, "{seen:?}");
}
