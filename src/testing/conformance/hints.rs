//! Claims on hints.

use super::harness::{Harness, KEY, LANE, place};
use crate::coherence::{Kind, Nonce};
use crate::store::LeaseState;

/// What is published is what is logged, with its lane and epoch, in order.
pub async fn hints_carry_the_entries_of_the_log(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    let head = probe.touch(LANE).await;
    probe.invalidate(&[KEY, place(b"user/2", 0x52)]).await;
    probe.clear().await;
    let fenced = probe.fence(head.at.epoch).await;
    let log = probe.log().await;
    assert_eq!(log.len(), 4);
    for entry in log {
        let bytes = ears.hear().await;
        let hint = crate::coherence::Hint::decode(&bytes).expect("a hint");
        assert_eq!(hint.encode(), bytes, "it is written as it is read");
        assert_eq!(hint.lane, LANE);
        let epoch = match entry.seq {
            4 => fenced.at.epoch,
            _ => head.at.epoch,
        };
        assert_eq!(hint.epoch, epoch);
        assert!(hint.server_ms > 0, "a server has a clock");
        assert_eq!(hint.entry, entry);
    }
}

/// A connect returns only when its subscription stands; every link hears everything after it, and
/// nothing from before.
pub async fn every_link_hears_what_is_published_after_its_connect(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    let before = probe.invalidate(&[KEY]).await;
    assert_eq!(ears.hint().await.entry.seq, 1);
    assert_eq!(ears.hint().await.at(), before.at);
    let (other, mut others) = harness.connect().await;
    for _ in 0..3 {
        let here = probe.invalidate(&[KEY]).await;
        let there = other.invalidate(&[KEY]).await;
        for logged in [here, there] {
            assert_eq!(ears.hint().await.at(), logged.at);
            assert_eq!(others.hint().await.at(), logged.at);
        }
    }
}

/// Whoever was told that the lease is held is told when the value is there.
pub async fn a_waiter_hears_of_the_fill(harness: &Harness) {
    let leader = harness.probe().await;
    let (waiter, mut ears) = harness.connect().await;
    let lease = leader.lease(KEY).await;
    ears.hint().await;
    assert_eq!(waiter.ask(KEY).await.state, LeaseState::Held);
    let bytes = super::harness::value(lease);
    assert!(leader.fill(KEY, lease, &bytes).await);
    let hint = ears.hint().await;
    assert_eq!((hint.entry.kind, hint.lane), (Kind::Filled, LANE));
    assert_eq!(hint.entry.hashes, [KEY.hash]);
    assert_eq!(hint.at(), lease.head.at);
    assert_eq!((hint.entry.prev, hint.entry.nonce), (Nonce(0), Nonce(0)));
    assert_eq!(waiter.read(KEY).await.value, Some(bytes));
    assert_eq!(leader.log().await.len(), 1, "it is not logged");
}

/// Whoever was told that the lease is held is told when it was given back.
pub async fn a_waiter_hears_of_the_release(harness: &Harness) {
    let leader = harness.probe().await;
    let (waiter, mut ears) = harness.connect().await;
    let lease = leader.lease(KEY).await;
    ears.hint().await;
    assert_eq!(waiter.ask(KEY).await.state, LeaseState::Held);
    leader.release(KEY, lease.token).await;
    let hint = ears.hint().await;
    assert_eq!(hint.entry.kind, Kind::Filled);
    assert_eq!(hint.entry.hashes, [KEY.hash]);
    assert_eq!(waiter.ask(KEY).await.state, LeaseState::Granted);
}

/// A fill is published only if somebody asked for the key meanwhile.
pub async fn a_fill_that_nobody_waits_for_is_silent(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe.put(KEY).await;
    assert_eq!(ears.hint().await.entry.kind, Kind::Fence);
    let logged = probe.invalidate(&[KEY]).await;
    let next = ears.hint().await;
    assert_eq!((next.entry.kind, next.at()), (Kind::Invalidate, logged.at));
}

/// What one namespace publishes is not heard in another.
pub async fn two_namespaces_do_not_hear_each_other(harness: &Harness) {
    let elsewhere = harness.elsewhere();
    let (here, mut ears) = harness.connect().await;
    let there = elsewhere.probe().await;
    there.invalidate(&[KEY]).await;
    let head = here.touch(LANE).await;
    let hint = ears.hint().await;
    assert_eq!((hint.at(), hint.entry.nonce), (head.at, head.nonce));
}
