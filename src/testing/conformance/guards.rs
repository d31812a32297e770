//! Claims on markers: which keys are being written.

use super::harness::{ENTITY_HASH, Harness, KEY, LANE, LONG, Probe, eventually, place, value};
use crate::coherence::Kind;
use crate::store::{Guarded, LeaseReply, LeaseRequest, LeaseState, Markers, Place, Put};
use bytes::Bytes;
use std::time::Duration;

const OTHER: Place<'static> = place(b"user/2", 0x52);
/// Longer than a step takes, and short enough to be waited for.
const SHORT: Duration = Duration::from_millis(30);

fn leave(guard: u64, ttl: Duration) -> Markers {
    Markers {
        leave: Some((guard, ttl)),
        ..Markers::default()
    }
}

fn lift(guard: u64) -> Markers {
    Markers {
        lift: Some(guard),
        ..Markers::default()
    }
}

fn at_least(version: u64, life: Duration) -> Markers {
    Markers {
        minimum: Some((version, life)),
        ..Markers::default()
    }
}

impl Probe<'_> {
    async fn guard(&self, places: &[Place<'_>], markers: Markers) -> Guarded {
        let keys = places.iter().map(|p| Bytes::copy_from_slice(p.key));
        let keys: Vec<_> = keys.collect();
        let hashes = places.iter().map(|p| p.hash);
        let hashes: Vec<_> = [ENTITY_HASH].into_iter().chain(hashes).collect();
        let (nonce, opening) = (self.names.nonce(), self.opening());
        let guarded = self
            .link
            .guard(LANE, &keys, &hashes, markers, nonce, opening);
        guarded.await.expect("guard")
    }

    /// Asks for leases of three keys in one call.
    async fn ask_many(&self, places: [Place<'_>; 3]) -> [LeaseReply; 3] {
        let asked = places.map(|place| {
            let request = LeaseRequest {
                token: self.names.name(),
                ttl: LONG,
                unusable: None,
                opening: self.opening(),
            };
            (place, request)
        });
        let replies = self.link.lease_many(&asked).await;
        let replies: Vec<_> = replies.into_iter().map(|r| r.expect("lease")).collect();
        replies.try_into().expect("an answer for each")
    }

    async fn state_of(&self, place: Place<'_>) -> LeaseState {
        self.ask(place).await.state
    }
}

/// No lease, and so no fill, from the first marker of a key until the last has gone.
pub async fn nothing_is_leased_while_a_marker_stands(harness: &Harness) {
    let probe = harness.probe().await;
    probe.guard(&[KEY], leave(1, LONG)).await;
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    probe.guard(&[KEY], leave(2, LONG)).await;
    assert_eq!(probe.guard(&[KEY], lift(1)).await.stood, 1);
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    assert_eq!(probe.read(KEY).await.value, None);
    assert_eq!(probe.guard(&[KEY], lift(2)).await.stood, 1);
    probe.put(KEY).await;
}

/// A marker is of the hash: a lease of any name for it is refused, and those of other hashes are not.
pub async fn a_marker_is_beside_no_other_key_and_for_whatever_name_of_its_own(harness: &Harness) {
    let probe = harness.probe().await;
    probe.guard(&[KEY], leave(1, LONG)).await;
    let beside = place(b"user/1%~7", KEY.hash);
    assert_eq!(probe.state_of(beside).await, LeaseState::Guarded);
    probe.put(OTHER).await;
}

/// What stood goes with the step that leaves the marker: values, and leases that could be filled.
pub async fn a_guard_is_logged_as_an_invalidation_and_removes_what_stood(harness: &Harness) {
    let probe = harness.probe().await;
    probe.put(KEY).await;
    let leased = probe.lease(OTHER).await;
    for markers in [leave(1, LONG), lift(1), Markers::default()] {
        let guarded = probe.guard(&[KEY, OTHER], markers).await;
        let entry = probe.log().await.pop().expect("it is logged");
        assert_eq!(
            (entry.seq, entry.kind),
            (guarded.logged.at.seq, Kind::Invalidate)
        );
        assert_eq!(entry.prev, guarded.logged.prev);
        assert_eq!(entry.hashes, [ENTITY_HASH, KEY.hash, OTHER.hash]);
        assert_eq!(probe.read(KEY).await.value, None);
        assert!(!probe.fill(OTHER, leased, &value(leased)).await);
    }
}

/// What is lifted is counted if it stood; what is not there, of another guard, or ended, is not.
pub async fn a_guard_lifts_its_own_markers_alone_and_counts_them(harness: &Harness) {
    let probe = harness.probe().await;
    assert_eq!(probe.guard(&[KEY], lift(1)).await.stood, 0);
    assert_eq!(probe.guard(&[KEY, OTHER], leave(1, LONG)).await.stood, 0);
    assert_eq!(probe.guard(&[KEY, OTHER], lift(2)).await.stood, 0);
    assert_eq!(probe.guard(&[KEY, OTHER], lift(1)).await.stood, 2);
    assert_eq!(probe.guard(&[KEY, OTHER], lift(1)).await.stood, 0);
}

/// A marker that nobody lifts is gone after its time.
pub async fn a_marker_ends_with_its_ttl(harness: &Harness) {
    let probe = harness.probe().await;
    probe.guard(&[KEY], leave(1, SHORT)).await;
    eventually("the marker ends", async || {
        (probe.state_of(KEY).await == LeaseState::Granted).then_some(())
    })
    .await;
    assert_eq!(probe.guard(&[KEY], lift(1)).await.stood, 0);
}

/// The same guard again moves the end of its marker.
pub async fn a_marker_left_again_ends_with_the_later_ttl(harness: &Harness) {
    let probe = harness.probe().await;
    probe.guard(&[KEY], leave(1, SHORT)).await;
    probe.guard(&[KEY], leave(1, LONG)).await;
    probe.guard(&[OTHER], leave(2, SHORT)).await;
    eventually("one that was left at the same time ends", async || {
        (probe.state_of(OTHER).await == LeaseState::Granted).then_some(())
    })
    .await;
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    assert_eq!(probe.guard(&[KEY], lift(1)).await.stood, 1);
    probe.put(KEY).await;
}

/// A marker is not what an invalidation, a put, a clear, a fence or a release removes.
pub async fn no_other_step_lifts_a_marker(harness: &Harness) {
    let probe = harness.probe().await;
    let head = probe.guard(&[KEY], leave(1, LONG)).await.logged.at;
    probe.invalidate(&[KEY]).await;
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    let (nonce, opening) = (harness.nonce(), probe.opening());
    let put = Put {
        version: 7,
        epoch: head.epoch,
        envelope: b"whatever",
        ttl: None,
    };
    let hashes = [ENTITY_HASH, KEY.hash];
    let put = probe.link.put(KEY, put, &hashes, nonce, opening).await;
    put.expect("put");
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    assert_eq!(probe.read(KEY).await.value, None, "nothing was put");
    probe.clear().await;
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    probe.release(KEY, 1).await;
    probe.fence(head.epoch).await;
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    assert_eq!(probe.guard(&[KEY], lift(1)).await.stood, 1);
    probe.put(KEY).await;
}

/// One step may do both, as the end of a write does that is held off.
pub async fn a_guard_that_lifts_may_leave_a_marker_of_another(harness: &Harness) {
    let probe = harness.probe().await;
    probe.guard(&[KEY], leave(1, LONG)).await;
    let both = Markers {
        lift: Some(1),
        leave: Some((0, LONG)),
        ..Markers::default()
    };
    assert_eq!(probe.guard(&[KEY], both).await.stood, 1);
    assert_eq!(probe.state_of(KEY).await, LeaseState::Guarded);
    assert_eq!(probe.guard(&[KEY], lift(0)).await.stood, 1);
    assert_eq!(probe.state_of(KEY).await, LeaseState::Granted);
}

/// Leases of many keys in one call are judged each by its own markers.
pub async fn of_many_keys_each_has_its_own_markers(harness: &Harness) {
    let probe = harness.probe().await;
    let third = place(b"user/3", 0x53);
    probe.guard(&[OTHER], leave(1, LONG)).await;
    let replies = probe.ask_many([KEY, OTHER, third]).await;
    let expected = [
        LeaseState::Granted,
        LeaseState::Guarded,
        LeaseState::Granted,
    ];
    assert_eq!(replies.map(|reply| reply.state), expected);
}

/// What the source has at least is told with every lease of the hash, whatever its name and its state.
pub async fn a_minimum_version_is_told_with_every_lease_of_its_key(harness: &Harness) {
    let probe = harness.probe().await;
    assert_eq!(probe.ask(KEY).await.minimum, None);
    probe.guard(&[KEY], at_least(u64::MAX - 1, LONG)).await;
    let granted = probe.ask(KEY).await;
    assert_eq!(
        (granted.state, granted.minimum),
        (LeaseState::Granted, Some(u64::MAX - 1))
    );
    let held = probe.ask(KEY).await;
    assert_eq!(
        (held.state, held.minimum),
        (LeaseState::Held, Some(u64::MAX - 1))
    );
    let beside = place(b"user/1%~7", KEY.hash);
    assert_eq!(probe.ask(beside).await.minimum, Some(u64::MAX - 1));
    assert_eq!(probe.ask(OTHER).await.minimum, None);
    probe.guard(&[KEY], leave(1, LONG)).await;
    let guarded = probe.ask(KEY).await;
    assert_eq!(
        (guarded.state, guarded.minimum),
        (LeaseState::Guarded, Some(u64::MAX - 1))
    );
}

/// The step that leaves a minimum removes what stood, values and leases that could be filled: whatever is
/// filled later was leased with the minimum.
pub async fn a_fill_that_was_leased_before_a_minimum_version_is_refused(harness: &Harness) {
    let probe = harness.probe().await;
    probe.put(KEY).await;
    let leased = probe.lease(OTHER).await;
    let guarded = probe.guard(&[KEY, OTHER], at_least(7, LONG)).await;
    assert_eq!(guarded.stood, 0);
    let entry = probe.log().await.pop().expect("it is logged");
    assert_eq!(entry.seq, guarded.logged.at.seq);
    assert_eq!(entry.hashes, [ENTITY_HASH, KEY.hash, OTHER.hash]);
    assert_eq!(probe.read(KEY).await.value, None);
    assert!(!probe.fill(OTHER, leased, &value(leased)).await);
    assert_eq!(probe.ask(OTHER).await.minimum, Some(7));
}

/// Late and repeated ones do no harm. Halves of the numbers are told apart as the numbers are.
pub async fn of_two_minimum_versions_the_higher_counts(harness: &Harness) {
    let probe = harness.probe().await;
    for (left, stands) in [
        (5, 5),
        (4, 5),
        (1 << 32, 1 << 32),
        (u64::from(u32::MAX), 1 << 32),
        ((1 << 32) + 1, (1 << 32) + 1),
        (1 << 63, 1 << 63),
    ] {
        probe.guard(&[KEY], at_least(left, LONG)).await;
        assert_eq!(probe.ask(KEY).await.minimum, Some(stands), "{left}");
    }
}

/// A minimum goes by its time alone: nothing lifts it before, and then it is forgotten.
pub async fn a_minimum_version_ends_with_its_time_and_no_sooner(harness: &Harness) {
    let probe = harness.probe().await;
    let at = probe.guard(&[KEY], at_least(7, LONG)).await.logged.at;
    probe.guard(&[OTHER], at_least(9, SHORT)).await;
    probe.guard(&[KEY], lift(1)).await;
    probe.invalidate(&[KEY]).await;
    probe.clear().await;
    probe.fence(at.epoch).await;
    eventually("the short one ends", async || {
        probe.ask(OTHER).await.minimum.is_none().then_some(())
    })
    .await;
    assert_eq!(probe.ask(KEY).await.minimum, Some(7));
    probe.guard(&[OTHER], at_least(3, LONG)).await;
    assert_eq!(
        probe.ask(OTHER).await.minimum,
        Some(3),
        "what ended is over"
    );
}

/// Leases of many keys in one call are told each its own.
pub async fn of_many_keys_each_has_its_own_minimum_version(harness: &Harness) {
    let probe = harness.probe().await;
    let third = place(b"user/3", 0x53);
    probe.guard(&[OTHER], at_least(2, LONG)).await;
    probe.guard(&[third], at_least(3, LONG)).await;
    let replies = probe.ask_many([KEY, OTHER, third]).await;
    assert_eq!(replies.map(|reply| reply.minimum), [None, Some(2), Some(3)]);
}
