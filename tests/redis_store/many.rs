//! Steps on many keys: how many commands they are, and what a part of them that fails does.

use super::server::Admin;
use super::{LEASE_TTL, OTHER_OPENING, Pod, connect, envelope, place};
use std::sync::Arc;
use tidings::coherence::Lane;
use tidings::error::StoreErrorKind;
use tidings::store::{
    Fill, LeaseReply, LeaseRequest, LeaseState, Link, Place, Replaces, StoreResult,
};

const MANY: usize = 300;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("k{n}")).collect()
}

async fn lease(link: &Arc<dyn Link>, places: &[Place<'_>]) -> Vec<StoreResult<LeaseReply>> {
    let request = LeaseRequest {
        token: 7,
        ttl: LEASE_TTL,
        unusable: None,
        opening: OTHER_OPENING,
    };
    let asked: Vec<_> = places.iter().map(|place| (*place, request)).collect();
    link.lease_many(&asked).await
}

async fn fill(pod: &Pod, places: &[Place<'_>]) -> Vec<StoreResult<bool>> {
    let at = pod.head().await.unwrap().at;
    let envelope = envelope(at.epoch, at.seq);
    let fill = Fill {
        token: 7,
        replaces: Replaces::Lease,
        epoch: at.epoch,
        envelope: &envelope,
        ttl: None,
    };
    let fills: Vec<_> = places.iter().map(|place| (*place, fill)).collect();
    pod.link.fill_many(&fills).await
}

fn granted(replies: &[StoreResult<LeaseReply>]) -> usize {
    let granted = |reply: &&StoreResult<LeaseReply>| matches!(reply, Ok(reply) if reply.state == LeaseState::Granted);
    replies.iter().filter(granted).count()
}

/// Calls of `command` so far.
fn calls(pod: &Pod, command: &str) -> u64 {
    let stats: String = pod.server.query(&[b"INFO", b"commandstats"]);
    let line = format!("cmdstat_{command}:calls=");
    let calls = stats.split(&line).nth(1);
    calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn steps_on_many_keys_are_few_and_bounded_commands() {
    let pod = Pod::open().await;
    let names = names(MANY);
    let places: Vec<_> = names.iter().map(|name| place(name)).collect();
    // The server learns the scripts.
    pod.store("first").await;
    let (reads, scripts) = (calls(&pod, "mget"), calls(&pod, "evalsha"));
    assert!(pod.link.read_many(&places).await.iter().all(Result::is_ok));
    assert_eq!(calls(&pod, "mget") - reads, 3);
    assert_eq!(granted(&lease(&pod.link, &places).await), MANY);
    assert_eq!(calls(&pod, "evalsha") - scripts, 5);
    assert!(
        fill(&pod, &places)
            .await
            .into_iter()
            .all(|stored| stored.unwrap())
    );
    assert_eq!(calls(&pod, "evalsha") - scripts, 10);
}

#[tokio::test]
async fn calls_whose_script_the_server_forgot_are_repeated_and_no_others() {
    let pod = Pod::open().await;
    let names = names(MANY);
    let places: Vec<_> = names.iter().map(|name| place(name)).collect();
    pod.server.run("SCRIPT FLUSH");
    assert_eq!(granted(&lease(&pod.link, &places).await), MANY);
    let again = lease(&pod.link, &places).await;
    assert_eq!(granted(&again), 0, "they were granted once");
    pod.server.run("SCRIPT FLUSH");
    assert!(
        fill(&pod, &places)
            .await
            .into_iter()
            .all(|stored| stored.unwrap())
    );
}

#[tokio::test]
async fn a_lane_that_fails_fails_alone() {
    let pod = Pod::open().await;
    pod.store("first").await;
    // A user who may work on one of two lanes.
    let limited = "ACL SETUSER limited on >hunter2 ~{ns:00}* ~{ns}c ~{ns:00}b &{ns* +@all";
    pod.server.run(limited);
    let url = format!("redis://limited:hunter2@127.0.0.1:{}/0", pod.server.port());
    let (link, _hints) = connect(&url).await.unwrap();
    let elsewhere = |key| Place {
        lane: Lane(1),
        ..place(key)
    };
    let places = [place("a"), elsewhere("b"), place("c"), elsewhere("d")];
    let replies = lease(&link, &places).await;
    assert_eq!(granted(&replies), 2);
    for (reply, fails) in replies.into_iter().zip([false, true, false, true]) {
        assert_eq!(
            reply.err().map(|error| error.kind()),
            fails.then_some(StoreErrorKind::Denied)
        );
    }
}

#[tokio::test]
async fn every_key_hears_that_the_connection_broke() {
    let pod = Pod::open().await;
    pod.server.run("CLIENT KILL TYPE normal SKIPME yes");
    let names = names(3);
    let places: Vec<_> = names.iter().map(|name| place(name)).collect();
    // The first to ask may be the one that finds it broken.
    let read = pod.link.read_many(&places).await;
    assert!(read.iter().all(Result::is_err) && read.len() == 3);
    let kinds = lease(&pod.link, &places).await.into_iter();
    let kinds: Vec<_> = kinds.map(|reply| reply.unwrap_err().kind()).collect();
    assert_eq!(kinds, [StoreErrorKind::Unavailable; 3]);
}
