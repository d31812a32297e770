//! Claims on heads and logs.

use super::harness::{Harness, KEY, LANE, place};
use crate::coherence::{Epoch, Kind, Lane, LogEntry, Nonce};

/// A lane without a head gets one, in the epoch that was offered, with a log that begins there.
pub async fn touch_opens_an_epoch_where_there_is_none(harness: &Harness) {
    let probe = harness.probe().await;
    let opening = harness.opening();
    let heads = probe.link.touch(&[(LANE, opening)]).await.expect("touch");
    let [head] = heads[..] else {
        panic!("one lane, one head: {heads:?}");
    };
    assert_eq!((head.at.epoch, head.at.seq), (opening.epoch, 1));
    assert_eq!((head.nonce, head.fork), (opening.nonce, false));
    let first = LogEntry {
        seq: 1,
        kind: Kind::Fence,
        prev: Nonce(0),
        nonce: opening.nonce,
        hashes: vec![],
    };
    assert_eq!(probe.log().await, [first]);
}

/// A lane whose head is of this life of the server is left as it is.
pub async fn touch_keeps_what_stands(harness: &Harness) {
    let probe = harness.probe().await;
    let opened = probe.touch(LANE).await;
    probe.invalidate(&[KEY]).await;
    let kept = probe.touch(LANE).await;
    assert_eq!(kept.at.epoch, opened.at.epoch);
    assert_eq!(kept.at.seq, 2);
    assert_eq!(probe.log().await.len(), 2);
}

/// The heads of a touch stand in the order of its lanes.
pub async fn touch_answers_in_the_order_asked(harness: &Harness) {
    let probe = harness.probe().await;
    let lanes = [3, 0, 2].map(|lane| (Lane(lane), harness.opening()));
    let heads = probe.link.touch(&lanes).await.expect("touch");
    let epochs: Vec<_> = heads.iter().map(|head| head.at.epoch).collect();
    assert_eq!(epochs, lanes.map(|(_, opening)| opening.epoch));
    assert_eq!(probe.link.touch(&[]).await.expect("touch"), []);
}

/// An invalidation needs no touch before it.
pub async fn an_invalidation_of_an_empty_lane_opens_an_epoch(harness: &Harness) {
    let probe = harness.probe().await;
    let (nonce, opening) = (harness.nonce(), harness.opening());
    let call = probe.link.invalidate(LANE, &[], &[7], nonce, opening);
    let logged = call.await.expect("invalidate");
    assert_eq!((logged.at.epoch, logged.at.seq), (opening.epoch, 2));
    assert_eq!(logged.prev, opening.nonce);
    let kinds: Vec<_> = probe.log().await.iter().map(|e| (e.seq, e.kind)).collect();
    assert_eq!(kinds, [(1, Kind::Fence), (2, Kind::Invalidate)]);
}

/// Every entry names the nonce of the one before it, whatever its kind, and the head names the last.
pub async fn entries_chain_by_nonce_without_holes(harness: &Harness) {
    let probe = harness.probe().await;
    let head = probe.touch(LANE).await;
    let invalidated = probe.invalidate(&[KEY]).await;
    let cleared = probe.clear().await;
    probe.fence(head.at.epoch).await;
    let last = probe.invalidate(&[KEY]).await;
    let log = probe.log().await;
    assert_chain(&log);
    assert_eq!(log.len(), 5);
    assert_eq!(
        (log[1].seq, log[1].prev),
        (invalidated.at.seq, invalidated.prev)
    );
    assert_eq!((log[2].seq, log[2].prev), (cleared.at.seq, cleared.prev));
    let head = probe.touch(LANE).await;
    assert_eq!((head.at, head.nonce), (last.at, log[4].nonce));
}

/// Two pods that invalidate at once get different positions of one chain.
pub async fn concurrent_invalidations_of_two_links_make_one_chain(harness: &Harness) {
    const EACH: u64 = 25;
    let probes = [harness.probe().await, harness.probe().await];
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..2 * EACH {
        let link = probes[(number % 2) as usize].link.clone();
        let (nonce, opening) = (harness.nonce(), harness.opening());
        calls.spawn(async move {
            let call = link.invalidate(LANE, &[], std::slice::from_ref(&number), nonce, opening);
            (nonce, call.await.expect("invalidate"))
        });
    }
    let calls = calls.join_all().await;
    let log = probes[0].log().await;
    assert_chain(&log);
    assert_eq!(log.len() as u64, 2 * EACH + 1);
    for (nonce, logged) in calls {
        let entry = &log[logged.at.seq as usize - 1];
        assert_eq!((entry.nonce, entry.prev), (nonce, logged.prev));
    }
}

fn assert_chain(log: &[LogEntry]) {
    assert_eq!(log.first().map(|e| (e.seq, e.prev)), Some((1, Nonce(0))));
    for pair in log.windows(2) {
        assert_eq!(pair[1].seq, pair[0].seq + 1, "{log:?}");
        assert_eq!(pair[1].prev, pair[0].nonce, "{log:?}");
    }
}

/// The log is read from the number asked, that one included, in order, and no further than asked.
pub async fn log_since_starts_at_the_number_asked_and_keeps_the_limit(harness: &Harness) {
    let probe = harness.probe().await;
    for _ in 0..5 {
        probe.invalidate(&[KEY]).await;
    }
    let seqs = async |lane, from, limit| {
        let log = probe.link.log_since(lane, from, limit).await;
        let log = log.expect("log_since");
        log.iter().map(|entry| entry.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(LANE, 3, 100).await, [3, 4, 5, 6]);
    assert_eq!(seqs(LANE, 3, 2).await, [3, 4]);
    assert!(seqs(LANE, 7, 100).await.is_empty());
    assert!(seqs(Lane(0), 0, 100).await.is_empty());
}

/// A fence changes the epoch, goes on counting, and continues nothing.
pub async fn a_fence_opens_an_epoch_that_continues_nothing(harness: &Harness) {
    let probe = harness.probe().await;
    let old = probe.touch(LANE).await;
    let opening = harness.opening();
    let call = probe.link.fence(LANE, old.at.epoch, opening);
    let new = call.await.expect("fence");
    assert_eq!((new.at.epoch, new.at.seq), (opening.epoch, old.at.seq + 1));
    assert_eq!((new.prev_epoch, new.fork_seq), (old.at.epoch, old.at.seq));
    assert_eq!((new.nonce, new.fork), (opening.nonce, false));
    assert_eq!(probe.touch(LANE).await, new);
    assert_eq!(probe.log().await.last().map(|e| e.kind), Some(Kind::Fence));
}

/// Of two pods that want to leave the same epoch only the first opens one.
pub async fn a_fence_that_expects_another_epoch_changes_nothing(harness: &Harness) {
    let probe = harness.probe().await;
    let head = probe.touch(LANE).await;
    assert_eq!(probe.fence(Epoch(!head.at.epoch.0)).await, head);
    assert_eq!(probe.touch(LANE).await, head);
}

/// A poll gives one answer per lane, and the life of the server that answered.
pub async fn a_poll_gives_every_head_in_order_and_none_where_there_is_none(harness: &Harness) {
    let probe = harness.probe().await;
    let empty = probe.link.poll().await.expect("poll");
    let lanes = usize::from(harness.namespace().lanes);
    assert_eq!(empty.heads, vec![None; lanes]);
    assert!(empty.server_ms > 0, "a server has a clock");

    let head = probe.touch(Lane(2)).await;
    let polled = probe.link.poll().await.expect("poll");
    let mut expected = vec![None; lanes];
    expected[2] = Some(head);
    assert_eq!(polled.heads, expected);
    assert_eq!(polled.incarnation, empty.incarnation, "the same life");
    assert_eq!(polled.silent, [], "all of the store answered");
    // Whatever looks at the clock of one place sees the same kind of number.
    assert!(head.last_pub_ms > 0, "a server has a clock");

    let logged = probe.invalidate(&[place(b"k", 1)]).await;
    let polled = probe.link.poll().await.expect("poll");
    assert_eq!(polled.heads[1].map(|head| head.at), Some(logged.at));
}
