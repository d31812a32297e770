//! Reads that are under way together share commands, and nothing else.

use super::server::Admin;
use super::{Pod, connect, place};
use std::sync::Arc;
use tidings::coherence::Lane;
use tidings::error::StoreErrorKind;
use tidings::store::{Found, Link, Place, StoreResult};
use tidings::testing::RedisServer;
use tokio::task::{JoinHandle, yield_now};

const READS: usize = 50;

/// Starts a read in a task of its own.
fn start(link: &Arc<dyn Link>, key: String, at: fn(Place<'_>) -> Place<'_>) -> Read {
    let link = Arc::clone(link);
    tokio::spawn(async move { link.read(at(place(&key))).await })
}

type Read = JoinHandle<StoreResult<Found>>;

fn here(place: Place<'_>) -> Place<'_> {
    place
}

fn start_many(link: &Arc<dyn Link>) -> Vec<Read> {
    (0..READS)
        .map(|n| start(link, format!("k{n}"), here))
        .collect()
}

fn commands(server: &RedisServer) -> u64 {
    let stats: String = server.query(&[b"INFO", b"commandstats"]);
    let mget = stats.split("cmdstat_mget:calls=").nth(1);
    mget.map_or(0, |mget| mget.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn reads_that_are_under_way_together_share_commands() {
    let pod = Pod::open().await;
    let before = commands(&pod.server);
    for read in start_many(&pod.link) {
        assert_eq!(read.await.unwrap().unwrap().value, None);
    }
    assert_eq!(
        commands(&pod.server) - before,
        2,
        "the first, then the rest"
    );
}

#[tokio::test]
async fn a_read_that_comes_alone_goes_alone() {
    let pod = Pod::open().await;
    let before = commands(&pod.server);
    for n in 0..5 {
        assert_eq!(commands(&pod.server) - before, n);
        pod.link.read(place("k")).await.unwrap();
    }
}

#[tokio::test]
async fn each_read_of_a_shared_command_gets_what_it_gets_alone() {
    let pod = Pod::open().await;
    pod.store("a").await;
    pod.store("b").await;
    pod.clear(5).await.unwrap();
    pod.store("c").await;
    let places: [fn(Place<'_>) -> Place<'_>; 3] = [
        here,
        |place| Place {
            entity: "others",
            ..place
        },
        |place| Place {
            lane: Lane(1),
            ..place
        },
    ];
    let cases = || {
        ["a", "b", "c", "none"]
            .into_iter()
            .flat_map(|key| places.map(|at| (key, at)))
    };
    let mut alone = Vec::new();
    for (key, at) in cases() {
        alone.push(pod.link.read(at(place(key))).await.unwrap());
    }
    let shared: Vec<_> = cases()
        .map(|(key, at)| start(&pod.link, key.to_owned(), at))
        .collect();
    for (read, alone) in shared.into_iter().zip(alone) {
        assert_eq!(read.await.unwrap().unwrap(), alone);
    }
}

#[tokio::test]
async fn a_dropped_read_does_not_disturb_those_it_shares_a_command_with() {
    let pod = Pod::open().await;
    let stored = pod.store("k7").await;
    // Dropped with so many turns of the scheduler behind it: before it was sent, after, or in between.
    for turns in 0..6 {
        let mut reads = start_many(&pod.link);
        for _ in 0..turns {
            yield_now().await;
        }
        // The one that goes alone, the one that brought the carrier up, and one of the others.
        for dropped in [9, 1, 0] {
            reads.remove(dropped).abort();
        }
        for (n, read) in reads.into_iter().enumerate() {
            let value = read.await.unwrap().unwrap().value;
            assert_eq!(value.is_some(), n == 5, "{turns} turns, read {n}");
            assert!(value.is_none_or(|value| value == stored));
        }
    }
}

#[tokio::test]
async fn an_error_reaches_every_read_that_shares_the_command() {
    let pod = Pod::open().await;
    let limited = "ACL SETUSER limited on >hunter2 ~{ns* &{ns* +@all -mget";
    pod.server.run(limited);
    let url = format!("redis://limited:hunter2@127.0.0.1:{}/0", pod.server.port());
    let (link, _hints) = connect(&url).await.unwrap();
    for read in start_many(&link) {
        let error = read.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Denied);
    }
}

#[tokio::test]
async fn reads_of_a_broken_connection_fail_at_once() {
    let pod = Pod::open().await;
    let reads = start_many(&pod.link);
    pod.server.run("CLIENT KILL TYPE normal SKIPME yes");
    for read in reads {
        if let Err(error) = read.await.unwrap() {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        }
    }
    for read in start_many(&pod.link) {
        assert!(read.await.unwrap().is_err(), "the link does not reconnect");
    }
}
