//! The server dies and comes back: empty, with an old dataset, with all of it, or long after the pods.

use crate::fleet::{Fleet, Plan, Pod};
use std::time::Duration;
use tidings::testing::RedisServer;
use tidings::{OnStoreAbsent, StoreState};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_happens_and_nothing_breaks() {
    let fleet = Fleet::start().await;
    fleet.work(1500).await;
    for pod in &fleet.pods {
        let health = pod.health();
        assert_eq!(health.links, 1, "{health:?}");
        assert_eq!(health.flushes, health.lanes as u64, "{health:?}");
    }
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_empty_again() {
    let mut fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.server.kill();
    fleet.work(1500).await;
    fleet.server.restart_empty().unwrap();
    fleet.heals().await;
    fleet.work(500).await;
    for pod in &fleet.pods {
        let health = pod.health();
        let lanes = health.lanes as u64;
        assert_eq!(
            health.flushes,
            2 * lanes,
            "at the start, and once for the loss: {health:?}"
        );
    }
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_over_and_over() {
    let mut fleet = Fleet::start().await;
    for _ in 0..5 {
        fleet.work(400).await;
        fleet.server.restart_empty().unwrap();
    }
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

/// Invalidations since the snapshot are lost with everything else that the store knew: what it holds
/// then must count for nothing, or values would rise from the dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_from_an_old_snapshot() {
    let mut fleet = Fleet::start().await;
    fleet.work(700).await;
    let old = fleet.server.snapshot().unwrap();
    fleet.work(700).await;
    for restart in 1..=2 {
        fleet.server.restart_from(&old).unwrap();
        let fenced = |pod: &Pod| pod.health().flushes > restart * pod.health().lanes as u64;
        fleet.each_pod("dropped what it held", fenced).await;
        fleet.heals().await;
        fleet.work(500).await;
    }
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_with_all_its_data() {
    let server = RedisServer::builder().persistent().start().unwrap();
    let mut fleet = Fleet::on(server, Plan::default()).await;
    fleet.work(600).await;
    fleet.server.kill();
    fleet.work(700).await;
    fleet.server.restart().unwrap();
    fleet.heals().await;
    fleet.work(500).await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_when_the_pods_start() {
    let mut server = RedisServer::start().unwrap();
    server.kill();
    let plan = Plan {
        on_store_absent: OnStoreAbsent::StartDegraded,
        ..Plan::default()
    };
    let mut fleet = Fleet::on(server, plan).await;
    for pod in &fleet.pods {
        assert!(matches!(pod.health().store, StoreState::Down { .. }));
    }
    // Long enough for the pauses between attempts to have grown to their longest.
    fleet.work(3000).await;
    fleet.server.restart().unwrap();
    fleet.heals().await;
    fleet.work(500).await;
    fleet.finish().await;
}

/// While the store is away the local level is a cache of one second, and not a way around it (hole H13).
async fn spares_the_source(mut server: RedisServer, absent: bool) {
    let plan = Plan {
        write_every: Duration::from_secs(60),
        on_store_absent: OnStoreAbsent::StartDegraded,
        ..Plan::default()
    };
    let per_second = plan.pods as u64 * plan.keys;
    if absent {
        server.kill();
    }
    let mut fleet = Fleet::on(server, plan).await;
    fleet.work(500).await;
    fleet.server.kill();
    let before = fleet.loads();
    fleet.work(3000).await;
    let loads = fleet.loads() - before;
    println!("{loads} loads in three seconds");
    assert!(loads <= 4 * per_second, "{loads} loads in three seconds");
    fleet.server.restart().unwrap();
    fleet.heals().await;
    let bound = fleet.bound();
    let history = fleet.history().await;
    history.refuse(&history.violations(bound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_spared_while_the_store_is_away() {
    spares_the_source(RedisServer::start().unwrap(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_is_spared_by_pods_that_start_without_the_store() {
    spares_the_source(RedisServer::start().unwrap(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_for_five_seconds() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.server.pause().unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    fleet.server.resume().unwrap();
    fleet.heals().await;
    fleet.work(500).await;
    fleet.finish().await;
}
