//! Leases, fills and who is told.

use super::{Admin, LANE, OPENING, OTHER_OPENING, Pod, envelope, place};
use std::time::Duration;
use tidings::coherence::{Epoch, Kind};
use tidings::store::{Fill, LeaseRequest, LeaseState, Replaces};

#[tokio::test]
async fn one_caller_gets_the_lease_and_the_next_hears_that_it_is_held() {
    let pod = Pod::open().await;
    let first = pod.lease("k", 1).await;
    assert_eq!(first.state, LeaseState::Granted);
    assert_eq!((first.head, first.floor), (pod.head().await.unwrap(), 1));
    assert!(first.server_ms >= first.head.last_pub_ms);
    assert_eq!(pod.lease("k", 2).await.state, LeaseState::Held);
    let ttl: i64 = pod.server.query(&[b"PTTL", b"{ns:00}v:k"]);
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    let stored = pod.link.read(place("k")).await.unwrap().value.unwrap();
    let mut lease = vec![0xD7, 1, 3, 1];
    for word in [1, OPENING.epoch.0, 1] {
        lease.extend(u64::to_be_bytes(word));
    }
    assert_eq!(stored, lease);
}

#[tokio::test]
async fn a_lease_opens_a_lane_that_has_no_head() {
    let pod = Pod::start().await;
    let lease = pod.lease("k", 1).await;
    assert_eq!(lease.state, LeaseState::Granted);
    assert_eq!((lease.head.at.epoch, lease.floor), (OTHER_OPENING.epoch, 1));
}

#[tokio::test]
async fn a_filled_value_is_present_for_the_next_lease() {
    let pod = Pod::open().await;
    let value = pod.store("k").await;
    assert_eq!(
        pod.lease("k", 2).await.state,
        LeaseState::Present(value.into())
    );
}

#[tokio::test]
async fn bytes_named_unusable_count_as_absent_only_while_they_stand() {
    let pod = Pod::open().await;
    let value = pod.store("k").await;
    let other = pod.lease_over("k", 2, Some(b"other bytes")).await.unwrap();
    assert_eq!(other.state, LeaseState::Present(value.clone().into()));
    let same = pod.lease_over("k", 2, Some(&value)).await.unwrap();
    assert_eq!(same.state, LeaseState::Granted);
}

#[tokio::test]
async fn values_of_other_epochs_unknown_states_and_rubbish_count_as_absent() {
    let pod = Pod::open().await;
    let good = envelope(OPENING.epoch, 1);
    let mut unknown_state = good.clone();
    unknown_state[2] = 9;
    let mut other_magic = good.clone();
    other_magic[0] = 0xD8;
    let bytes = [
        envelope(Epoch(OPENING.epoch.0 ^ 1), 1),
        envelope(OPENING.epoch, 0),
        unknown_state,
        other_magic,
        good[..27].to_vec(),
        Vec::new(),
    ];
    for value in bytes {
        let _: redis::Value = pod.server.query(&[b"SET", b"{ns:00}v:k", &value]);
        assert_eq!(
            pod.lease("k", 2).await.state,
            LeaseState::Granted,
            "{value:?}"
        );
    }
    let _: redis::Value = pod.server.query(&[b"SET", b"{ns:00}v:k", &good]);
    assert_eq!(
        pod.lease("k", 2).await.state,
        LeaseState::Present(good.into())
    );
}

#[tokio::test]
async fn a_value_of_an_epoch_that_the_head_continues_is_present() {
    let pod = Pod::open().await;
    let value = pod.store("k").await;
    let mut head = pod.head().await.unwrap();
    (head.prev_epoch, head.fork_seq, head.at.epoch) = (head.at.epoch, 1, OTHER_OPENING.epoch);
    for fork in [true, false] {
        head.fork = fork;
        let _: redis::Value = pod.server.query(&[b"SET", b"{ns:00}h", &head.encode()]);
        let state = pod.lease("k", 2).await.state;
        assert_eq!(state == LeaseState::Present(value.clone().into()), fork);
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_leased_over() {
    let pod = Pod::open().await;
    pod.server.run("LPUSH {ns:00}v:k x");
    assert_eq!(pod.link.read(place("k")).await.unwrap().value, None);
    assert!(!pod.fill("k", 1, OPENING.epoch, b"value").await);
    pod.link.release(place("k"), 1).await.unwrap();
    assert_eq!(pod.lease("k", 1).await.state, LeaseState::Granted);
}

#[tokio::test]
async fn a_floor_that_was_evicted_or_is_rubbish_is_set_to_the_head() {
    let pod = Pod::open().await;
    pod.invalidate("other", 5).await.unwrap();
    for command in [
        "DEL {ns:00}f:users",
        "SET {ns:00}f:users rubbish",
        "SET {ns:00}f:users 99",
        "SET {ns:00}f:users 99999999999999999999999999",
        "SET {ns:00}f:users -1",
    ] {
        pod.server.run(command);
        let lease = pod.lease("k", 1).await;
        assert_eq!(lease.floor, 2, "{command}");
        assert_eq!(
            pod.link.read(place("k")).await.unwrap().floor,
            Some(2),
            "{command}"
        );
    }
    pod.server.run("DEL {ns:00}f:users");
    pod.server.run("LPUSH {ns:00}f:users x");
    assert_eq!(pod.lease("k", 1).await.floor, 2);
    assert_eq!(pod.link.read(place("k")).await.unwrap().floor, Some(2));
}

#[tokio::test]
async fn a_lease_ends_by_itself() {
    let pod = Pod::open().await;
    let request = LeaseRequest {
        token: 1,
        ttl: Duration::from_nanos(1),
        unusable: None,
        opening: OPENING,
    };
    let lease = pod.link.lease(place("k"), request).await.unwrap();
    assert_eq!(lease.state, LeaseState::Granted);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while pod.link.read(place("k")).await.unwrap().value.is_some() {
        assert!(
            std::time::Instant::now() < deadline,
            "the lease does not end"
        );
    }
    assert!(!pod.fill("k", 1, OPENING.epoch, b"late").await);
    assert_eq!(pod.lease("k", 2).await.state, LeaseState::Granted);
}

#[tokio::test]
async fn a_fill_needs_its_lease_and_the_epoch_of_it() {
    let pod = Pod::open().await;
    assert!(!pod.fill("k", 1, OPENING.epoch, b"no lease").await);
    pod.lease("k", 1).await;
    assert!(!pod.fill("k", 2, OPENING.epoch, b"wrong token").await);
    assert!(!pod.fill("k", 1, OTHER_OPENING.epoch, b"wrong epoch").await);
    assert!(pod.fill("k", 1, OPENING.epoch, b"right").await);
    assert!(!pod.fill("k", 1, OPENING.epoch, b"again").await);
    let found = pod.link.read(place("k")).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&b"right"[..]));
}

#[tokio::test]
async fn a_fill_after_an_invalidation_is_refused() {
    let pod = Pod::open().await;
    pod.lease("k", 1).await;
    pod.invalidate("k", 5).await.unwrap();
    assert!(!pod.fill("k", 1, OPENING.epoch, b"old").await);
    assert_eq!(pod.link.read(place("k")).await.unwrap().value, None);
}

#[tokio::test]
async fn a_fill_after_a_fence_or_without_a_head_is_refused() {
    let pod = Pod::open().await;
    pod.lease("k", 1).await;
    pod.link
        .fence(LANE, OPENING.epoch, OTHER_OPENING)
        .await
        .unwrap();
    assert!(!pod.fill("k", 1, OPENING.epoch, b"old").await);
    pod.server.run("DEL {ns:00}h");
    assert!(!pod.fill("k", 1, OPENING.epoch, b"old").await);
}

#[tokio::test]
async fn a_fill_lives_as_long_as_it_says() {
    let pod = Pod::open().await;
    for (ttl, expected) in [
        (None, -1..=-1),
        (Some(Duration::from_secs(9)), 1..=9_000),
        (Some(Duration::MAX), 1 << 51..=1 << 53),
    ] {
        pod.lease("k", 1).await;
        let fill = Fill {
            token: 1,
            replaces: Replaces::Lease,
            epoch: OPENING.epoch,
            envelope: b"value",
            ttl,
        };
        assert!(pod.link.fill(place("k"), fill).await.unwrap());
        let left: i64 = pod.server.query(&[b"PTTL", b"{ns:00}v:k"]);
        assert!(expected.contains(&left), "{ttl:?}: {left}");
        pod.server.run("DEL {ns:00}v:k");
    }
}

#[tokio::test]
async fn a_fill_is_announced_only_if_somebody_waits() {
    let mut pod = Pod::open().await;
    pod.store("alone").await;
    pod.lease("k", 1).await;
    assert_eq!(pod.lease("k", 2).await.state, LeaseState::Held);
    assert!(pod.fill("k", 1, OPENING.epoch, b"value").await);
    // The first hint is of the fill that was waited for.
    let hint = pod.hint().await;
    assert_eq!((hint.lane, hint.entry.kind), (LANE, Kind::Filled));
    assert_eq!(hint.entry.hashes, [place("k").hash]);
    assert_eq!(hint.at(), pod.head().await.unwrap().at);
    assert_eq!((hint.entry.prev.0, hint.entry.nonce.0), (0, 0));
}

#[tokio::test]
async fn a_release_frees_the_key_and_wakes_who_waits() {
    let mut pod = Pod::open().await;
    pod.lease("k", 1).await;
    pod.link.release(place("k"), 2).await.unwrap();
    assert_eq!(pod.lease("k", 3).await.state, LeaseState::Held);
    pod.link.release(place("k"), 1).await.unwrap();
    let hint = pod.hint().await;
    assert_eq!(hint.entry.kind, Kind::Filled);
    assert_eq!(hint.entry.hashes, [place("k").hash]);
    assert_eq!(pod.lease("k", 3).await.state, LeaseState::Granted);
    let value = pod.store("v").await;
    pod.link.release(place("v"), 77).await.unwrap();
    let found = pod.link.read(place("v")).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&value[..]));
}
