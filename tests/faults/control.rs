//! A check that never fails proves nothing: with a protection switched off, the same faults must turn
//! the same checks red.

use crate::fleet::{Fleet, Plan};
use crate::history::Violation;
use tidings::coherence::{Mechanism, Mechanisms};
use tidings::testing::{Direction, Fault, MessageFault, RedisServer};

const TRIES: usize = 5;

async fn without(mechanism: Mechanism) -> Fleet {
    let plan = Plan {
        mechanisms: Mechanisms::default().without(mechanism),
        ..Plan::default()
    };
    let fleet = Fleet::on(RedisServer::start().unwrap(), plan).await;
    fleet.work(500).await;
    fleet
}

async fn stale_reads(fleet: Fleet) -> usize {
    let bound = fleet.pods[0].health().bound;
    let found = fleet.history().await.violations(bound);
    let stale = |found: &&Violation| matches!(found, Violation::Stale { .. });
    found.iter().filter(stale).count()
}

/// Whether what should be stale happened to be served hangs on what a pod held when it was cut off: on a
/// busy machine perhaps nothing. Then once again.
async fn turns_red(fault: impl AsyncFn() -> usize) {
    for _ in 0..TRIES {
        if fault().await != 0 {
            return;
        }
    }
    panic!("nothing was stale in {TRIES} tries");
}

/// A classic cache over pub/sub: it serves what it has, as long as nobody tells it otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_liveness_a_pod_that_hears_nothing_serves_old_values() {
    turns_red(async || {
        let fleet = without(Mechanism::Liveness).await;
        fleet.messages(MessageFault::DropAll);
        let direction = Direction::Both;
        fleet.pods[0].proxy().set(Fault::Freeze { direction });
        fleet.work(2500).await;
        fleet.pods[0].proxy().set(Fault::None);
        stale_reads(fleet).await
    })
    .await;
}

/// A cache that takes an answer for a proof that it missed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_heads_lost_messages_are_never_noticed() {
    turns_red(async || {
        let fleet = without(Mechanism::PollHeads).await;
        fleet.messages(MessageFault::DropAll);
        fleet.work(2500).await;
        fleet.messages(MessageFault::None);
        stale_reads(fleet).await
    })
    .await;
}

/// The faults of both at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_faults_are_harmless_with_every_protection_on() {
    let fleet = Fleet::start().await;
    fleet.messages(MessageFault::DropAll);
    let direction = Direction::Both;
    fleet.pods[0].proxy().set(Fault::Freeze { direction });
    fleet.work(2500).await;
    fleet.pods[0].proxy().set(Fault::None);
    fleet.work(300).await;
    assert_eq!(stale_reads(fleet).await, 0);
}
