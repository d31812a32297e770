//! A cluster of three primaries and three replicas: nodes die, come back and hand their slots over.

use crate::fleet::{Fleet, Plan, Site};
use tidings::testing::{Proxy, RedisCluster};
use tokio::task::block_in_place;

impl Site for RedisCluster {
    fn way(&self) -> (String, Option<Proxy>) {
        (self.url(), None)
    }
}

impl Fleet<RedisCluster> {
    async fn on_a_cluster(replicas: bool) -> Self {
        let cluster = block_in_place(|| RedisCluster::start(3, replicas)).unwrap();
        let plan = Plan {
            keys: 24,
            ..Plan::default()
        };
        Self::on(cluster, plan).await
    }

    /// Waits for the lanes of a dead node to lapse; those of the other nodes go on meanwhile.
    async fn notices_the_loss(&self) {
        self.each_pod("was left with the lanes of two nodes", |pod| {
            let health = pod.health();
            (1..health.lanes).contains(&health.live_lanes)
        })
        .await;
    }

    async fn is_well_again(&self) {
        self.each_pod("was fully at work again", |pod| pod.ailment().is_none())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_and_its_replica_goes_on() {
    let mut fleet = Fleet::on_a_cluster(true).await;
    fleet.work(700).await;
    fleet.server.kill(1);
    fleet.notices_the_loss().await;
    block_in_place(|| fleet.server.wait_for_promotion(4)).unwrap();
    fleet.is_well_again().await;
    for pod in &fleet.pods {
        let health = pod.health();
        assert_eq!(health.flushes, health.lanes as u64, "{health:?}");
    }
    fleet.work(500).await;
    fleet.finish().await;
}

/// Six pods, no two with the same options. Those that wait for replicas wait for the one that died.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_under_pods_that_differ_in_their_options() {
    let cluster = block_in_place(|| RedisCluster::start(3, true)).unwrap();
    let plan = Plan {
        pods: 6,
        keys: 24,
        mixed: Some(0),
        ..Plan::default()
    };
    let mut fleet = Fleet::on(cluster, plan).await;
    fleet.work(700).await;
    fleet.server.kill(1);
    fleet.notices_the_loss().await;
    block_in_place(|| fleet.server.wait_for_promotion(4)).unwrap();
    block_in_place(|| fleet.server.restart(1)).unwrap();
    fleet.is_well_again().await;
    fleet.work(500).await;
    fleet.finish().await;
}

/// Its lanes begin anew; those of the others never notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_is_killed_and_comes_back_empty() {
    let mut fleet = Fleet::on_a_cluster(false).await;
    fleet.work(500).await;
    fleet.server.kill(1);
    fleet.work(800).await;
    fleet.notices_the_loss().await;
    block_in_place(|| fleet.server.restart(1)).unwrap();
    fleet.is_well_again().await;
    for pod in &fleet.pods {
        let health = pod.health();
        let lanes = health.lanes as u64;
        assert!(
            (lanes + 1..2 * lanes).contains(&health.flushes),
            "{health:?}"
        );
    }
    fleet.work(500).await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_to_another_node_under_load() {
    let fleet = Fleet::on_a_cluster(false).await;
    fleet.work(500).await;
    let slots = lanes_slots(&fleet);
    for &slot in slots.iter().take(3) {
        let from = fleet.server.home_of(slot);
        let to = (from + 1) % fleet.server.primaries();
        block_in_place(|| fleet.server.move_slot(slot, from, to)).unwrap();
        fleet.work(300).await;
    }
    fleet.is_well_again().await;
    for pod in &fleet.pods {
        let health = pod.health();
        assert!(health.links > 1, "{health:?}");
        // Those that moved start anew, the others keep what they have.
        let lanes = health.lanes as u64;
        assert!(
            (lanes + 1..=lanes + 3).contains(&health.flushes),
            "{health:?}"
        );
    }
    fleet.work(500).await;
    fleet.finish().await;
}

/// The slots that hold something: one for each lane.
fn lanes_slots(fleet: &Fleet<RedisCluster>) -> Vec<u16> {
    let mut slots = Vec::new();
    for at in 0..fleet.server.primaries() {
        let node = fleet.server.node(at);
        for key in node.cli(&["KEYS", "{faults:*}h"]).unwrap().lines() {
            let slot = node.cli(&["CLUSTER", "KEYSLOT", key]).unwrap();
            slots.push(slot.parse().unwrap());
        }
    }
    slots
}
