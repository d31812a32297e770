//! When hints are published, on real servers: together where that is chosen, none lost, in the order of
//! the log, and by somebody else where the one who should have done it is gone.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[expect(dead_code, unused_macros, reason = "it is for several suites")]
#[path = "support/mod.rs"]
mod support;

use bytes::Bytes;
use futures_util::future::join_all;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use support::{eventually, soon};
use tidings::coherence::{Batch, Epoch, Hint, Lane, LogEntry, Nonce};
use tidings::store::{Hints, Link, Namespace, Opening, Publish, Redis, Store};
use tidings::testing::RedisServer;
use tidings::{Cache, Entity, Origin};

const LANES: u16 = 2;
/// The longest there is, so that a slow machine changes nothing.
const PACE: Duration = Duration::from_millis(100);
const ADAPTIVE: Publish = Publish::Adaptive { within: PACE };
const RELAY: Publish = Publish::Relay {
    every: Duration::from_millis(20),
};
const OPENING: Opening = Opening {
    epoch: Epoch(0xE001),
    nonce: Nonce(0xA001),
};
const PACE_KEY: &str = "{ns:00}u";

/// A link and what it has heard.
struct Pod {
    link: Arc<dyn Link>,
    hints: Box<dyn Hints>,
    heard: Vec<Vec<LogEntry>>,
    messages: usize,
    next: u64,
}

impl Pod {
    /// `number` tells its calls from those of others.
    async fn on(server: &RedisServer, publish: Publish, number: u64) -> Self {
        let store = Redis::new(&server.url()).unwrap().publish(publish);
        let store = store.connect_timeout(Duration::from_secs(20));
        let namespace = Namespace {
            name: "ns".to_owned(),
            lanes: LANES,
        };
        let (link, hints) = store.connect(&namespace).await.unwrap();
        let lanes = [(Lane(0), OPENING), (Lane(1), OPENING)];
        link.touch(&lanes).await.unwrap();
        Self {
            link,
            hints,
            heard: vec![Vec::new(); usize::from(LANES)],
            messages: 0,
            next: number << 32,
        }
    }

    /// Invalidates `count` keys, on all lanes in turns, in one write to the server.
    async fn burst(&mut self, count: u64) {
        let first = self.next;
        self.next += count;
        let link = &self.link;
        join_all((first..self.next).map(|n| async move {
            let lane = Lane((n % u64::from(LANES)) as u16);
            let (key, hashes) = ([Bytes::from(n.to_string())], [0xE, n]);
            let call = link.invalidate(lane, &key, &hashes, Nonce(n), OPENING);
            call.await.unwrap();
        }))
        .await;
    }

    async fn clear(&mut self) {
        self.next += 1;
        let nonce = Nonce(self.next);
        let call = self.link.clear(Lane(0), "users", 0xE, nonce, OPENING);
        call.await.unwrap();
    }

    async fn log(&self, lane: u16) -> Vec<LogEntry> {
        self.link.log_since(Lane(lane), 0, 10_000).await.unwrap()
    }

    async fn unpublished(&self) -> u64 {
        let heads = self.link.poll().await.unwrap().heads;
        heads.iter().flatten().map(|head| head.unpublished()).sum()
    }

    /// Takes one message.
    async fn hear(&mut self) {
        let message = soon("a hint", poll_fn(|cx| self.hints.poll_next(cx))).await;
        let message = message.expect("still subscribed");
        self.messages += 1;
        if let Some(batch) = Batch::decode(&message) {
            assert!(batch.entries.len() > 1, "one alone is a hint as ever");
            assert_eq!(batch.encode(), message, "it is written as it is read");
            self.heard[usize::from(batch.lane.0)].extend(batch.entries);
        } else {
            let hint = Hint::decode(&message).expect("a hint of ours");
            self.heard[usize::from(hint.lane.0)].push(hint.entry);
        }
    }

    /// Listens until everything was heard that is in the logs: in their order, nothing twice.
    async fn hears_the_logs(&mut self) {
        for lane in 0..LANES {
            let log = self.log(lane).await;
            let heard = usize::from(lane);
            while self.heard[heard].last().map(|entry| entry.seq) != log.last().map(|e| e.seq) {
                self.hear().await;
            }
            assert_eq!(self.heard[heard], log);
        }
    }
}

/// How often anything was published since the server began.
fn publishes(server: &RedisServer) -> usize {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let calls = |line: &str| {
        let line = line.strip_prefix("cmdstat_publish:calls=")?;
        line.split(',').next()?.parse().ok()
    };
    stats.lines().find_map(calls).unwrap_or(0)
}

fn pace(server: &RedisServer) -> String {
    server.cli(&["GET", PACE_KEY]).unwrap()
}

#[tokio::test]
async fn entries_of_one_pace_are_published_together_in_the_order_of_the_log() {
    let server = RedisServer::start().unwrap();
    let mut pod = Pod::on(&server, ADAPTIVE, 1).await;
    pod.hears_the_logs().await;
    eventually("forty in a few messages", async || {
        let (before, messages) = (publishes(&server), pod.messages);
        pod.burst(39).await;
        pod.clear().await;
        pod.hears_the_logs().await;
        let published = publishes(&server) - before;
        assert_eq!(published, pod.messages - messages);
        assert_eq!(pod.unpublished().await, 0);
        // The first of each tick at once, then a batch for each lane.
        published <= 4
    })
    .await;
}

#[tokio::test]
async fn a_lone_invalidation_is_published_with_its_acknowledgement() {
    let server = RedisServer::start().unwrap();
    let mut pod = Pod::on(&server, ADAPTIVE, 1).await;
    for _ in 0..3 {
        eventually("nothing was published for so long", async || {
            pace(&server).is_empty()
        })
        .await;
        let before = publishes(&server);
        pod.burst(1).await;
        assert_eq!(publishes(&server) - before, 1);
        assert_eq!(pod.unpublished().await, 0);
    }
    pod.hears_the_logs().await;
}

#[tokio::test]
async fn many_keys_and_many_entities_survive_being_published_together() {
    let server = RedisServer::start().unwrap();
    let mut pod = Pod::on(&server, ADAPTIVE, 1).await;
    // More entities than a message names, keys up to the most there may be, and an entry that no batch
    // has a form for.
    let link = &pod.link;
    join_all((0..600_u64).map(|n| async move {
        let keys = n % 65;
        let hashes: Vec<_> = std::iter::once(n % 300).chain(1000..1000 + keys).collect();
        let names: Vec<_> = (0..keys).map(|key| Bytes::from(key.to_string())).collect();
        let call = link.invalidate(Lane(1), &names, &hashes, Nonce(n + 1), OPENING);
        call.await.unwrap();
    }))
    .await;
    pod.hears_the_logs().await;
    assert_eq!(pod.log(1).await.len(), 601);
}

/// Ends a pod between the acknowledgement and the flush that it owed. False if the flush was faster.
async fn killed_before_it_flushed(server: &RedisServer, number: u64, witness: &Pod) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (url, before) = (server.url(), witness.log(0).await.len());
    let handle = runtime.handle().clone();
    let died = std::thread::spawn(move || {
        handle.block_on(async {
            let store = Redis::new(&url).unwrap().publish(ADAPTIVE);
            let namespace = Namespace {
                name: "ns".to_owned(),
                lanes: LANES,
            };
            let (link, _hints) = store.connect(&namespace).await.unwrap();
            for n in 0..4 {
                let nonce = Nonce(number << 32 | n);
                let (key, hashes) = ([Bytes::from(n.to_string())], [0xE, n]);
                let call = link.invalidate(Lane(0), &key, &hashes, nonce, OPENING);
                call.await.unwrap();
            }
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(|| died.join().unwrap())
        .await
        .unwrap();
    assert_eq!(witness.log(0).await.len(), before + 4, "all are logged");
    witness.unpublished().await > 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_flusher_left_is_published_by_the_next_who_invalidates() {
    let server = RedisServer::start().unwrap();
    let mut pod = Pod::on(&server, ADAPTIVE, 1).await;
    for round in 2..5 {
        let mut number = round * 100;
        while !killed_before_it_flushed(&server, number, &pod).await {
            number += 1;
        }
        eventually("nobody waits for it", async || pace(&server).is_empty()).await;
        assert!(pod.unpublished().await > 0, "nobody has published it");
        pod.next += pod.next % 2; // lane 0
        pod.burst(1).await;
        assert_eq!(pod.unpublished().await, 0);
        pod.hears_the_logs().await;
    }
}

type Doubles = Entity<u64, u64, Infallible>;

async fn cache(server: &RedisServer, publish: Publish) -> (Cache, Doubles) {
    let store = Redis::new(&server.url()).unwrap().publish(publish);
    let cache = Cache::builder("ns").store(store).lanes(LANES);
    let cache = cache.read_timeout(Duration::from_secs(20));
    let cache = cache.build().await.unwrap();
    let double = |key: u64| async move { Ok::<_, Infallible>(key * 2) };
    let doubles = cache.entity("double", double).build().unwrap();
    (cache, doubles)
}

/// Whether none of the keys is in the pod's memory.
fn all_gone(doubles: &Doubles, keys: &[u64]) -> bool {
    keys.iter().all(|key| doubles.peek(key).is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_flusher_left_is_found_by_the_polls() {
    let server = RedisServer::start().unwrap();
    let (_reader, read) = cache(&server, ADAPTIVE).await;
    let witness = Pod::on(&server, ADAPTIVE, 1).await;
    let mut keys = 0..16_u64;
    eventually("a pod dies before it flushes", async || {
        let mine: Vec<_> = keys.clone().collect();
        keys = keys.end..keys.end + 16;
        for key in &mine {
            read.get(key).await.unwrap();
        }
        // A runtime of its own, which ends with what it has under way.
        let (url, gone) = (server.url(), mine.clone());
        let writer = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let written = runtime.block_on(async {
                let store = Redis::new(&url).unwrap().publish(ADAPTIVE);
                let cache = Cache::builder("ns").store(store).lanes(LANES);
                let cache = cache.build().await.unwrap();
                let double = |key: u64| async move { Ok::<_, Infallible>(key * 2) };
                let doubles = cache.entity("double", double).build().unwrap();
                let all = gone.iter().map(|key| doubles.invalidate(key));
                join_all(all).await.into_iter().all(|done| done.is_ok())
            });
            runtime.shutdown_background();
            written
        });
        let written = tokio::task::spawn_blocking(|| writer.join().unwrap()).await;
        assert!(written.unwrap(), "all are acknowledged");
        let (left, before) = (witness.unpublished().await, publishes(&server));
        eventually("the polls find it", async || all_gone(&read, &mine)).await;
        left > 0 && witness.unpublished().await == left && publishes(&server) == before
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_publishes_at_once_publishes_first_what_others_deferred() {
    let server = RedisServer::start().unwrap();
    let mut adaptive = Pod::on(&server, ADAPTIVE, 1).await;
    let mut immediate = Pod::on(&server, Publish::Immediate, 2).await;
    for _ in 0..20 {
        adaptive.burst(7).await;
        immediate.burst(2).await;
        assert_eq!(immediate.unpublished().await, 0, "on both lanes");
    }
    adaptive.hears_the_logs().await;
    // It was there from the second epoch's opening on: it hears all but the first of each lane.
    for lane in 0..LANES {
        let log = immediate.log(lane).await;
        let at = usize::from(lane);
        while immediate.heard[at].last().map(|e| e.seq) != log.last().map(|e| e.seq) {
            immediate.hear().await;
        }
        assert_eq!(
            immediate.heard[at],
            log[log.len() - immediate.heard[at].len()..]
        );
    }
}

/// Polls with each of `pods` until somebody else than `before` is the relay; gives whom the store names.
async fn relay(server: &RedisServer, pods: &[&Pod], before: &str) -> String {
    let mut relay = String::new();
    eventually("there is a relay", async || {
        for pod in pods {
            pod.link.poll().await.unwrap();
        }
        relay = pace(server);
        relay.starts_with('R') && relay != before
    })
    .await;
    relay
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relay_publishes_for_all_and_another_takes_its_place() {
    let server = RedisServer::start().unwrap();
    let first = Pod::on(&server, RELAY, 1).await;
    let before = relay(&server, &[&first], "").await;
    let mut others = [
        Pod::on(&server, RELAY, 2).await,
        Pod::on(&server, ADAPTIVE, 3).await,
    ];
    let mut ear = Pod::on(&server, RELAY, 4).await;
    let rounds = 10;
    for _ in 0..rounds {
        for other in &mut others {
            other.burst(40).await;
        }
        eventually("the relay publishes", async || ear.unpublished().await == 0).await;
    }
    assert_eq!(pace(&server), before, "it is still the same one");
    assert!(publishes(&server) < 400, "of {} entries", rounds * 80);
    drop(first);
    let after = relay(&server, &[&others[0], &ear], &before).await;
    others[0].burst(40).await;
    eventually("its successor publishes", async || {
        ear.unpublished().await == 0
    })
    .await;
    assert_ne!(after, before);
    // From the first to the last, over the change.
    for lane in 0..LANES {
        let (log, at) = (ear.log(lane).await, usize::from(lane));
        while ear.heard[at].last().map(|e| e.seq) != log.last().map(|e| e.seq) {
            ear.hear().await;
        }
        assert_eq!(ear.heard[at], log[log.len() - ear.heard[at].len()..]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_with_a_relay_hear_of_invalidations_and_read_their_own_at_once() {
    let server = RedisServer::start().unwrap();
    let pods = join_all((0..4).map(|_| cache(&server, RELAY))).await;
    let keys: Vec<u64> = (0..200).collect();
    for round in 0..5 {
        for (_, pod) in &pods {
            join_all(
                pod.get_many(&keys)
                    .await
                    .into_iter()
                    .map(|got| async move { got.unwrap() }),
            )
            .await;
        }
        let writer = &pods[round % pods.len()].1;
        for key in &keys {
            writer.invalidate(key).await.unwrap();
            assert!(writer.peek(key).is_none(), "before the call returns");
        }
        for (_, pod) in &pods {
            eventually("they all hear", async || all_gone(pod, &keys)).await;
        }
    }
    eventually("one of them is the relay", async || {
        pace(&server).starts_with('R')
    })
    .await;
    for (cache, _) in &pods {
        assert_eq!(
            cache.health().links,
            1,
            "no subscription was taken for dead"
        );
    }
}

/// A lone message is what a relay is there to spare the server, so fills are not announced either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_relay_who_waits_for_another_pods_load_is_served_without_a_message() {
    let server = RedisServer::start().unwrap();
    for (publish, messages) in [(RELAY, 0), (ADAPTIVE, 1)] {
        let load = |key: u64| async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, Infallible>(key * 2)
        };
        let mut pods = Vec::new();
        for _ in 0..2 {
            let (cache, _) = cache(&server, publish).await;
            pods.push(cache.entity("slow", load).build().unwrap());
        }
        let mut key = 0;
        eventually("one pod waits for the other", async || {
            key += 1;
            let before = publishes(&server);
            let (one, other) = tokio::join!(pods[0].get_with(&key), pods[1].get_with(&key));
            let origins = [one.unwrap().origin, other.unwrap().origin];
            let waited = origins.contains(&Origin::Store);
            let published = publishes(&server) - before;
            assert!(published <= messages, "{publish:?}");
            waited && published == messages
        })
        .await;
    }
}

#[tokio::test]
async fn a_pace_out_of_range_is_refused() {
    let server = RedisServer::start().unwrap();
    let publish = Publish::Adaptive {
        within: Duration::from_secs(1),
    };
    let store = Redis::new(&server.url()).unwrap().publish(publish);
    let refused = Cache::builder("ns").store(store).build().await.unwrap_err();
    let error: &dyn std::error::Error = &refused;
    let source = error.source().map(ToString::to_string);
    assert!(
        source.is_some_and(|source| source.contains("publish")),
        "{refused}"
    );
}
