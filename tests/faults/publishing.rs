//! Hints that are published together, by whoever is there to do it.

use crate::fleet::{Fleet, Plan, Site};
use std::time::{Duration, Instant};
use tidings::store::Publish;
use tidings::testing::{Direction, Fault, MessageFault, Proxy, RedisServer};

const RELAY: Publish = Publish::Relay {
    every: Duration::from_millis(20),
};
const ADAPTIVE: Publish = Publish::Adaptive {
    within: Duration::from_millis(20),
};

/// Pods straight at the server: proxies would take more of the machine than the pods.
struct Direct(RedisServer);

impl Site for Direct {
    fn way(&self) -> (String, Option<Proxy>) {
        (self.0.url(), None)
    }
}

/// How often the server ran a command.
fn calls(server: &RedisServer, command: &str) -> usize {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let front = format!("cmdstat_{command}:calls=");
    let calls = |line: &str| line.strip_prefix(&front)?.split(',').next()?.parse().ok();
    stats.lines().find_map(calls).unwrap_or(0)
}

/// As many pods as two cores bear. `TIDINGS_SCALE_WRITES` lets them write more (200).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_pods_with_a_relay_keep_every_promise() {
    let writes = std::env::var("TIDINGS_SCALE_WRITES");
    let writes = writes.map_or(200, |text| text.parse().expect("a number"));
    let plan = Plan {
        pods: 64,
        keys: 32,
        write_every: Duration::from_millis(5),
        read_every: Duration::from_millis(200),
        load_takes: Some(Duration::ZERO),
        publish: RELAY,
        ..Plan::default()
    };
    let fleet = Fleet::on(Direct(RedisServer::start().unwrap()), plan).await;
    let (server, deadline) = (&fleet.server.0, Instant::now() + Duration::from_secs(120));
    // Each is logged on one lane at least.
    while calls(server, "xadd") < writes + 16 {
        assert!(Instant::now() < deadline, "never {writes} writes");
        fleet.work(100).await;
    }
    println!(
        "{} entries, {} messages",
        calls(server, "xadd"),
        calls(server, "publish")
    );
    fleet.finish().await;
}

/// Each pod is cut off in its turn, the relay among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_come_and_go_break_no_promise() {
    let plan = Plan {
        publish: RELAY,
        ..Plan::default()
    };
    let fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    for pod in &fleet.pods {
        fleet.work(400).await;
        let direction = Direction::Both;
        pod.proxy().set(Fault::Freeze { direction });
        fleet.work(900).await;
        pod.proxy().set(Fault::None);
    }
    fleet.heals().await;
    fleet.finish().await;
}

/// What is published together is lost together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_are_lost_break_no_promise() {
    let plan = Plan {
        publish: ADAPTIVE,
        write_every: Duration::from_millis(4),
        ..Plan::default()
    };
    let fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    fleet.work(400).await;
    for fault in [MessageFault::DropEvery(3), MessageFault::DropAll] {
        fleet.messages(fault);
        fleet.work(900).await;
    }
    fleet.messages(MessageFault::None);
    fleet.finish().await;
}

/// What waits in a log that ends is not missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_empty_over_what_was_not_published_breaks_no_promise() {
    let plan = Plan {
        publish: ADAPTIVE,
        write_every: Duration::from_millis(4),
        ..Plan::default()
    };
    let mut fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    for _ in 0..2 {
        fleet.work(400).await;
        fleet.server.restart_empty().unwrap();
        fleet.heals().await;
    }
    fleet.finish().await;
}
