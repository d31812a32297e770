//! Writers that die between their commit and their invalidation, with a real PostgreSQL and a real Redis,
//! or what `TIDINGS_TEST_STORE` says.
//!
//! A writer is this very program, run again for the one test [`writer`] with the addresses of both
//! servers in the environment. It begins, says so, waits for a line, commits, says so, and does nothing
//! more: it is killed. The readers are two pods in this process, which have all rows in memory when it
//! begins.
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
use tidings::testing::PostgresServer;
use tidings::{Cache, Entity, MAX_GUARD_TTL};
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

const REDIS_VARIABLE: &str = "TIDINGS_TEST_WRITER";
const SOURCE_VARIABLE: &str = "TIDINGS_TEST_WRITER_SOURCE";
const GUARDED_VARIABLE: &str = "TIDINGS_TEST_WRITER_GUARDED";
const FIRST_VARIABLE: &str = "TIDINGS_TEST_WRITER_FIRST";
const ANSWER: &str = "writer> ";
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Rows that one writer changes, each in a transaction of its own.
const ROWS: u64 = 10;

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

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A pod, and how often it has loaded each row.
async fn records(redis: &str, source: &str, guarded: bool) -> (Cache, Records, Arc<AtomicUsize>) {
    let namespace = if guarded { "guarded" } else { "unguarded" };
    let cache = Cache::builder(namespace).store_url(redis).build().await;
    let (cache, client) = (cache.unwrap(), Arc::new(connect(source).await));
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
    let first: u64 = std::env::var(FIRST_VARIABLE).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(write(&redis, &source, first..first + ROWS, guarded));
}

async fn write(redis: &str, source: &str, rows: Range<u64>, guarded: bool) {
    let (_cache, records, _) = records(redis, source, guarded).await;
    let client = connect(source).await;
    let mut lines = std::io::stdin().lines();
    let mut guards = Vec::new();
    if guarded {
        for id in rows.clone() {
            guards.push(records.begin_write(&id).ttl(MAX_GUARD_TTL).await.unwrap());
        }
    }
    println!("{ANSWER}begun");
    lines.next().unwrap().unwrap();
    for id in rows {
        let update = format!("UPDATE records SET version = version + 1 WHERE id = {id}");
        client.batch_execute(&update).await.unwrap();
        println!("{ANSWER}{}", now());
    }
    // Here it would finish them, or invalidate.
    lines.next();
}

/// A writer in another process; killed on drop.
struct Writer {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(redis: &Servers, source: &PostgresServer, first: u64, guarded: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "writer", "--nocapture"]);
        command.env(REDIS_VARIABLE, redis.url());
        command.env(SOURCE_VARIABLE, source.url());
        command.env(FIRST_VARIABLE, first.to_string());
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

    /// Lets it commit; gives when each row was committed at the latest.
    fn commit(&mut self) -> Vec<u64> {
        let mut lines = self.process.stdin.as_ref().unwrap();
        lines.write_all(b"commit\n").unwrap();
        let commit = |_| self.answer().parse().unwrap();
        (0..ROWS).map(commit).collect()
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
                std::thread::yield_now();
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

/// Kills writers behind their commits. By how much a read of an old version began later than its commit
/// had returned, in nanoseconds, at worst; and the bound.
async fn worst_after(kills: u64, guarded: bool) -> (u64, u64) {
    let source = PostgresServer::start().unwrap();
    source
        .sql("CREATE TABLE records (id bigint PRIMARY KEY, version bigint NOT NULL)")
        .unwrap();
    let last = kills * ROWS - 1;
    let rows = format!("INSERT INTO records SELECT id, 0 FROM generate_series(0, {last}) id");
    source.sql(&rows).unwrap();
    let redis = servers();
    let mut pods = Vec::new();
    for _ in 0..2 {
        pods.push(records(&redis.url(), &source.url(), guarded).await);
    }
    let bound = pods[0].0.health().bound;
    let nanos = u64::try_from(bound.as_nanos()).unwrap();
    let mut worst = 0;
    for first in (0..kills).map(|kill| kill * ROWS) {
        let rows = first..first + ROWS;
        let reader = |(_, all, _): &(_, Records, _)| Reader::start(all, rows.clone());
        let readers: Vec<_> = pods.iter().map(reader).collect();
        for (_, all, _) in &pods {
            let in_memory = |id| all.peek(&id).is_some();
            eventually("all is in memory", || rows.clone().all(in_memory)).await;
        }
        let mut writer = Writer::start(&redis, &source, first, guarded);
        assert_eq!(writer.answer(), "begun");
        // Every pod has loaded the old version of something since.
        for (_, _, loads) in pods.iter().filter(|_| guarded) {
            let before = loads.load(SeqCst);
            eventually("a load under the guard", || loads.load(SeqCst) > before).await;
        }
        let committed = writer.commit();
        drop(writer);
        // Longer than the bound, for all of it to show.
        tokio::time::sleep(bound + bound / 2).await;
        let seen = readers.into_iter().map(Reader::stop);
        for seen in seen.collect::<Vec<_>>() {
            for (id, committed) in rows.clone().zip(&committed) {
                let last = seen.get(&id).copied().unwrap_or_default();
                worst = worst.max(last.saturating_sub(*committed));
            }
        }
        if worst > nanos {
            break;
        }
    }
    (worst, nanos)
}

/// 100 commits whose writers die before they can say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_killed_between_commit_and_finish_leaves_nothing_stale() {
    let (worst, bound) = worst_after(100 / ROWS, true).await;
    assert!(
        worst > 0,
        "the old version was read after a commit: it was a race"
    );
    assert!(worst <= bound, "{worst} ns, and the bound is {bound} ns");
}

/// The negative control: the same without a guard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_guard_a_writer_that_is_killed_leaves_the_old_value() {
    let (worst, bound) = worst_after(1, false).await;
    assert!(worst > bound, "{worst} ns, and the bound is {bound} ns");
}
