//! Connections that are cut, go deaf, or hold everything back; and messages that do not arrive as they
//! were sent.

use crate::fleet::{Fleet, Plan};
use std::time::{Duration, Instant};
use tidings::testing::{Direction, Fault, MessageFault, RedisServer};

/// Long enough for a confirmation to run out, a poll to be given up and a new link to be tried.
const OUTAGE: u64 = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_clients_killed_again_and_again() {
    let fleet = Fleet::start().await;
    for kind in ["normal", "pubsub", "normal", "pubsub", "normal"] {
        fleet.work(700).await;
        fleet.cli(&format!("CLIENT KILL TYPE {kind}"));
        fleet.cli("CLIENT KILL TYPE pubsub");
    }
    fleet.heals().await;
    for pod in &fleet.pods {
        let health = pod.health();
        let lanes = health.lanes as u64;
        assert_eq!(health.flushes, lanes, "a lost connection loses no history");
    }
    fleet.finish().await;
}

async fn deaf(direction: Direction) {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.networks(Fault::Blackhole { direction });
    fleet.work(OUTAGE).await;
    fleet.networks(Fault::None);
    // A connection that lost bytes is silent for good: its peer gave up.
    fleet.pods.iter().for_each(|pod| pod.proxy().cut_all());
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_reaches_the_server() {
    deaf(Direction::ToServer).await;
}

/// Invalidations happen, and their acknowledgements are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_back_from_the_server() {
    deaf(Direction::ToClient).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_through_at_all() {
    deaf(Direction::Both).await;
}

/// The network is well again, but the old connections are not, and nobody says so. An attempt to
/// connect may be among them, which hangs until its own limit of a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_half_open() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    let direction = Direction::ToClient;
    for _ in 0..2 {
        fleet.networks(Fault::Blackhole { direction });
        fleet.work(50).await;
        fleet.networks(Fault::None);
        fleet.heals().await;
        fleet.work(300).await;
    }
    let links: u64 = fleet.pods.iter().map(|pod| pod.health().links).sum();
    assert!(links > 3, "given up by ourselves");
    fleet.finish().await;
}

/// A subscription that stays silent while the log grows is replaced after two polls (hole H12).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subscription_goes_half_open() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    fleet.messages(MessageFault::DropAll);
    let since = Instant::now();
    fleet
        .each_pod("replaced its subscription", |pod| pod.health().links > 1)
        .await;
    println!("replaced after {:?}", since.elapsed());
    fleet.messages(MessageFault::None);
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

/// One pod alone is cut off: it must not serve what the others invalidate.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pod_is_held_back() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    for direction in [Direction::Both, Direction::ToClient, Direction::ToServer] {
        fleet.pods[0].proxy().set(Fault::Freeze { direction });
        fleet.work(1400).await;
        fleet.pods[0].proxy().set(Fault::None);
        fleet.heals().await;
    }
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_network() {
    let fleet = Fleet::start().await;
    let delay = Duration::from_millis(60);
    let direction = Direction::Both;
    fleet.networks(Fault::Delay { direction, delay });
    fleet.work(2000).await;
    for pod in &fleet.pods {
        assert_eq!(pod.health().links, 1, "slow is not broken");
        assert_eq!(pod.health().live_lanes, pod.health().lanes);
    }
    fleet.networks(Fault::None);
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_break_in_the_middle_of_a_reply() {
    let fleet = Fleet::start().await;
    for after_bytes in [0, 700, 3000, 5003, 9001] {
        fleet.work(200).await;
        let direction = Direction::ToClient;
        fleet.networks(Fault::Truncate {
            direction,
            after_bytes,
        });
        fleet.work(500).await;
        fleet.networks(Fault::None);
    }
    fleet.heals().await;
    fleet.finish().await;
}

/// Whatever becomes of the messages, no entry is dropped for it but those that were invalidated.
async fn messages(fault: MessageFault) -> Fleet {
    let fleet = Fleet::start().await;
    fleet.messages(fault);
    fleet.work(2000).await;
    for pod in &fleet.pods {
        let health = pod.health();
        assert_eq!(health.flushes, health.lanes as u64, "{health:?}");
    }
    fleet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_third_message_is_lost() {
    let fleet = messages(MessageFault::DropEvery(3)).await;
    for pod in &fleet.pods {
        assert!(pod.health().catch_ups > 0, "{:?}", pod.health());
        assert_eq!(pod.health().links, 1, "{:?}", pod.health());
    }
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_messages_are_lost() {
    messages(MessageFault::DropAll).await.finish().await;
}

/// The last message is lost, and then there is silence: no gap ever shows (hole H9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_message_is_lost() {
    let plan = Plan {
        write_every: Duration::from_millis(1700),
        ..Plan::default()
    };
    let fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    fleet.messages(MessageFault::DropAll);
    fleet.work(4000).await;
    for pod in &fleet.pods {
        assert!(pod.health().catch_ups > 0, "{:?}", pod.health());
    }
    let history = fleet.history().await;
    history.refuse(&history.violations(Duration::from_millis(1004)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_comes_twice() {
    let fleet = messages(MessageFault::Duplicate).await;
    fleet.heals().await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_overtake_each_other() {
    let fleet = messages(MessageFault::Swap).await;
    fleet.heals().await;
    fleet.finish().await;
}
