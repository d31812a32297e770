//! Replicas that follow their primary no more, while whoever reads them follows it no more either.
//!
//! What tells them apart is time, so it is the test's. `tests/replica_reads.rs` has real replicas.

use crate::bed::{Numbers, Pod};
use crate::lab::{Lab, MS};
use std::time::Duration;
use tidings::Origin;

/// Beyond the bound.
const OVER: Duration = Duration::from_millis(1010);

/// A pod whose lanes have just been confirmed for the last time, a replica of that moment, and an
/// invalidation that neither has heard of.
async fn cut_off_together(lab: &Lab) -> (Pod, Numbers) {
    let (pod, other) = (lab.pod().await, lab.pod().await);
    let numbers = pod.numbers(&lab.source);
    numbers.get(&1).await.unwrap();
    pod.done("fill", 1).await;
    let place = pod.wire.last_place();
    let found = lab.bed.hand().await.found(&place).await;
    pod.wire.stand_still(&place, found);
    lab.pass(10 * MS, &[&pod, &other]).await;
    pod.wire.deafen(true);
    pod.wire.silence(true);
    lab.source.commit(1, 1);
    other.numbers(&lab.source).invalidate(&1).await.unwrap();
    numbers.local().clear();
    (pod, numbers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_believed_while_its_lane_is_live_and_not_a_moment_longer() {
    let lab = Lab::new();
    let (pod, numbers) = cut_off_together(&lab).await;
    lab.clock.advance(900 * MS);
    let served = numbers.get_with(&1).await.unwrap();
    assert_eq!((*served.value, served.origin), (0, Origin::Store));
    assert_eq!(pod.wire.done("read_replica"), 1);
    numbers.local().clear();
    lab.clock.advance(OVER - 900 * MS);
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}

/// It is young, and yet as old as what the replica was compared with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_answered_is_kept_no_longer_than_its_lane_was_confirmed() {
    let lab = Lab::new();
    let (_pod, numbers) = cut_off_together(&lab).await;
    lab.clock.advance(900 * MS);
    assert_eq!(*numbers.get(&1).await.unwrap(), 0);
    assert_eq!(numbers.peek(&1).as_deref(), Some(&0), "it is kept");
    lab.clock.advance(OVER - 900 * MS);
    assert_eq!(numbers.peek(&1), None);
    assert_eq!(*numbers.get(&1).await.unwrap(), 1);
}
