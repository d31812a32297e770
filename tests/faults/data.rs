//! The server lives on, but its data does not: somebody deletes all of it, or the part that hurts most.

use crate::fleet::{Fleet, Pod};
use crate::history::Violation;

/// The keys of every lane that end in `part`: `h` for heads, `s` for logs.
fn of_every_lane(fleet: &Fleet, part: &str) -> Vec<String> {
    let lanes = fleet.pods[0].health().lanes;
    (0..lanes)
        .map(|lane| format!("{{faults:{lane:02x}}}{part}"))
        .collect()
}

fn flushes(fleet: &Fleet) -> u64 {
    fleet.pods.iter().map(|pod| pod.health().flushes).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushed() {
    let fleet = Fleet::start().await;
    for round in 1..=3 {
        fleet.work(600).await;
        fleet.cli("FLUSHALL");
        let all_began_anew = |pod: &Pod| pod.health().flushes > round * pod.health().lanes as u64;
        fleet.each_pod("began each lane anew", all_began_anew).await;
    }
    fleet.heals().await;
    fleet.finish().await;
}

/// Without its head a lane must never start again in an epoch that was used before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_deleted() {
    let fleet = Fleet::start().await;
    for _ in 0..3 {
        fleet.work(600).await;
        let before = flushes(&fleet);
        fleet.cli(&format!("DEL {}", of_every_lane(&fleet, "h").join(" ")));
        let is_dropped = |_: &Pod| flushes(&fleet) > before;
        fleet
            .each_pod("dropped what a lost epoch covered", is_dropped)
            .await;
    }
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_deleted() {
    let fleet = Fleet::start().await;
    // Hints are missing, so that the logs are needed.
    fleet.messages(tidings::testing::MessageFault::DropEvery(2));
    let before = flushes(&fleet);
    for _ in 0..20 {
        fleet.work(100).await;
        fleet.cli(&format!("DEL {}", of_every_lane(&fleet, "s").join(" ")));
    }
    assert!(
        flushes(&fleet) > before,
        "what cannot be read up is dropped"
    );
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_trimmed_to_nothing() {
    let fleet = Fleet::start().await;
    fleet.messages(tidings::testing::MessageFault::DropEvery(2));
    let before = flushes(&fleet);
    for _ in 0..20 {
        fleet.work(100).await;
        for log in of_every_lane(&fleet, "s") {
            fleet.cli(&format!("XTRIM {log} MAXLEN 0"));
        }
    }
    assert!(
        flushes(&fleet) > before,
        "what cannot be read up is dropped"
    );
    fleet.heals().await;
    fleet.finish().await;
}

/// A cache's usual eviction policy, with room for nothing: heads, logs, values, leases and floors go at
/// any moment (hole H19).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anything_evicted_at_any_time() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.cli("CONFIG SET maxmemory-policy allkeys-random");
    fleet.cli("CONFIG SET maxmemory 1");
    fleet.work(1500).await;
    fleet.cli("CONFIG SET maxmemory 0");
    let stats = fleet.cli("INFO stats");
    let evicted = stats
        .lines()
        .find_map(|line| line.strip_prefix("evicted_keys:"));
    let evicted: u64 = evicted.unwrap().trim().parse().unwrap();
    assert!(evicted > 100, "{evicted} keys were evicted");
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

/// The data of a while ago is there again, and no connection broke: a server that was restored behind
/// something that keeps connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goes_back_in_time_under_living_connections() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    for round in 0..3 {
        for key in fleet.cli("KEYS {faults:*").lines() {
            let copy = ["COPY", key, key, "DB", "1", "REPLACE"];
            fleet.server.cli(&copy).unwrap();
        }
        fleet.work(1000 - 400 * round).await;
        fleet.cli("SWAPDB 0 1");
        fleet.work(700).await;
    }
    for pod in &fleet.pods {
        assert_eq!(pod.health().links, 1);
    }
    fleet.heals().await;
    let bound = fleet.pods[0].health().bound;
    let found = fleet.history().await.violations(bound);
    // For up to a poll the pods do not know, and have to believe what the store answers.
    let is_own = |found: &Violation| matches!(found, Violation::OwnWrite { missed_for, .. } if *missed_for < bound);
    let found: Vec<_> = found.iter().filter(|found| !is_own(found)).collect();
    assert!(found.is_empty(), "{} {}", found.len(), found[0]);
}

/// Values that disappear cost a load each, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_and_floors_deleted() {
    let fleet = Fleet::start().await;
    let before = flushes(&fleet);
    for _ in 0..15 {
        fleet.work(100).await;
        for key in fleet.cli("KEYS {faults:*").lines() {
            if key.contains("}v:") || key.contains("}f:") {
                fleet.cli(&format!("DEL {key}"));
            }
        }
    }
    assert_eq!(flushes(&fleet), before);
    fleet.heals().await;
    fleet.finish().await;
}
