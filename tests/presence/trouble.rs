//! A store that is away, slow, or answers in vain.

use crate::bed::{Account, Bed, Pod, TTL, eventually, names, nobody_comes_or_goes};
use tidings::StoreErrorKind;
use tidings::presence::{LeftReason, PresenceError};
use tidings::store::Memory;

fn word(word: &str) -> String {
    word.to_owned()
}

fn kind(error: &PresenceError) -> StoreErrorKind {
    match error {
        PresenceError::Store(error) => error.kind(),
        other => panic!("not of the store: {other:?}"),
    }
}

async fn is_cut(pod: &Pod) {
    pod.wire.cut(true);
    eventually("the link is gone", async || pod.wire.links() == 0).await;
}

async fn without_the_store_a_join_fails_and_does_nothing(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    is_cut(&pod).await;
    let error = room.join("ada", &word("1")).await.unwrap_err();
    assert_eq!(kind(&error), StoreErrorKind::Unavailable);
    assert!(room.count().await.is_err() && room.list().await.is_err());
    pod.wire.cut(false);
    eventually("the store is back", async || room.count().await.is_ok()).await;
    assert!(names(&other.room()).await.is_empty());
    let _ada = room.join("ada", &word("1")).await.unwrap();
    assert_eq!(names(&other.room()).await, ["ada"]);
}

/// The store does it, but nobody learns of that.
async fn a_join_of_unknown_outcome_leaves_no_ghost(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    let _kept = room.join("kept", &word("1")).await.unwrap();
    let mut account = Account::of(&other.room());
    account.sees(&["kept"]).await;
    pod.wire.hold_answers("change");
    let error = room.join("ghost", &word("1")).await.unwrap_err();
    assert_eq!(kind(&error), StoreErrorKind::Timeout);
    account.sees(&["ghost", "kept"]).await;
    pod.wire.heal();
    account.sees(&["kept"]).await;
    assert_eq!(account.news(), ["+kept", "=", "+ghost", "-ghost Left"]);
    let _again = room.join("ghost", &word("1")).await.unwrap();
    account.sees(&["ghost", "kept"]).await;
}

/// As its first member, so that the hold itself is in question.
async fn a_first_join_of_unknown_outcome_leaves_no_ghost(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    pod.wire.hold_answers("change");
    room.join("ghost", &word("1")).await.unwrap_err();
    pod.wire.heal();
    let seen = other.room();
    eventually("it goes", async || seen.count().await.unwrap() == 0).await;
}

async fn a_lease_that_ends_without_the_store_is_over_when_it_is_back(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    let ada = room.join("ada", &word("1")).await.unwrap();
    let bob = room.join("bob", &word("1")).await.unwrap();
    let _carol = room.join("carol", &word("1")).await.unwrap();
    let mut account = Account::of(&other.room());
    account.sees(&["ada", "bob", "carol"]).await;
    account.news();
    is_cut(&pod).await;
    ada.leave().await.unwrap_err();
    drop(bob);
    pod.wire.cut(false);
    account.sees(&["carol"]).await;
    assert_eq!(account.news(), ["-ada Left", "-bob Left"]);
    nobody_comes_or_goes(&other.room(), 2 * TTL, &["carol"]).await;
}

async fn a_lost_heartbeat_is_made_up_for(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let _ada = pod.room().join("ada", &word("1")).await.unwrap();
    let room = other.room();
    let mut account = Account::of(&room);
    account.sees(&["ada"]).await;
    for _ in 0..3 {
        let beats = pod.wire.calls("beat");
        pod.wire.hang("beat");
        eventually("one hangs", async || pod.wire.calls("beat") > beats).await;
        pod.wire.heal();
        let done = pod.wire.done("beat");
        eventually("the next", async || pod.wire.done("beat") > done).await;
        assert_eq!(names(&room).await, ["ada"]);
    }
    assert_eq!(account.news(), ["+ada", "="]);
}

async fn a_pod_that_was_away_for_longer_brings_its_members_again(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let ada = pod.room().join("ada", &word("1")).await.unwrap();
    let room = other.room();
    let _bob = room.join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&room);
    account.sees(&["ada", "bob"]).await;
    account.news();
    is_cut(&pod).await;
    account.sees(&["bob"]).await;
    pod.wire.cut(false);
    account.sees(&["ada", "bob"]).await;
    assert_eq!(account.news(), ["-ada Expired", "+ada"]);
    ada.update(&word("2")).await.unwrap();
    assert_eq!(room.get("ada").await.unwrap().unwrap().meta.unwrap(), "2");
    assert_eq!(account.left(LeftReason::Missed), 0);
}

on_both_stores!(
    without_the_store_a_join_fails_and_does_nothing,
    a_join_of_unknown_outcome_leaves_no_ghost,
    a_first_join_of_unknown_outcome_leaves_no_ghost,
    a_lease_that_ends_without_the_store_is_over_when_it_is_back,
    a_lost_heartbeat_is_made_up_for,
    a_pod_that_was_away_for_longer_brings_its_members_again,
);

/// Nobody is told that anybody went: the pods bring their members at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forgets_everything_is_told_again_within_a_heartbeat() {
    let store = Memory::new();
    let bed = Bed::on(store.clone());
    let [a, b] = bed.pods().await;
    let _ada = a.room().join("ada", &word("1")).await.unwrap();
    let _bob = b.room().join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&b.room());
    account.sees(&["ada", "bob"]).await;
    store.faults().with_state(|state| state.flush_all());
    assert!(names(&b.room()).await.is_empty());
    let beats = (a.wire.done("beat"), b.wire.done("beat"));
    eventually("they are there", async || {
        names(&b.room()).await == ["ada", "bob"]
    })
    .await;
    let beats = (a.wire.done("beat") - beats.0, b.wire.done("beat") - beats.1);
    assert!(beats.0 <= 2 && beats.1 <= 2, "{beats:?}");
    let _carol = a.room().join("carol", &word("1")).await.unwrap();
    account.sees(&["ada", "bob", "carol"]).await;
    assert_eq!(account.news(), ["+ada", "+bob", "=", "+carol"]);
}
