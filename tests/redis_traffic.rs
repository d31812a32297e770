//! What the cache costs a Redis server, counted on the server: commands per read, miss and
//! invalidation, round trips per poll, and connections.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tidings::testing::{Direction, Fault, MessageFault, Proxy, RedisServer};
use tidings::{Cache, Entity, Origin};

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

type Doubles = Entity<u64, u64, Infallible>;

async fn pod(url: String, namespace: &str) -> (Cache, Doubles) {
    let builder = Cache::builder(namespace).store_url(url);
    // Patient: what is counted is what a pod asks, not what it does without an answer.
    let builder = builder.read_timeout(Duration::from_secs(5));
    let cache = builder.build().await.unwrap();
    let double = |key: u64| async move { Ok::<_, Infallible>(key * 2) };
    let doubles = cache.entity("double", double).build().unwrap();
    (cache, doubles)
}

async fn eventually(what: &str, mut seen: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !seen() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A command that the server ran.
#[derive(Debug)]
struct Ran {
    /// Address and port, or `lua` for what a script ran.
    by: String,
    name: String,
    line: String,
}

/// Every command that the server runs, from the start on.
struct Monitor<'a> {
    server: &'a RedisServer,
    lines: BufReader<TcpStream>,
    marks: u64,
}

impl<'a> Monitor<'a> {
    fn start(server: &'a RedisServer) -> Self {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut lines = BufReader::new(stream);
        let mut ok = String::new();
        lines.read_line(&mut ok).unwrap();
        assert_eq!(ok, "+OK\r\n");
        Self {
            server,
            lines,
            marks: 0,
        }
    }

    /// What was run since the last call. What this process has an answer to is in it.
    fn ran(&mut self) -> Vec<Ran> {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        self.server.cli(&["ECHO", &mark]).unwrap();
        let mut ran = Vec::new();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            if line.contains(&mark) {
                return ran;
            }
            // +1700000000.123456 [0 127.0.0.1:40000] "GET" "key"
            let by = line.split(['[', ']']).nth(1).unwrap_or_default();
            let name = line.split('"').nth(1).unwrap_or_default();
            ran.push(Ran {
                by: by.split(' ').nth(1).unwrap_or_default().to_owned(),
                name: name.to_ascii_uppercase(),
                line,
            });
        }
    }

    /// The names of the commands since the last call that clients sent and that name `key`.
    fn about(&mut self, key: &str) -> Vec<String> {
        let ran = self.ran().into_iter();
        let ran = ran.filter(|ran| ran.by != "lua" && ran.line.contains(key));
        ran.map(|ran| ran.name).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_is_one_command_a_miss_three_and_an_invalidation_one() {
    let server = RedisServer::start().unwrap();
    let (_a, writer) = pod(server.url(), "traffic").await;
    let (_b, reader) = pod(server.url(), "traffic").await;
    // The server learns the scripts.
    writer.get(&1).await.unwrap();
    writer.invalidate(&1).await.unwrap();
    let mut monitor = Monitor::start(&server);
    let key = "double:7740";

    writer.get(&7740).await.unwrap();
    let mut miss = monitor.about(key);
    let deadline = Instant::now() + PATIENCE;
    while miss.len() < 3 && Instant::now() < deadline {
        // The fill comes behind the caller's back.
        tokio::time::sleep(Duration::from_millis(2)).await;
        miss.extend(monitor.about(key));
    }
    assert_eq!(miss, ["MGET", "EVALSHA", "EVALSHA"]);

    let found = reader.get_with(&7740).await.unwrap();
    assert_eq!(found.origin, Origin::Store);
    assert_eq!(monitor.about(key), ["MGET"]);

    for _ in 0..100 {
        let found = reader.get_with(&7740).await.unwrap();
        assert_eq!(found.origin, Origin::Local);
    }
    assert_eq!(monitor.about(key), [""; 0]);

    writer.invalidate(&7740).await.unwrap();
    assert_eq!(monitor.about(key), ["EVALSHA"]);
}

impl Ran {
    /// When, by the server's clock.
    fn at(&self) -> Duration {
        let seconds = self.line.trim_start_matches('+').split(' ').next();
        Duration::from_secs_f64(seconds.unwrap().parse().unwrap())
    }

    /// How many values it is about.
    fn values(&self) -> usize {
        self.line.matches("v:double:").count()
    }
}

/// With answers that take so much longer, commands that wait for one are so far apart.
const FAR: Duration = Duration::from_millis(60);

/// How many times a command waited for the answer to another, and one for the first.
fn round_trips(ran: &[Ran]) -> usize {
    1 + ran
        .windows(2)
        .filter(|two| two[1].at() - two[0].at() >= FAR)
        .count()
}

/// Reads cold keys by `get_many`, and gives the commands that this took, the fills among them.
async fn cold_batch(doubles: &Doubles, monitor: &mut Monitor<'_>, keys: &[u64]) -> Vec<Ran> {
    for (key, got) in keys.iter().zip(doubles.get_many(keys).await) {
        assert_eq!(*got.unwrap(), 2 * key);
    }
    let mut ran = Vec::new();
    let deadline = Instant::now() + FAR * 20;
    loop {
        let clients = monitor.ran().into_iter();
        ran.extend(clients.filter(|ran| ran.by != "lua" && ran.values() > 0));
        // Each is leased and filled.
        let values: usize = ran.iter().map(Ran::values).sum();
        if values >= 2 * keys.len() || Instant::now() > deadline {
            return ran;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// One for the leases, and one behind the caller for the fills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cold_keys_are_two_round_trips_and_one_load() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let cache = Cache::builder("traffic").store_url(proxy.url());
    let cache = cache.build().await.unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let double = |key: u64| async move { Ok::<_, Infallible>(key * 2) };
    let doubles = cache
        .entity(
            "double",
            |key: u64| async move { Ok::<_, Infallible>(key * 2) },
        )
        .loader_many(move |keys| {
            counted.fetch_add(1, SeqCst);
            async { Ok(keys.into_iter().map(|key| (key, Ok(key * 2)))) }
        })
        .build()
        .unwrap();
    // The server learns the scripts.
    let other = cache.entity("other", double).build().unwrap();
    while other.get_with(&1).await.unwrap().origin != Origin::Store {
        other.local().clear();
    }
    let mut monitor = Monitor::start(&server);
    let direction = Direction::ToClient;
    proxy.set(Fault::Delay {
        direction,
        delay: FAR,
    });
    for (count, steps) in [(100, 16..=32), (1_000, 32..=64)] {
        let deadline = Instant::now() + PATIENCE;
        for attempt in 1.. {
            assert!(
                Instant::now() < deadline,
                "never in two round trips: {count}"
            );
            let first = count * 1_000 * attempt;
            let keys: Vec<_> = (first..first + count).collect();
            let before = loads.load(SeqCst);
            let ran = cold_batch(&doubles, &mut monitor, &keys).await;
            assert_eq!(loads.load(SeqCst) - before, 1);
            // A machine that stands still for so long makes it look like more; then once again.
            if round_trips(&ran) == 2 {
                let named = |name: &str| ran.iter().filter(|ran| ran.name == name).count();
                assert_eq!(named("MGET"), 0);
                assert!(
                    steps.contains(&named("EVALSHA")),
                    "{} steps",
                    named("EVALSHA")
                );
                break;
            }
        }
    }
}

/// Read at once, or asked for with their leases, as long as nothing is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_that_are_there_are_one_round_trip_and_soon_a_plain_read() {
    let server = RedisServer::start().unwrap();
    let (_a, writer) = pod(server.url(), "traffic").await;
    let (_b, reader) = pod(server.url(), "traffic").await;
    // The server learns the scripts.
    while writer.get_with(&9_999).await.unwrap().origin != Origin::Store {
        writer.local().clear();
    }
    let mut monitor = Monitor::start(&server);
    let keys: Vec<_> = (0..1_100).collect();
    writer.get_many(&keys).await;
    let mut filled = 0;
    let deadline = Instant::now() + PATIENCE;
    while filled < 2 * keys.len() && Instant::now() < deadline {
        let ran = monitor.ran().into_iter().filter(|ran| ran.by != "lua");
        filled += ran.map(|ran| ran.values()).sum::<usize>();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut lists = keys.chunks(100);
    let mut commands = async || {
        for got in reader.get_many(lists.next().unwrap()).await {
            got.unwrap();
        }
        let ran = monitor.ran().into_iter();
        let ran = ran.filter(|ran| ran.by != "lua" && ran.values() > 0);
        ran.map(|ran| ran.name).collect::<Vec<_>>()
    };
    let first = commands().await;
    assert!(
        first.len() <= 16 && first.iter().all(|name| name == "EVALSHA"),
        "{first:?}"
    );
    for _ in 0..10 {
        assert_eq!(commands().await, ["MGET"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_a_cold_key_cost_one_miss() {
    let server = RedisServer::start().unwrap();
    let (_a, doubles) = pod(server.url(), "traffic").await;
    doubles.get(&1).await.unwrap();
    let mut monitor = Monitor::start(&server);
    let reads = (0..1000).map(|_| {
        let doubles = doubles.clone();
        tokio::spawn(async move { *doubles.get(&7741).await.unwrap() })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap(), 15_482);
    }
    let commands = monitor.about("double:7741").len();
    assert!((1..=3).contains(&commands), "{commands}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_reads_the_log_without_a_script() {
    let server = RedisServer::start().unwrap();
    let proxy = Proxy::start(server.addr()).unwrap();
    let (_a, writer) = pod(server.url(), "traffic").await;
    let (deaf, _) = pod(proxy.url(), "traffic").await;
    let mut monitor = Monitor::start(&server);
    proxy.set_messages(MessageFault::DropAll);
    for key in 0..20 {
        writer.invalidate(&key).await.unwrap();
    }
    eventually("it caught up", || deaf.health().catch_ups > 0).await;
    proxy.set_messages(MessageFault::None);
    let ran = monitor.ran();
    let reader = ran.iter().find(|ran| ran.name == "XRANGE");
    let reader = &reader.expect("the log is read").by;
    assert_ne!(reader, "lua");
    for command in ran.iter().filter(|ran| &ran.by == reader) {
        let plain = ["MGET", "GET", "INFO", "TIME", "UNLINK", "XRANGE"];
        assert!(plain.contains(&command.name.as_str()), "{command:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_is_one_round_trip() {
    let server = RedisServer::start().unwrap();
    let (_cache, _) = pod(server.url(), "traffic").await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut admin = client.get_connection().unwrap();
    // One connection, or coming and going would count.
    let mut info = |section: &str, field: &str| -> u64 {
        let info = redis::cmd("INFO").arg(section).query::<String>(&mut admin);
        let info = info.unwrap();
        let found = info.lines().find_map(|line| line.strip_prefix(field));
        let digits = found.unwrap_or("0").chars();
        let digits = digits.take_while(char::is_ascii_digit).collect::<String>();
        digits.parse().unwrap()
    };
    let mut polls_and_reads = || {
        let polls = info("commandstats", "cmdstat_unlink:calls=");
        (polls, info("stats", "total_reads_processed:"))
    };
    let (polls_before, reads_before) = polls_and_reads();
    let deadline = Instant::now() + PATIENCE;
    let mut questions = 0;
    loop {
        let (polls, reads) = polls_and_reads();
        questions += 2;
        let (polls, reads) = (polls - polls_before, reads - reads_before - questions);
        assert!(
            reads.abs_diff(polls) <= 2,
            "{reads} reads in {polls} polls of four commands"
        );
        if polls >= 8 {
            break;
        }
        assert!(Instant::now() < deadline, "too few polls: {polls}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_namespaces_do_not_hear_each_other() {
    let server = RedisServer::start().unwrap();
    let (_a, writer) = pod(server.url(), "shop").await;
    let (peer, _) = pod(server.url(), "shop").await;
    // The longer name begins with the shorter one.
    let (stranger, kept) = pod(server.url(), "shop2").await;
    let opened = || stranger.health().hints == stranger.health().lanes as u64;
    eventually("it heard its own lanes open", opened).await;
    kept.get(&5).await.unwrap();
    let heard = peer.health().hints;
    for _ in 0..10 {
        writer.invalidate(&5).await.unwrap();
    }
    writer.clear().await.unwrap();
    let lanes = peer.health().lanes as u64;
    let expected = heard + 10 + lanes;
    eventually("the peer hears", || peer.health().hints >= expected).await;
    assert_eq!(stranger.health().hints, lanes);
    assert!(kept.peek(&5).is_some());
}

/// The connections of pods.
fn connections(server: &RedisServer) -> usize {
    let list = server.cli(&["CLIENT", "LIST"]).unwrap();
    let others = list
        .lines()
        .filter(|line| !line.contains("cmd=client|list"));
    others.filter(|line| !line.trim().is_empty()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_keeps_two_connections_and_leaves_none() {
    let server = RedisServer::start().unwrap();
    let (first, _doubles) = pod(server.url(), "traffic").await;
    let (second, doubles) = pod(server.url(), "traffic").await;
    assert_eq!(connections(&server), 4);
    first.close().await;
    eventually("closed", || connections(&server) == 2).await;
    drop(second);
    doubles.get(&1).await.unwrap();
    assert_eq!(connections(&server), 2, "an entity keeps the cache alive");
    drop(doubles);
    eventually("dropped", || connections(&server) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnecting_leaks_no_connection() {
    let server = RedisServer::start().unwrap();
    let (cache, doubles) = pod(server.url(), "traffic").await;
    for round in 0..50 {
        let links = cache.health().links;
        let kind = if round % 2 == 0 { "normal" } else { "pubsub" };
        server.cli(&["CLIENT", "KILL", "TYPE", kind]).unwrap();
        eventually("reconnected", || cache.health().links > links).await;
    }
    eventually("two are left", || connections(&server) == 2).await;
    assert_eq!(*doubles.get(&4).await.unwrap(), 8);
}

/// An attempt to connect that is given up half way leaves nothing behind either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_closed_while_it_connects_leaves_no_connection() {
    let server = RedisServer::start().unwrap();
    let (cache, _doubles) = pod(server.url(), "traffic").await;
    server.pause().unwrap();
    // Given up after the poll has timed out; the next connection hangs in its handshake.
    let is_down = || matches!(cache.health().store, tidings::StoreState::Down { .. });
    eventually("down", is_down).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    cache.close().await;
    server.resume().unwrap();
    eventually("none is left", || connections(&server) == 0).await;
}
