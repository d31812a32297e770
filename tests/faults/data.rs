//! The server lives on, but its data does not: somebody deletes all of it, or the part that hurts most.

use crate::fleet::Fleet;

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
    for _ in 0..3 {
        fleet.work(600).await;
        fleet.cli("FLUSHALL");
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
        fleet.work(400).await;
        assert!(
            flushes(&fleet) > before,
            "what a lost epoch covered is dropped"
        );
    }
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_deleted() {
    let fleet = Fleet::start().await;
    // Hints are missing, so that the logs are needed.
    fleet.messages(tidings::testing::MessageFault::DropEvery(2));
    for _ in 0..20 {
        fleet.work(100).await;
        fleet.cli(&format!("DEL {}", of_every_lane(&fleet, "s").join(" ")));
    }
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
