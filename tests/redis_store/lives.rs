//! Lives of a server: what continues another one, and what only looks as if it did.

use super::{Admin, LANE, OTHER_OPENING, Pod, connect, place};
use std::time::{Duration, Instant};
use tidings::coherence::{Head, Kind};
use tidings::store::{Link, Redis, Store};
use tidings::testing::RedisServer;

/// A pod at a primary that has a replica, and the replica.
async fn pod_with_replica() -> (Pod, RedisServer) {
    let primary = server();
    let replica = server();
    replica.run(&format!("REPLICAOF 127.0.0.1 {}", primary.port()));
    eventually("the replica is in step", || {
        has(&replica, "master_link_status:up")
    });
    let mut pod = Pod::on(primary).await;
    pod.touch().await;
    for _ in 0..2 {
        pod.hint().await;
    }
    (pod, replica)
}

fn server() -> RedisServer {
    let server = RedisServer::builder().arg("--repl-diskless-sync-delay", "0");
    server.start().unwrap()
}

fn has(server: &RedisServer, line: &str) -> bool {
    let info = server.cli(&["INFO", "replication"]).unwrap();
    info.lines().any(|found| found.trim_end() == line)
}

fn eventually(what: &str, look: impl Fn() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the replica has what the primary wrote.
fn catch_up(pod: &Pod, replica: &RedisServer) {
    let keys = "{ns:00}h";
    eventually("the replica has caught up", || {
        let head = |server: &RedisServer| server.query::<Vec<u8>>(&[b"GET", keys.as_bytes()]);
        head(&pod.server) == head(replica)
    });
}

async fn touch_at(url: &str) -> (Head, std::sync::Arc<dyn Link>) {
    let (link, _hints) = connect(url).await.unwrap();
    let heads = link.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
    (heads[0], link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_continues_the_log_and_the_values() {
    let (pod, replica) = pod_with_replica().await;
    pod.invalidate("k", 5).await.unwrap();
    let value = pod.store("k").await;
    let before = pod.head().await.unwrap();
    catch_up(&pod, &replica);
    eventually("the replica has the value", || {
        let len: i64 = replica.query(&[b"STRLEN", b"{ns:00}v:k"]);
        len == value.len() as i64
    });
    replica.run("REPLICAOF NO ONE");

    let (after, link) = touch_at(&replica.url()).await;
    assert!(after.fork, "{after:?}");
    assert_eq!(
        (after.prev_epoch, after.fork_seq),
        (before.at.epoch, before.at.seq)
    );
    assert_eq!((after.at.epoch, after.at.seq), (OTHER_OPENING.epoch, 3));
    let polled = link.poll().await.unwrap();
    let age = after.fork_age(polled.server_ms);
    assert!(age < Duration::from_secs(60), "just now, not {age:?} ago");
    let log = link.log_since(LANE, 3, 10).await.unwrap();
    assert_eq!((log[0].kind, log[0].prev), (Kind::Fork, before.nonce));
    let found = link.read(place("k")).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&value[..]));
    // Who comes later finds it open.
    assert_eq!(touch_at(&replica.url()).await.0, after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_replica_is_fenced_if_that_is_asked_for() {
    let (pod, replica) = pod_with_replica().await;
    catch_up(&pod, &replica);
    replica.run("REPLICAOF NO ONE");
    let store = Redis::new(&replica.url()).unwrap().fence_on_failover();
    let (link, _hints) = store.connect(&super::namespace()).await.unwrap();
    let heads = link.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
    assert!(!heads[0].fork, "{heads:?}");
    assert_eq!(heads[0].at.epoch, OTHER_OPENING.epoch);
}

/// A primary that starts again from a snapshot names the life in it as the one before, just as a promoted
/// replica does. But what it wrote behind the snapshot is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_starts_again_from_a_snapshot_continues_nothing() {
    let (mut pod, replica) = pod_with_replica().await;
    let before = pod.head().await.unwrap();
    let id = |server: &RedisServer, field: &str| {
        let info = server.cli(&["INFO", "replication"]).unwrap();
        let mut lines = info.lines().map(str::to_owned);
        lines.find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()))
    };
    let life = id(&pod.server, "master_replid:");
    eventually("the copy for the replica is done", || {
        let info = pod.server.cli(&["INFO", "persistence"]).unwrap();
        info.contains("rdb_bgsave_in_progress:0")
    });
    let snapshot = pod.server.snapshot().unwrap();
    pod.invalidate("k", 5).await.unwrap();
    drop(replica);
    pod.server.restart_from(&snapshot).unwrap();
    assert_eq!(
        id(&pod.server, "master_replid2:"),
        life,
        "it looks like one"
    );

    let (after, _link) = touch_at(&pod.server.url()).await;
    assert!(!after.fork, "{after:?}");
    assert_ne!(after.at.epoch, before.at.epoch);
}
