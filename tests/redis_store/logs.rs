//! Heads, epochs, the log and what is published.

use super::{Admin, LANE, OPENING, OTHER_OPENING, Pod, connect, envelope, place};
use bytes::Bytes;
use tidings::coherence::{Epoch, Head, Kind, Lane, Nonce, Position};
use tidings::store::LeaseState;

const NONE: Nonce = Nonce(0);

#[tokio::test]
async fn touch_opens_an_epoch_on_an_empty_lane_and_tells_everybody() {
    let mut pod = Pod::start().await;
    let heads = pod.touch().await;
    let polled = pod.link.poll().await.unwrap();
    let expected = Head {
        at: Position {
            epoch: OPENING.epoch,
            seq: 1,
        },
        nonce: OPENING.nonce,
        incarnation: polled.incarnation,
        prev_epoch: Epoch(0),
        fork_seq: 0,
        last_pub_ms: heads[0].last_pub_ms,
        fork: false,
        forked_s: 0,
    };
    assert_eq!(heads[0], expected);
    assert!(polled.server_ms - heads[0].last_pub_ms < 60_000);
    assert_eq!(polled.heads, [Some(heads[0]), Some(heads[1])]);
    for lane in [Lane(0), Lane(1)] {
        let hint = pod.hint().await;
        assert_eq!((hint.lane, hint.at()), (lane, expected.at));
        assert_eq!(hint.server_ms, heads[usize::from(lane.0)].last_pub_ms);
        assert_eq!(hint.entry.kind, Kind::Fence);
        assert_eq!((hint.entry.prev, hint.entry.nonce), (NONE, OPENING.nonce));
        let log = pod.link.log_since(lane, 1, 10).await.unwrap();
        assert_eq!(log, [hint.entry]);
    }
}

#[tokio::test]
async fn touch_keeps_a_head_of_this_life_of_the_server() {
    let pod = Pod::open().await;
    let before = pod.head().await.unwrap();
    let (second, _hints) = connect(&pod.server.url()).await.unwrap();
    let heads = second.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
    assert_eq!(heads, [before]);
}

#[tokio::test]
async fn touch_fences_a_head_of_another_life_of_the_server() {
    let mut pod = Pod::open().await;
    pod.invalidate("k", 5).await.unwrap();
    let value = pod.store("k").await;
    let before = pod.head().await.unwrap();
    pod.server.snapshot().unwrap();
    pod.server.restart().unwrap();

    let (link, hints) = connect(&pod.server.url()).await.unwrap();
    (pod.link, pod.hints) = (link, hints);
    assert_eq!(pod.head().await, Some(before));
    let heads = pod.link.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
    let after = heads[0];
    assert_eq!((after.at.epoch, after.at.seq), (OTHER_OPENING.epoch, 3));
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!((after.prev_epoch, after.fork_seq), (before.at.epoch, 2));
    assert!(!after.fork);
    let hint = pod.hint().await;
    assert_eq!((hint.at(), hint.entry.kind), (after.at, Kind::Fence));
    assert_eq!(hint.entry.prev, before.nonce);
    // The old value is still there, and counts for nothing.
    let found = pod.link.read(place("k")).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&value[..]));
    assert_eq!(pod.lease("k", 2).await.state, LeaseState::Granted);
}

#[tokio::test]
async fn touch_replaces_a_head_that_cannot_be_read() {
    let rubbish: [&[&[u8]]; 3] = [
        &[b"SET", b"{ns:00}h", b"short"],
        &[b"LPUSH", b"{ns:00}h", b"x"],
        &[b"SET", b"{ns:00}h", &[0xFF; 56]],
    ];
    for command in rubbish {
        let pod = Pod::open().await;
        pod.server.run("DEL {ns:00}h");
        let _: redis::Value = pod.server.query(command);
        let heads = pod.link.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
        assert_eq!(
            (heads[0].at.epoch, heads[0].at.seq),
            (OTHER_OPENING.epoch, 1)
        );
        let log = pod.link.log_since(LANE, 0, 10).await.unwrap();
        assert_eq!(log.len(), 1, "the old log is gone: {log:?}");
    }
}

#[tokio::test]
async fn invalidate_removes_logs_and_publishes() {
    let mut pod = Pod::open().await;
    pod.store("k").await;
    let logged = pod.invalidate("k", 0xFFFF_FFFF_FFFF_FFFE).await.unwrap();
    assert_eq!((logged.at.epoch, logged.at.seq), (OPENING.epoch, 2));
    assert_eq!(logged.prev, OPENING.nonce);
    assert_eq!(pod.link.read(place("k")).await.unwrap().value, None);
    let hint = pod.hint().await;
    assert_eq!(hint.at(), logged.at);
    assert_eq!(hint.entry.kind, Kind::Invalidate);
    assert_eq!(hint.entry.nonce, Nonce(0xFFFF_FFFF_FFFF_FFFE));
    assert_eq!(hint.entry.hashes, [place("k").hash]);
    let head = pod.head().await.unwrap();
    assert_eq!((head.at, head.nonce), (logged.at, hint.entry.nonce));
    assert_eq!(pod.link.log_since(LANE, 2, 10).await.unwrap(), [hint.entry]);
}

#[tokio::test]
async fn invalidate_takes_the_most_keys_that_one_entry_may_name() {
    let pod = Pod::open().await;
    let keys: Vec<_> = (0..64).map(|n| Bytes::from(format!("key {n}"))).collect();
    let hashes: Vec<u64> = (0..=64).map(|n| u64::MAX - n).collect();
    let logged = pod
        .link
        .invalidate(LANE, &keys, &hashes, Nonce(1), OPENING)
        .await;
    let seq = logged.unwrap().at.seq;
    let log = pod.link.log_since(LANE, seq, 1).await.unwrap();
    assert_eq!(log[0].hashes, hashes);
}

#[tokio::test]
async fn invalidate_without_keys_only_logs() {
    let pod = Pod::open().await;
    let logged = pod
        .link
        .invalidate(LANE, &[], &[7], Nonce(1), OPENING)
        .await;
    assert_eq!(logged.unwrap().at.seq, 2);
}

#[tokio::test]
async fn after_flushall_an_invalidation_opens_a_new_epoch_behind_it() {
    let mut pod = Pod::open().await;
    pod.server.run("FLUSHALL");
    let logged = pod.invalidate("k", 5).await.unwrap();
    assert_eq!((logged.at.epoch, logged.at.seq), (OTHER_OPENING.epoch, 2));
    assert_eq!(logged.prev, OTHER_OPENING.nonce);
    let kinds = [pod.hint().await.entry.kind, pod.hint().await.entry.kind];
    assert_eq!(kinds, [Kind::Fence, Kind::Invalidate]);
}

#[tokio::test]
async fn clear_raises_the_floor_above_what_is_stored() {
    let mut pod = Pod::open().await;
    pod.store("k").await;
    let logged = pod.clear(5).await.unwrap();
    assert_eq!((logged.at.seq, logged.prev), (2, OPENING.nonce));
    let found = pod.link.read(place("k")).await.unwrap();
    assert_eq!((found.floor, found.value.is_some()), (Some(2), true));
    let hint = pod.hint().await;
    assert_eq!((hint.at(), hint.entry.kind), (logged.at, Kind::Clear));
    assert_eq!(hint.entry.hashes, [0xEE]);
    // What was stored before is below the floor now.
    assert_eq!(pod.lease("k", 2).await.state, LeaseState::Granted);
}

#[tokio::test]
async fn fence_ends_the_expected_epoch_once() {
    let mut pod = Pod::open().await;
    let fenced = pod
        .link
        .fence(LANE, OPENING.epoch, OTHER_OPENING)
        .await
        .unwrap();
    assert_eq!((fenced.at.epoch, fenced.at.seq), (OTHER_OPENING.epoch, 2));
    assert_eq!((fenced.prev_epoch, fenced.fork_seq), (OPENING.epoch, 1));
    assert!(!fenced.fork);
    assert_eq!(pod.hint().await.entry.kind, Kind::Fence);
    let again = pod.link.fence(LANE, OPENING.epoch, OPENING).await.unwrap();
    assert_eq!(again, fenced);
}

#[tokio::test]
async fn the_log_is_read_from_a_number_on_and_up_to_a_limit() {
    let pod = Pod::open().await;
    for nonce in 2..=6 {
        pod.invalidate("k", nonce).await.unwrap();
    }
    let seqs = |from, limit| {
        let entries = pod.link.log_since(LANE, from, limit);
        async {
            entries
                .await
                .unwrap()
                .iter()
                .map(|entry| entry.seq)
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(seqs(3, 10).await, [3, 4, 5, 6]);
    assert_eq!(seqs(3, 2).await, [3, 4]);
    assert_eq!(seqs(7, 10).await, []);
    assert_eq!(seqs(3, 0).await, []);
    assert_eq!(seqs(u64::MAX, usize::MAX).await, []);
    let chain = pod.link.log_since(LANE, 1, 10).await.unwrap();
    for pair in chain.windows(2) {
        assert_eq!(pair[1].prev, pair[0].nonce);
    }
}

#[tokio::test]
async fn what_is_not_ours_in_the_log_is_passed_over() {
    let pod = Pod::open().await;
    pod.server.run("XADD {ns:00}s 2-0 e \u{0}");
    pod.server.run("XADD {ns:00}s 3-0 other field");
    pod.server.run("XADD {ns:00}s 4-7 e x");
    let log = pod.link.log_since(LANE, 0, 10).await.unwrap();
    assert_eq!(log.len(), 1);
    // Its head is behind now: the log belongs to nothing and starts again.
    let logged = pod.invalidate("k", 5).await.unwrap();
    assert_eq!(logged.at.seq, 2);
    let log = pod.link.log_since(LANE, 0, 10).await.unwrap();
    assert_eq!(log.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_log_of_another_type_is_empty_and_replaced() {
    let pod = Pod::open().await;
    pod.server.run("SET {ns:00}s text");
    assert_eq!(pod.link.log_since(LANE, 1, 10).await.unwrap(), []);
    pod.invalidate("k", 5).await.unwrap();
    assert_eq!(pod.link.log_since(LANE, 1, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn sequence_numbers_beyond_fifteen_digits_of_a_float_stay_exact() {
    let pod = Pod::open().await;
    let seq = (1 << 48) - 2;
    pod.lease("j", 1).await; // sets the floor that is raised
    let mut head = pod.head().await.unwrap();
    head.at.seq = seq;
    let _: redis::Value = pod.server.query(&[b"SET", b"{ns:00}h", &head.encode()]);
    let logged = pod.clear(5).await.unwrap();
    assert_eq!(logged.at.seq, seq + 1);
    assert_eq!(
        pod.link.log_since(LANE, seq + 1, 1).await.unwrap()[0].seq,
        seq + 1
    );
    assert_eq!(
        pod.link.read(place("k")).await.unwrap().floor,
        Some(seq + 1)
    );
    assert_eq!(pod.lease("k", 1).await.floor, seq + 1);
}

#[tokio::test]
async fn two_namespaces_share_nothing() {
    let mut pod = Pod::open().await;
    let mut other = super::namespace();
    other.name = "other".to_owned();
    let store = tidings::store::Redis::new(&pod.server.url()).unwrap();
    let (link, _hints) = tidings::store::Store::connect(&store, &other)
        .await
        .unwrap();
    assert_eq!(link.poll().await.unwrap().heads, [None, None]);
    link.touch(&[(LANE, OTHER_OPENING)]).await.unwrap();
    pod.invalidate("k", 5).await.unwrap();
    assert_eq!(pod.hint().await.epoch, OPENING.epoch);
}

#[tokio::test]
async fn an_envelope_of_any_bytes_is_read_back_as_it_was() {
    let pod = Pod::open().await;
    let head = pod.lease("k", 1).await.head;
    let mut value = envelope(head.at.epoch, head.at.seq);
    value.extend(std::iter::repeat_n(b'\n', 1 << 20));
    assert!(pod.fill("k", 1, head.at.epoch, &value).await);
    let found = pod.link.read(place("k")).await.unwrap();
    assert_eq!(found.value.as_deref(), Some(&value[..]));
    assert_eq!((found.head, found.floor), (Some(head), Some(1)));
    assert_eq!(
        pod.lease("k", 2).await.state,
        LeaseState::Present(value.into())
    );
}
