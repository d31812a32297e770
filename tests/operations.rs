//! What `docs/operations.md` tells operators is enough.
#![cfg(feature = "redis")]

#[expect(dead_code, unused_macros, reason = "others need more of it")]
#[path = "support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::fs;
use std::future::ready;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use support::{PATIENCE, eventually};
use tidings::store::{Acknowledge, FailoverWindow, Finding, Redis, ServerReport, Store};
use tidings::testing::{RedisCluster, RedisServer, conformance};
use tidings::{BuildError, Cache, Entity, Origin, StoreErrorKind, Tag, Ttl};
use tokio::task::block_in_place;

/// The rule of the page for the namespace `shop`.
fn acl() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let rule = page.lines().find(|line| line.starts_with("ACL SETUSER"));
    rule.expect("the page has a rule").to_owned()
}

/// The same for a namespace of any name: the suite makes up its own.
fn acl_of_any_namespace() -> String {
    acl().replace("{shop:*", "{*").replace("{shop}", "{*}")
}

fn server_with(rule: &str) -> (RedisServer, String) {
    let server = RedisServer::start().expect("redis-server starts");
    run(&server, rule);
    let url = format!("redis://tidings:secret@{}/1", server.addr());
    (server, url)
}

fn run(server: &RedisServer, command: &str) {
    let words: Vec<_> = command.split(' ').collect();
    server.cli(&words).expect("the command is one");
}

async fn shop(url: &str) -> Result<Cache, BuildError> {
    Cache::builder("shop").store_url(url).build().await
}

fn report(cache: &Cache) -> Arc<ServerReport> {
    cache.health().server.expect("it was looked at")
}

/// Every mode does what it is for, as the user of the page, in a namespace that the rule names.
#[tokio::test]
async fn the_access_rule_in_the_docs_lets_every_mode_work() {
    let (server, url) = server_with(&acl());
    let (here, there) = (
        shop(&url).await.expect("starts"),
        shop(&url).await.expect("starts"),
    );
    assert_eq!(report(&here).findings, [Finding::SettingsUnknown]);
    assert_eq!(
        report(&here).version.as_deref().map(|v| v.contains('.')),
        Some(true)
    );
    // And again after the server forgot its scripts.
    for _ in 0..2 {
        entities_and_memos(&here, &there).await;
        guards(&here, &there).await;
        raw_data(&here, &there).await;
        rooms(&here, &there).await;
        run(&server, "SCRIPT FLUSH");
    }
    assert_eq!(here.health().links, 1, "nothing broke");
    here.close().await;
}

/// What the page grants besides, by the words before it.
fn besides(words: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let (_, rest) = page.split_once(words).expect("named");
    let (besides, _) = rest.split_once('`').expect("closed");
    let besides: Vec<_> = besides.split_whitespace().collect();
    besides.join(" ")
}

fn acl_of_a_cluster() -> String {
    let besides = besides("every node needs the user, with `");
    format!("{} {besides}", acl())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_rule_in_the_docs_lets_every_mode_work_on_a_cluster() {
    let cluster = block_in_place(|| RedisCluster::start(3, false)).expect("it starts");
    let nodes: Vec<_> = (0..3).map(|at| cluster.node(at)).collect();
    nodes.iter().for_each(|node| run(node, &acl_of_a_cluster()));
    let url = cluster.url().replace("://", "://tidings:secret@");
    let (here, there) = (
        shop(&url).await.expect("starts"),
        shop(&url).await.expect("starts"),
    );
    assert_eq!(report(&here).findings, [Finding::SettingsUnknown]);
    for _ in 0..2 {
        entities_and_memos(&here, &there).await;
        guards(&here, &there).await;
        raw_data(&here, &there).await;
        rooms(&here, &there).await;
        nodes.iter().for_each(|node| run(node, "SCRIPT FLUSH"));
    }
    assert_eq!(here.health().links, 1, "nothing broke");
    here.close().await;
}

/// Keys that are stored at one node after the other, in memory of nobody.
async fn near(cache: &Cache) -> (Entity<u64, u64, Infallible>, Vec<u64>) {
    let load = |key: u64| ready(Ok::<_, Infallible>(key));
    let entity = cache.entity("near", load).local_ttl(Duration::ZERO);
    (entity.build().expect("options are fine"), (0..64).collect())
}

/// How many reads were answered by these servers, who are replicas.
fn reads_at(servers: &[&RedisServer]) -> u64 {
    let of = |server: &&RedisServer| {
        let stats = server.cli(&["INFO", "commandstats"]).expect("stats");
        let line = |line: &str| {
            line.strip_prefix("cmdstat_mget:calls=")?
                .split(',')
                .next()?
                .parse()
                .ok()
        };
        stats.lines().find_map(line).unwrap_or(0_u64)
    };
    servers.iter().map(of).sum()
}

/// What the user was refused, but for what it does without.
fn refused(server: &RedisServer) -> Vec<String> {
    let log = server.cli(&["ACL", "LOG"]).expect("a log");
    let lines: Vec<_> = log.lines().collect();
    let objects = lines.windows(2).filter(|pair| pair[0] == "object");
    let objects = objects.map(|pair| pair[1].to_owned());
    objects
        .filter(|object| object != "config|get" && object != "client|setinfo")
        .collect()
}

/// `every` mode does what it is for on servers whose replicas are read and waited for, and both are.
async fn modes_with_replicas(url: &str, primaries: &[&RedisServer], replicas: &[&RedisServer]) {
    let store = || {
        let store = Redis::new(url).expect("an address").read_from_replicas();
        let store = store.acknowledge(Acknowledge::Replicated(1));
        Cache::builder("shop")
            .store(store)
            .invalidate_timeout(PATIENCE)
    };
    let (here, there) = (
        store().build().await.expect("starts"),
        store().build().await.expect("starts"),
    );
    entities_and_memos(&here, &there).await;
    guards(&here, &there).await;
    raw_data(&here, &there).await;
    rooms(&here, &there).await;
    let (numbers, keys) = near(&here).await;
    for replica in replicas {
        eventually("the replica is read", async || {
            let before = reads_at(&[replica]);
            numbers.get_many(&keys).await;
            for key in &keys {
                numbers.get(key).await.expect("a number");
            }
            reads_at(&[replica]) > before
        })
        .await;
    }
    for server in primaries.iter().chain(replicas) {
        assert_eq!(refused(server), [""; 0]);
    }
    here.close().await;
}

/// A replica that follows `primary`, with the same user.
async fn replica_of(primary: &RedisServer, rule: &str) -> RedisServer {
    let server = RedisServer::builder().arg("--repl-diskless-sync-delay", "0");
    let replica = server.start().expect("redis-server starts");
    run(&replica, rule);
    run(&replica, &format!("REPLICAOF 127.0.0.1 {}", primary.port()));
    eventually("it follows", async || {
        let info = replica.cli(&["INFO", "replication"]).expect("info");
        info.contains("master_link_status:up")
    })
    .await;
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_rule_in_the_docs_is_enough_where_replicas_are_read_and_waited_for() {
    let rule = format!("{} {}", acl(), besides("`Acknowledge::Replicated` needs `"));
    let (primary, url) = server_with(&rule);
    let replica = replica_of(&primary, &rule).await;
    modes_with_replicas(&url, &[&primary], &[&replica]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_rule_in_the_docs_is_enough_where_replicas_of_a_cluster_are_read_and_waited_for()
{
    let cluster = block_in_place(|| RedisCluster::start(3, true)).expect("it starts");
    let (waits, reads) = (
        besides("`Acknowledge::Replicated` needs `"),
        besides("where replicas are read, `"),
    );
    let nodes: Vec<_> = (0..6).map(|at| cluster.node(at)).collect();
    let rule = format!("{} {waits} {reads}", acl_of_a_cluster());
    nodes.iter().for_each(|node| run(node, &rule));
    let url = cluster.url().replace("://", "://tidings:secret@");
    modes_with_replicas(&url, &nodes[..3], &nodes[3..]).await;
}

/// Nothing is lost but the relief.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whom_replicas_refuse_reads_from_primaries() {
    let (primary, url) = server_with(&acl());
    let replica = replica_of(&primary, "ACL SETUSER tidings on >another -@all").await;
    let store = Redis::new(&url).expect("an address").read_from_replicas();
    let cache = Cache::builder("shop").store(store).build().await;
    let cache = cache.expect("it starts");
    let (numbers, keys) = near(&cache).await;
    eventually("the replica was tried", async || {
        numbers.get_many(&keys).await;
        refused(&replica).contains(&"AUTH".to_owned())
    })
    .await;
    let read = numbers.get_with(&1).await.expect("a number");
    assert_eq!((*read.value, read.origin), (1, Origin::Store));
    assert_eq!(cache.health().links, 1);
    assert_eq!(refused(&primary), [""; 0]);
}

/// Many keys, so that every lane has some.
async fn guards(here: &Cache, there: &Cache) {
    let source = Arc::new(AtomicU64::new(1));
    let prices = |cache: &Cache| {
        let source = Arc::clone(&source);
        let load = move |_: u64| ready(Ok::<_, Infallible>(source.load(SeqCst)));
        cache
            .entity("guarded", load)
            .build()
            .expect("options are fine")
    };
    let (writer, reader) = (prices(here), prices(there));
    let keys: Vec<u64> = (0..64).collect();
    reader.get_many(&keys).await;
    let guard = writer.begin_write_many(&keys).await.expect("begun");
    source.store(2, SeqCst);
    assert!(guard.finish().await.expect("acknowledged").was_held());
    eventually("everybody has it", async || {
        let read = reader.get_many(&keys).await.into_iter();
        read.map(|price| *price.expect("a price"))
            .all(|price| price == 2)
    })
    .await;
    writer.clear().await.expect("for the next time");
}

async fn entities_and_memos(here: &Cache, there: &Cache) {
    let source = Arc::new(AtomicU64::new(1));
    let load = |source: &Arc<AtomicU64>| {
        let source = Arc::clone(source);
        move |_: u64| ready(Ok::<_, Infallible>(source.load(SeqCst)))
    };
    let users = |cache: &Cache| {
        cache
            .entity("user", load(&source))
            .build()
            .expect("options are fine")
    };
    let memos = |cache: &Cache| {
        let memo = cache
            .memo("page", load(&source))
            .tags(|id: &u64| [Tag::of("user", id)]);
        memo.build().expect("options are fine")
    };
    let (writer, reader, page) = (users(here), users(there), memos(there));
    let fired = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&fired);
    let _watch = there.reactivity().on(["user:1"], move |_| {
        count.fetch_add(1, SeqCst);
        ready(())
    });
    for all in [false, true] {
        let keys = [&1, &2, &3];
        reader.get_many(keys).await;
        page.get(&1).await.expect("a page");
        let version = source.fetch_add(1, SeqCst) + 1;
        match all {
            false => drop(writer.invalidate(&1).await.expect("acknowledged")),
            true => drop(writer.clear().await.expect("acknowledged")),
        }
        eventually("everybody has it", async || {
            let (user, page) = (reader.get(&1).await, page.get(&1).await);
            *user.expect("a user") == version && page.expect("a page") == version
        })
        .await;
    }
    eventually("the handler ran", async || fired.load(SeqCst) >= 2).await;
}

async fn raw_data(here: &Cache, there: &Cache) {
    let (carts, others) = (
        here.raw("cart").expect("a prefix"),
        there.raw("cart").expect("a prefix"),
    );
    carts.set("1", "tea", Ttl::Forever).await.expect("stored");
    assert_eq!(others.get("1").await.expect("read").expect("there"), "tea");
    carts.hset("2", "a", "b").await.expect("stored");
    assert_eq!(
        others.hget("2", "a").await.expect("read").expect("there"),
        "b"
    );
    others.clear().await.expect("cleared");
    assert_eq!(carts.get("1").await.expect("read"), None);
}

async fn rooms(here: &Cache, there: &Cache) {
    let room = |cache: &Cache| cache.presence::<u8>("room").build().expect("a room");
    let (ours, theirs) = (room(here), room(there));
    let lease = ours.join("ada", &1).await.expect("joined");
    assert!(theirs.get("ada").await.expect("read").is_some());
    assert_eq!(theirs.count().await.expect("read"), 1);
    lease.leave().await.expect("left");
    assert_eq!(theirs.count().await.expect("read"), 0);
}

#[tokio::test]
async fn a_user_who_lacks_what_every_cache_needs_is_told_which_command() {
    for command in ["xadd", "getrange", "mget", "evalsha", "unlink"] {
        let (_server, url) = server_with(&format!("{} -{command}", acl()));
        let error = shop(&url).await.expect_err("it cannot work");
        let store = error.store_error().expect("the store said so");
        assert_eq!(store.kind(), StoreErrorKind::Denied, "{command}: {store}");
        assert!(store.to_string().contains(command), "{command}: {store}");
    }
    let (_server, url) = server_with(&acl().replace("~{shop}cfg ", ""));
    let error = shop(&url).await.expect_err("it cannot work");
    let store = error.store_error().expect("the store said so");
    assert!(store.to_string().contains("keys and channels"), "{store}");
}

#[tokio::test]
async fn a_user_who_lacks_what_one_mode_needs_can_use_the_others() {
    let (_server, url) = server_with(&format!("{} -zadd -hscan", acl()));
    let cache = shop(&url).await.expect("it starts");
    let missing = |mode, command| Finding::MissingPermissions {
        mode,
        commands: vec![command],
    };
    let found = [
        missing("raw data", "hscan"),
        missing("presence", "zadd"),
        Finding::SettingsUnknown,
    ];
    assert_eq!(report(&cache).findings, found);
}

/// Scenario 30: the chain of the log stands in for the life of the server.
#[tokio::test]
async fn without_info_every_mode_works_and_a_server_that_went_back_in_time_is_noticed() {
    let rule = format!("{} -info", acl());
    let (mut server, url) = server_with(&rule);
    let (here, there) = (
        shop(&url).await.expect("starts"),
        shop(&url).await.expect("starts"),
    );
    assert_eq!(
        report(&here).findings,
        [Finding::LifeUnknown, Finding::SettingsUnknown]
    );
    assert_eq!(here.health().failover_bound(), None);
    entities_and_memos(&here, &there).await;
    raw_data(&here, &there).await;
    rooms(&here, &there).await;

    let source = Arc::new(AtomicU64::new(1));
    let prices = |cache: &Cache| {
        let source = Arc::clone(&source);
        let load = move |_: u64| ready(Ok::<_, Infallible>(source.load(SeqCst)));
        cache
            .entity("price", load)
            .build()
            .expect("options are fine")
    };
    let pods = [prices(&here), prices(&there)];
    eventually("the old value is stored", async || {
        pods[0].get(&1).await.expect("a price");
        pods[1].get_with(&1).await.expect("a price").origin != Origin::Loader
    })
    .await;
    let before = server.snapshot().expect("a snapshot");
    source.store(2, SeqCst);
    pods[0].invalidate(&1).await.expect("acknowledged");
    eventually("both have it", async || {
        *pods[0].get(&1).await.expect("a price") == 2
            && *pods[1].get(&1).await.expect("a price") == 2
    })
    .await;
    server.restart_from(&before).expect("it starts again");
    run(&server, &rule);
    eventually("both are back", async || {
        for pod in &pods {
            assert_eq!(
                *pod.get(&1).await.expect("a price"),
                2,
                "what was lost is back"
            );
        }
        let up = |cache: &Cache| cache.health().links == 2 && cache.health().live_lanes == 16;
        up(&here) && up(&there)
    })
    .await;
    // Who knows nothing of what was lost is told by the epoch.
    let newcomer = prices(&shop(&url).await.expect("starts"));
    eventually("the old value is dead", async || {
        *newcomer.get(&1).await.expect("a price") == 2
    })
    .await;
}

/// Scenario 25.
#[tokio::test]
async fn a_primary_that_writes_on_without_its_replicas_has_no_failover_bound() {
    let server = RedisServer::start().expect("redis-server starts");
    let alone = shop(&server.url()).await.expect("it starts");
    assert_eq!(report(&alone).findings, []);
    assert_eq!(report(&alone).failover_window, FailoverWindow::None);
    assert_eq!(alone.health().failover_bound(), Some(alone.health().bound));
    let replica = RedisServer::start().expect("redis-server starts");
    run(&replica, &format!("REPLICAOF 127.0.0.1 {}", server.port()));
    eventually("it is attached", async || {
        let info = server.cli(&["INFO", "replication"]).expect("info");
        info.contains("connected_slaves:1")
    })
    .await;
    let open = shop(&server.url()).await.expect("it starts");
    assert_eq!(
        report(&open).findings,
        [Finding::UnguardedReplicas { replicas: 1 }]
    );
    assert_eq!(open.health().failover_bound(), None);
    run(&server, "CONFIG SET min-replicas-max-lag 2");
    run(&server, "CONFIG SET min-replicas-to-write 1");
    eventually("the replica counts", async || {
        server.cli(&["DEL", "x"]).is_ok()
    })
    .await;
    let guarded = shop(&server.url()).await.expect("it starts");
    assert_eq!(report(&guarded).findings, []);
    let (health, window) = (guarded.health(), Duration::from_secs(3));
    assert_eq!(
        report(&guarded).failover_window,
        FailoverWindow::AtMost(window)
    );
    assert_eq!(health.failover_bound(), Some(health.bound + window));
}

/// What a node does that sees only a minority of its cluster.
#[tokio::test]
async fn a_cluster_has_the_failover_bound_of_its_node_timeout() {
    let cluster = RedisCluster::start(3, true).expect("a cluster starts");
    let cache = shop(&cluster.url()).await.expect("it starts");
    let window = Duration::from_millis(1500);
    assert_eq!(
        report(&cache).failover_window,
        FailoverWindow::AtMost(window)
    );
    let health = cache.health();
    assert_eq!(health.failover_bound(), Some(health.bound + window));
    assert_eq!(report(&cache).findings, [Finding::StopsWithOneNode]);
    for at in 0..6 {
        let setting = "CONFIG SET cluster-require-full-coverage no";
        run(cluster.node(at), setting);
    }
    // As many as there are, and one more.
    for (asked, found) in [(1, vec![]), (2, vec![(2, 1)])] {
        let store = Redis::new(&cluster.url()).expect("an address");
        let store = store.acknowledge(Acknowledge::Replicated(asked));
        let cache = Cache::builder("shop").store(store).build().await;
        let found: Vec<_> = found
            .into_iter()
            .map(|(asked, attached)| Finding::TooFewReplicas { asked, attached })
            .collect();
        assert_eq!(report(&cache.expect("it starts")).findings, found);
    }
}

#[tokio::test]
async fn settings_that_cost_something_are_found_on_a_real_server() {
    let server = RedisServer::start().expect("redis-server starts");
    for setting in [
        "maxmemory 100mb",
        "maxmemory-policy allkeys-lfu",
        "save 60 1",
        "client-output-buffer-limit",
    ] {
        let mut words: Vec<_> = ["CONFIG", "SET"]
            .into_iter()
            .chain(setting.split(' '))
            .collect();
        match setting.split(' ').collect::<Vec<_>>()[..] {
            ["save", ..] => words.splice(3.., ["60 1"]).for_each(drop),
            ["client-output-buffer-limit"] => words.push("pubsub 0 0 0"),
            _ => {}
        }
        server.cli(&words).expect("a setting");
    }
    let cache = shop(&server.url()).await.expect("it starts");
    let policy = "allkeys-lfu".to_owned();
    let found = [
        Finding::EvictsLogs { policy },
        Finding::StopsWithItsDisk,
        Finding::UnboundedSubscriptionBuffer,
    ];
    assert_eq!(report(&cache).findings, found);
    for finding in &report(&cache).findings {
        assert!(finding.to_string().contains("; set "), "{finding}");
    }
}

#[tokio::test]
async fn the_access_rule_in_the_docs_is_enough_for_every_call_of_the_port() {
    let (_server, url) = server_with(&acl_of_any_namespace());
    conformance::run(async || Arc::new(Redis::new(&url).expect("an address")) as Arc<dyn Store>)
        .await;
}
