//! Claims on values, leases and fills.

use super::harness::{
    ENTITY, ENTITY_HASH, Harness, KEY, LANE, LONG, Lease, eventually, place, value,
};
use crate::coherence::wire::MAX_KEYS;
use crate::store::{LeaseRequest, LeaseState, Place};
use bytes::Bytes;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(20);

/// However many ask at once, one of them loads.
pub async fn concurrent_leases_grant_one(harness: &Harness) {
    let probes = [harness.probe().await, harness.probe().await];
    let mut calls = tokio::task::JoinSet::new();
    for token in 1..=50 {
        let link = probes[token as usize % 2].link.clone();
        let request = LeaseRequest {
            token,
            ttl: LONG,
            unusable: None,
            opening: harness.opening(),
        };
        calls.spawn(async move { link.lease(KEY, request).await.expect("lease").state });
    }
    let states = calls.join_all().await;
    let count = |state| states.iter().filter(|seen| **seen == state).count();
    assert_eq!(
        (count(LeaseState::Granted), count(LeaseState::Held)),
        (1, 49)
    );
}

/// A lease whose holder died does not block the key for longer than its TTL; its fill comes too late.
pub async fn a_lease_ends_with_its_ttl(harness: &Harness) {
    let probe = harness.probe().await;
    let first = probe.request(KEY, 1, SHORT, None).await;
    assert_eq!(first.state, LeaseState::Granted);
    eventually("the lease ends", async || {
        let reply = probe.request(KEY, 2, LONG, None).await;
        (reply.state == LeaseState::Granted).then_some(())
    })
    .await;
    let late = Lease {
        token: 1,
        head: first.head,
    };
    assert!(!probe.fill(KEY, late, &value(late)).await);
}

/// A read that proves itself gives what a read gives, of every step that was answered before it.
pub async fn a_proven_read_gives_what_a_read_gives(harness: &Harness) {
    let (probe, other) = (harness.probe().await, harness.probe().await);
    let absent = probe.link.read_proven(KEY).await.expect("read_proven");
    assert_eq!(absent, probe.read(KEY).await);
    let bytes = other.put(KEY).await;
    let found = probe.link.read_proven(KEY).await.expect("read_proven");
    assert_eq!(found.value.as_deref(), Some(&bytes[..]));
    assert_eq!(found, probe.read(KEY).await);
    other.invalidate(&[KEY]).await;
    let gone = probe.link.read_proven(KEY).await.expect("read_proven");
    assert_eq!((gone.value, gone.floor), (None, found.floor));
    assert_ne!(gone.head, found.head, "the head of after");
}

/// A fill under its lease is stored, and read with the head and the floor.
pub async fn a_fill_under_the_lease_is_read_back(harness: &Harness) {
    let probe = harness.probe().await;
    let absent = probe.read(KEY).await;
    assert_eq!(
        (absent.head, absent.value, absent.floor),
        (None, None, None)
    );
    let bytes = probe.put(KEY).await;
    let found = harness.probe().await.read(KEY).await;
    assert_eq!(found.value, Some(bytes));
    assert_eq!(found.head, Some(probe.touch(LANE).await));
    assert_eq!(found.floor, Some(1));
}

/// An invalidation during the load makes its result unwelcome.
pub async fn a_fill_after_an_invalidation_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    probe.invalidate(&[KEY]).await;
    assert!(!probe.fill(KEY, lease, &value(lease)).await);
    assert_eq!(probe.read(KEY).await.value, None);
    probe.lease(KEY).await;
    assert!(!probe.fill(KEY, lease, &value(lease)).await);
}

/// A fence during the load makes its result unwelcome.
pub async fn a_fill_after_a_fence_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    probe.fence(lease.head.at.epoch).await;
    assert!(!probe.fill(KEY, lease, &value(lease)).await);
    assert_ne!(probe.read(KEY).await.value, Some(value(lease)));
    probe.put(KEY).await;
}

/// Only the holder of the lease may fill.
pub async fn a_fill_with_another_token_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    let stranger = Lease {
        token: !lease.token,
        ..lease
    };
    assert!(!probe.fill(KEY, stranger, &value(stranger)).await);
    let elsewhere = place(b"user/2", 0x52);
    assert!(!probe.fill(elsewhere, lease, &value(lease)).await);
    assert!(probe.fill(KEY, lease, &value(lease)).await);
}

/// A lease is good for one fill.
pub async fn a_repeated_fill_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    assert!(probe.fill(KEY, lease, &value(lease)).await);
    assert!(!probe.fill(KEY, lease, b"again").await);
    assert_eq!(probe.read(KEY).await.value, Some(value(lease)));
}

/// A fill may take the place of the value that its load found, with a token of its own.
pub async fn a_refresh_replaces_the_value_it_names(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.lease(KEY).await;
    assert!(probe.fill(KEY, old, &value(old)).await);
    let new = probe.load(LANE).await;
    assert!(!probe.refresh(KEY, new.token, new).await, "it names itself");
    assert!(probe.refresh(KEY, old.token, new).await);
    assert_eq!(probe.read(KEY).await.value, Some(value(new)));
}

/// An invalidation during a refresh makes its result unwelcome, whether or not the key was filled anew.
pub async fn a_refresh_that_raced_an_invalidation_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.lease(KEY).await;
    assert!(probe.fill(KEY, old, &value(old)).await);
    let late = probe.load(LANE).await;
    probe.invalidate(&[KEY]).await;
    assert!(!probe.refresh(KEY, old.token, late).await);
    assert_eq!(probe.read(KEY).await.value, None);
    let bytes = probe.put(KEY).await;
    assert!(!probe.refresh(KEY, old.token, late).await);
    assert_eq!(probe.read(KEY).await.value, Some(bytes));
}

/// A fence during a refresh makes its result unwelcome, though the value is still there.
pub async fn a_refresh_after_a_fence_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.lease(KEY).await;
    assert!(probe.fill(KEY, old, &value(old)).await);
    let late = probe.load(LANE).await;
    probe.fence(late.head.at.epoch).await;
    assert!(!probe.refresh(KEY, old.token, late).await);
    assert_ne!(probe.read(KEY).await.value, Some(value(late)));
}

/// Whoever refreshes first has changed the token that the other one names.
pub async fn of_two_refreshes_of_one_value_the_second_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.lease(KEY).await;
    assert!(probe.fill(KEY, old, &value(old)).await);
    let (first, second) = (probe.load(LANE).await, probe.load(LANE).await);
    assert!(probe.refresh(KEY, old.token, first).await);
    assert!(!probe.refresh(KEY, old.token, second).await);
    assert!(!probe.refresh(KEY, old.token, first).await, "repeated");
    assert_eq!(probe.read(KEY).await.value, Some(value(first)));
}

/// Who loads a key that is leased to somebody else has no value to name.
pub async fn a_refresh_replaces_no_lease(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    let new = probe.load(LANE).await;
    assert!(!probe.refresh(KEY, lease.token, new).await);
    assert!(probe.fill(KEY, lease, &value(lease)).await);
}

/// After a release the next caller is granted the lease at once.
pub async fn a_release_frees_the_key(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    assert_eq!(probe.ask(KEY).await.state, LeaseState::Held);
    probe.release(KEY, lease.token).await;
    assert_eq!(probe.read(KEY).await.value, None);
    assert!(!probe.fill(KEY, lease, &value(lease)).await);
    probe.lease(KEY).await;
}

/// A release by somebody whose lease is over takes nothing from its next holder, nor a value.
pub async fn a_release_with_another_token_frees_nothing(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    probe.release(KEY, !lease.token).await;
    assert_eq!(probe.ask(KEY).await.state, LeaseState::Held);
    assert!(probe.fill(KEY, lease, &value(lease)).await);
    probe.release(KEY, lease.token).await;
    assert_eq!(probe.read(KEY).await.value, Some(value(lease)));
}

/// Who asks for a lease and finds a value gets the value.
pub async fn a_present_value_wins_over_the_lease(harness: &Harness) {
    let probe = harness.probe().await;
    let bytes = probe.put(KEY).await;
    assert_eq!(probe.ask(KEY).await.state, LeaseState::Present(bytes));
}

/// Bytes that a reader cannot use do not stand in its way; what replaced them meanwhile does.
pub async fn unusable_bytes_count_as_absent_only_while_they_stand_there(harness: &Harness) {
    let probe = harness.probe().await;
    let bad = probe.put(KEY).await;
    let reply = probe.request(KEY, 1, LONG, Some(b"others")).await;
    assert_eq!(reply.state, LeaseState::Present(bad.clone()));
    let reply = probe.request(KEY, 2, LONG, Some(&bad)).await;
    assert_eq!(reply.state, LeaseState::Granted);
    // 1. A and B read the bad bytes; 2. A is granted the lease; 3. B asks too, and must wait;
    // 4. A fills; 5. B asks again, still naming the bad bytes, and must get what A loaded.
    let reply = probe.request(KEY, 3, LONG, Some(&bad)).await;
    assert_eq!(reply.state, LeaseState::Held);
    let lease = Lease {
        token: 2,
        head: reply.head,
    };
    assert!(probe.fill(KEY, lease, &value(lease)).await);
    let reply = probe.request(KEY, 4, LONG, Some(&bad)).await;
    assert_eq!(reply.state, LeaseState::Present(value(lease)));
}

/// A clear makes every value of the entity on the lane count as absent, and none of another entity.
pub async fn a_clear_raises_the_floor_above_what_was_stored(harness: &Harness) {
    let probe = harness.probe().await;
    let other = Place {
        entity: "order",
        ..place(b"order/1", 0x61)
    };
    probe.put(KEY).await;
    let kept = probe.put(other).await;
    let leased = place(b"user/2", 0x52);
    let lease = probe.lease(leased).await;
    let cleared = probe.clear().await;
    assert_eq!(probe.read(KEY).await.floor, Some(cleared.at.seq));
    let reply = probe.ask(KEY).await;
    assert_eq!(reply.state, LeaseState::Granted);
    assert_eq!(reply.floor, cleared.at.seq);
    assert_eq!(probe.ask(other).await.state, LeaseState::Present(kept));
    // A load that began before the clear blocks nobody.
    assert_eq!(probe.ask(leased).await.state, LeaseState::Granted);
    assert!(!probe.fill(leased, lease, &value(lease)).await);
}

/// A name that no value was ever stored under costs the store nothing but the log entry.
pub async fn a_clear_of_what_nobody_keeps_leaves_no_floor(harness: &Harness) {
    let probe = harness.probe().await;
    let cleared = probe.clear().await;
    assert_eq!(probe.read(KEY).await.floor, None);
    let lease = probe.lease(KEY).await;
    assert_eq!(lease.head.at, cleared.at);
    assert_eq!(probe.read(KEY).await.floor, Some(cleared.at.seq));
}

/// Where an entity has no floor yet, the first lease sets it to where the log stands.
pub async fn a_lease_sets_a_missing_floor(harness: &Harness) {
    let probe = harness.probe().await;
    let head = probe.touch(LANE).await;
    probe.invalidate(&[KEY]).await;
    assert_eq!(probe.read(KEY).await.floor, None);
    let reply = probe.ask(KEY).await;
    assert_eq!((reply.floor, reply.head.at.seq), (2, 2));
    assert_eq!(reply.head.at.epoch, head.at.epoch);
    assert!(reply.server_ms > 0, "a server has a clock");
    probe.invalidate(&[KEY]).await;
    assert_eq!(probe.ask(KEY).await.floor, 2, "it stays where it is");
    assert_eq!(probe.read(KEY).await.floor, Some(2));
}

/// A value of an epoch that the head does not continue does not stand in a loader's way.
pub async fn a_value_of_a_dead_epoch_counts_as_absent(harness: &Harness) {
    let probe = harness.probe().await;
    let dead = probe.put(KEY).await;
    let epoch = probe.touch(LANE).await.at.epoch;
    probe.fence(epoch).await;
    assert_eq!(probe.read(KEY).await.value, Some(dead.clone()));
    let lease = probe.lease(KEY).await;
    assert_ne!(lease.head.at.epoch, epoch);
    assert!(probe.fill(KEY, lease, &value(lease)).await);
    assert_ne!(value(lease), dead);
}

/// One call removes as many values as an entry may name, and only those.
pub async fn one_invalidation_removes_many_values(harness: &Harness) {
    let probe = harness.probe().await;
    let keys: Vec<_> = (0..=MAX_KEYS).map(|n| format!("user/{n}")).collect();
    let places: Vec<_> = keys
        .iter()
        .zip(1..)
        .map(|(key, hash)| Place {
            lane: LANE,
            hash,
            entity: ENTITY,
            key: key.as_bytes(),
        })
        .collect();
    for place in &places {
        probe.put(*place).await;
    }
    let (kept, gone) = places.split_last().expect("there are many");
    probe.invalidate(gone).await;
    for place in gone {
        assert_eq!(probe.read(*place).await.value, None);
    }
    assert!(probe.read(*kept).await.value.is_some());
    let hashes = gone.iter().map(|place| place.hash);
    let hashes: Vec<_> = [ENTITY_HASH].into_iter().chain(hashes).collect();
    assert_eq!(
        probe.log().await.last().map(|e| e.hashes.clone()),
        Some(hashes)
    );
}

/// The store does not care what a value is made of.
pub async fn any_bytes_are_kept_as_they_are(harness: &Harness) {
    let probe = harness.probe().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let long = vec![0xD7; 100_000];
    for bytes in [&b""[..], b"\r\n$-1\r\n", b"\0", &every_byte, &long] {
        probe.invalidate(&[KEY]).await;
        let lease = probe.lease(KEY).await;
        assert!(probe.fill(KEY, lease, bytes).await);
        let found = probe.read(KEY).await.value;
        assert_eq!(found, Some(Bytes::copy_from_slice(bytes)));
    }
    // Those that cannot be a value block no loader.
    probe.lease(KEY).await;
}

/// A fill without TTL is still there when one with a TTL is gone, though its lease had an end.
pub async fn a_value_without_ttl_outlives_those_with_one(harness: &Harness) {
    let probe = harness.probe().await;
    let brief = place(b"user/2", 0x52);
    // The lease may end before it is used, on a slow machine; then it is taken again.
    let stays = eventually("a fill under a short lease", async || {
        let reply = probe.request(KEY, 1, SHORT, None).await;
        let lease = Lease {
            token: 1,
            head: reply.head,
        };
        let filled = probe.fill_for(KEY, lease, &value(lease), None).await;
        filled.then(|| value(lease))
    })
    .await;
    let lease = probe.lease(brief).await;
    assert!(
        probe
            .fill_for(brief, lease, &value(lease), Some(2 * SHORT))
            .await
    );
    eventually("the brief value ends", async || {
        probe.read(brief).await.value.is_none().then_some(())
    })
    .await;
    assert_eq!(probe.read(KEY).await.value, Some(stays));
}

/// The shortest TTL is neither an error nor for ever.
pub async fn a_ttl_below_the_resolution_rounds_up(harness: &Harness) {
    const SHORTEST: Duration = Duration::from_nanos(1);
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    assert!(
        probe
            .fill_for(KEY, lease, &value(lease), Some(SHORTEST))
            .await
    );
    eventually("the value ends", async || {
        probe.read(KEY).await.value.is_none().then_some(())
    })
    .await;
    let reply = probe.request(KEY, 1, SHORTEST, None).await;
    assert_eq!(reply.state, LeaseState::Granted);
    eventually("the lease ends", async || {
        (probe.ask(KEY).await.state == LeaseState::Granted).then_some(())
    })
    .await;
}

/// The same key of two namespaces is two keys, and their lanes two lanes.
pub async fn two_namespaces_share_nothing(harness: &Harness) {
    let elsewhere = harness.elsewhere();
    let (here, there) = (harness.probe().await, elsewhere.probe().await);
    let bytes = here.put(KEY).await;
    let found = there.read(KEY).await;
    assert_eq!((found.head, found.value, found.floor), (None, None, None));
    there.invalidate(&[KEY]).await;
    assert_eq!(here.read(KEY).await.value, Some(bytes));
    assert_ne!(
        here.touch(LANE).await.at.epoch,
        there.touch(LANE).await.at.epoch
    );
}
