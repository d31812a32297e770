//! Pods and writers as processes of their own, killed and stopped by signals.
//!
//! Such a process is this very program, run again for the one test [`another_process`] with its part in
//! the environment.

use crate::bed::{Backing, Bed, Heard, built, eventually, soon};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tidings::Cache;
use tidings::outbox::{DeliveryState, Outbox, Protection};
use tidings::testing::RedisServer;
use tokio::task::spawn_blocking;

const PART: &str = "TIDINGS_TEST_PART";
const DATABASE: &str = "TIDINGS_TEST_DATABASE";
const TABLE: &str = "TIDINGS_TEST_TABLE";
const STORE: &str = "TIDINGS_TEST_STORE";
/// Set if the database does not end the session of a pod that is silent.
const NO_LEASE: &str = "TIDINGS_TEST_NO_LEASE";
const READY: &str = "part> ready";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap()
}

/// As a test of its own, it does nothing.
#[test]
fn another_process() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match &*part {
            "deliver" => deliver().await,
            "write" => write().await,
            part => panic!("no such part: {part}"),
        }
    });
}

/// Delivers until it is killed.
async fn deliver() {
    let cache = built(|| Cache::builder(variable(TABLE)).store_url(variable(STORE))).await;
    let mut outbox = Outbox::builder(&variable(TABLE));
    if std::env::var(NO_LEASE).is_ok() {
        outbox = outbox.without(Protection::Lease);
    }
    let outbox = outbox.build().unwrap();
    let delivery = outbox.deliver(&cache, variable(DATABASE).parse().unwrap());
    while delivery.health().state != DeliveryState::Delivering {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("{READY}");
    tokio::time::sleep(Duration::from_secs(600)).await;
}

/// Commits, and dies at once: no pod is told of anything but by the row.
async fn write() {
    let (mut client, connection) =
        tokio_postgres::connect(&variable(DATABASE), tokio_postgres::NoTls)
            .await
            .unwrap();
    tokio::spawn(connection);
    let table = variable(TABLE);
    let outbox = Outbox::builder(&table).build().unwrap();
    let transaction = client.transaction().await.unwrap();
    let update = format!("UPDATE {table}_users SET name = 'new' WHERE id = 1");
    transaction.batch_execute(&update).await.unwrap();
    outbox
        .invalidate_tags(&transaction, ["user:1"])
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    kill_process(rustix::process::getpid(), Signal::KILL).unwrap();
}

struct Process(Child);

impl Process {
    fn start(part: &str, bed: &Bed) -> Self {
        Self::start_with(part, bed, &[])
    }

    fn start_with(part: &str, bed: &Bed, more: &[&str]) -> Self {
        let Backing::Redis(redis) = &bed.store else {
            panic!("processes share no memory");
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", "processes::another_process"]);
        command.env(PART, part).env(DATABASE, &bed.database);
        command.env(TABLE, &bed.table).env(STORE, redis.url());
        command.envs(more.iter().map(|name| (name, "1")));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    async fn ready(mut self) -> Self {
        let ready = spawn_blocking(move || {
            let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
            assert!(lines.map_while(Result::ok).any(|line| line.contains(READY)));
            self
        });
        soon("the process is ready", ready).await.unwrap()
    }

    /// Returns when it has stopped, which is a moment after the signal.
    fn stop(&self) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::STOP).unwrap();
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), stopped).unwrap();
    }

    fn go_on(&self) {
        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Guards G11 of `docs/guarantees.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_is_killed_right_after_its_commit_loses_nothing() {
    let bed = Bed::redis();
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let _delivery = bed.deliver(&pod);
    for _ in 0..5 {
        let old = format!("UPDATE {}_users SET name = 'old'", bed.table);
        client.batch_execute(&old).await.unwrap();
        pod.users.invalidate(&1).await.unwrap();
        assert_eq!(pod.name(1).await, "old");
        let mut writer = Process::start("write", &bed);
        let ended = spawn_blocking(move || writer.0.wait().unwrap());
        let status = soon("the writer ends", ended).await.unwrap();
        assert_eq!(status.code(), None, "it was killed: {status}");
        pod.sees(1, "new").await;
    }
}

/// Guards G11 of `docs/guarantees.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_killed_while_it_delivers_is_replaced_and_loses_nothing() {
    let bed = Bed::on(Backing::Redis(Arc::new(RedisServer::start().unwrap())));
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let heard = Heard::default();
    let _on = heard.on(&pod.cache, "last:1");
    for round in 0..3 {
        let first = Process::start("deliver", &bed).ready().await;
        let rows = format!(
            "INSERT INTO {} (tag) SELECT 'org:' || id FROM generate_series(1, 20000) AS id",
            bed.table
        );
        client.batch_execute(&rows).await.unwrap();
        let begun = async || bed.rows(&client, "true").await < 20_000;
        eventually("it has begun", begun).await;
        drop(first); // SIGKILL
        let left = bed.rows(&client, "true").await;
        bed.insert(&client, &["last:1"]).await;
        let second = bed.deliver(&pod);
        let all = async || heard.all().len() > round;
        eventually("the last row is heard", all).await;
        bed.all_delivered(&client).await;
        let delivered = usize::try_from(left).unwrap() as u64 + 1;
        let counted = async || second.health().delivered >= delivered.min(20_001) - 512;
        eventually("it delivered what was left", counted).await;
        second.stop().await;
    }
}

/// 1. The pod that delivers is stopped, and its connection stands.
/// 2. The database ends the session of a pod that is silent.
/// 3. Another one delivers.
/// 4. The first goes on, and is one of those that wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_stopped_while_it_delivers_is_replaced() {
    let bed = Bed::redis();
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let stopped = Process::start("deliver", &bed).ready().await;
    stopped.stop();
    let second = bed.deliver(&pod);
    let heard = Heard::default();
    let _on = heard.on(&pod.cache, "org:7");
    bed.insert(&client, &["org:7"]).await;
    heard.hears("org:7").await;
    eventually("it is counted", async || second.health().delivered == 1).await;
    stopped.go_on();
    bed.insert(&client, &["org:8"]).await;
    bed.all_delivered(&client).await;
}

/// The negative control: a session that nobody ends keeps the lock for as long as its machine is up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_a_pod_that_is_stopped_is_never_replaced() {
    let bed = Bed::redis();
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let stopped = Process::start_with("deliver", &bed, &[NO_LEASE]);
    let stopped = stopped.ready().await;
    stopped.stop();
    let second = bed.deliver(&pod);
    bed.insert(&client, &["org:7"]).await;
    // Longer than any lease lasts.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert_eq!(second.health().state, DeliveryState::Standby);
    assert_eq!(bed.rows(&client, "true").await, 1);
}
