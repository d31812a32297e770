//! Connections that are cut, go deaf, or hold everything back; and messages that do not arrive as they
//! were sent.

use crate::fleet::{Fleet, PATIENCE, Plan, Pod};
use std::time::{Duration, Instant};
use tidings::Cache;
use tidings::testing::{Direction, Fault, MessageFault, Proxy, RedisServer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

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
        assert!(health.links > 2, "{} links", health.links);
    }
    fleet.finish().await;
}

/// For what share of the time all lanes of all pods were live, seen until `stop`.
async fn live_share(caches: Vec<Cache>, stop: CancellationToken) -> f64 {
    let (mut looks, mut live) = (0_u32, 0_u32);
    let mut turns = interval(Duration::from_millis(2));
    while !stop.is_cancelled() {
        turns.tick().await;
        for cache in &caches {
            let health = cache.health();
            looks += health.lanes as u32;
            live += health.live_lanes as u32;
        }
    }
    f64::from(live) / f64::from(looks)
}

impl Fleet {
    /// The same, while every subscription is killed each second.
    async fn live_share_of(&self, kills: u64) -> f64 {
        let stop = CancellationToken::new();
        let caches = self.pods.iter().map(|pod| pod.cache.clone()).collect();
        let share = tokio::spawn(live_share(caches, stop.clone()));
        for _ in 0..kills {
            self.work(1000).await;
            self.cli("CLIENT KILL TYPE pubsub");
        }
        stop.cancel();
        share.await.unwrap()
    }
}

/// What is lost with a subscription is the news, not the memory: reads are served from there meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_stay_live_while_subscriptions_are_killed_each_second() {
    let fleet = Fleet::start().await;
    fleet.work(500).await;
    let of_round = std::env::var("TIDINGS_KILLS").map_or(5, |kills| kills.parse().unwrap());
    let mut kills = 0;
    loop {
        let share = fleet.live_share_of(of_round).await;
        kills += of_round;
        println!("live for {:.2} % of the time", 100.0 * share);
        if share > 0.9 {
            break;
        }
        // On a machine that is too busy to poll in time it is tried anew.
        assert!(kills < 5 * of_round, "live for {share} of the time");
    }
    let is_back = |pod: &Pod| pod.health().links > kills && pod.ailment().is_none();
    fleet.each_pod("came back each time", is_back).await;
    for pod in &fleet.pods {
        let health = pod.health();
        assert_eq!(health.flushes, health.lanes as u64, "{health:?}");
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
    for pod in &fleet.pods {
        assert!(pod.health().links > 1, "{:?}", pod.health());
    }
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

/// Every command that a server is given, as it says itself.
async fn monitored(server: &RedisServer) -> Lines<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    stream.write_all(b"MONITOR\r\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "+OK");
    lines
}

/// What every poll asks, and little else does.
const POLL: &str = "\"INFO\" \"replication\"";

/// The first finds the log ahead, which is then read; the second and the third know that it had to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_went_silent_is_replaced_within_three_polls() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let build = async |url| Cache::builder("silent").store_url(url).build().await;
    let reader = build(proxy.url()).await.unwrap();
    let mut commands = monitored(&server).await;
    let polls = |line: &str| line.to_uppercase().contains(&POLL.to_uppercase());
    // Alone as yet: what is polled from is its connection.
    let connection = loop {
        let line = commands.next_line().await.unwrap().unwrap();
        if polls(&line) {
            break line.split(['[', ']']).nth(1).unwrap().to_owned();
        }
    };
    let writer = build(server.url()).await.unwrap();
    proxy.set_messages(MessageFault::DropAll);
    writer.invalidate(["number"]).await.unwrap();
    server.cli(&["ECHO", "silence"]).unwrap();
    let deadline = Instant::now() + PATIENCE;
    for number in 0_u64.. {
        if reader.health().links > 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", reader.health());
        writer
            .invalidate([format!("number:{number}")])
            .await
            .unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    server.cli(&["ECHO", "noticed"]).unwrap();
    let mut since = Vec::new();
    loop {
        let line = commands.next_line().await.unwrap().unwrap();
        match &line {
            line if line.contains("\"silence\"") => since.clear(),
            line if line.contains("\"noticed\"") => break,
            line if polls(line) && line.contains(&connection) => since.push(line.clone()),
            _ => {}
        }
    }
    println!("{} polls", since.len());
    assert!((1..=3).contains(&since.len()), "{since:#?}");
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
    history.refuse(&history.violations(Duration::from_millis(1008)));
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
