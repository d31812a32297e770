//! Joining, updating, leaving.

use crate::bed::{Account, Bed, TTL, eventually, listed, names, nobody_comes_or_goes, soon};
use std::time::Instant;

fn word(word: &str) -> String {
    word.to_owned()
}

async fn a_member_stays_while_its_lease_lives(bed: Bed) {
    let [here, there] = bed.pods().await;
    let _lease = here.room().join("ada", &word("x")).await.unwrap();
    let room = there.room();
    let mut account = Account::of(&room);
    account.sees(&["ada"]).await;
    nobody_comes_or_goes(&room, 3 * TTL, &["ada"]).await;
    assert_eq!(account.news(), ["+ada", "="]);
}

async fn a_dropped_lease_leaves_at_once(bed: Bed) {
    let [here, there] = bed.pods().await;
    let lease = here.room().join("ada", &word("x")).await.unwrap();
    let mut account = Account::of(&there.room());
    account.sees(&["ada"]).await;
    let began = Instant::now();
    drop(lease);
    account.sees(&[]).await;
    assert_eq!(account.news(), ["+ada", "=", "-ada Left"], "not by its TTL");
    assert!(began.elapsed() < TTL || here.wire.done("change") == 2);
}

async fn who_has_left_is_gone_when_the_call_returns(bed: Bed) {
    let [here, there] = bed.pods().await;
    for _ in 0..20 {
        let lease = here.room().join("ada", &word("x")).await.unwrap();
        assert_eq!(there.room().count().await.unwrap(), 1);
        lease.leave().await.unwrap();
        assert_eq!(there.room().count().await.unwrap(), 0);
    }
}

async fn an_update_is_seen_by_every_pod(bed: Bed) {
    let [here, there] = bed.pods().await;
    let lease = here.room().join("ada", &word("1")).await.unwrap();
    let room = there.room();
    let mut account = Account::synced(&room).await;
    lease.update(&word("2")).await.unwrap();
    assert_eq!(room.get("ada").await.unwrap().unwrap().meta.unwrap(), "2");
    account
        .until("the update", |account| account.members["ada"] == "2")
        .await;
    assert_eq!(account.news(), ["+ada", "=", "~ada"]);
}

async fn a_member_of_two_pods_counts_once_and_leaves_with_the_last(bed: Bed) {
    let [a, b, c] = bed.pods().await;
    let room = c.room();
    let mut account = Account::synced(&room).await;
    let first = a.room().join("ada", &word("x")).await.unwrap();
    let second = b.room().join("ada", &word("x")).await.unwrap();
    assert_eq!(room.count().await.unwrap(), 1);
    first.leave().await.unwrap();
    assert_eq!(names(&room).await, ["ada"]);
    second.leave().await.unwrap();
    assert_eq!(room.count().await.unwrap(), 0);
    account.sees(&[]).await;
    account
        .until("all of it", |account| account.told.len() == 3)
        .await;
    assert_eq!(account.news(), ["=", "+ada", "-ada Left"]);
}

async fn a_member_of_two_tabs_counts_once_and_leaves_with_the_last(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    let tabs = [
        room.join("ada", &word("1")).await.unwrap(),
        room.join("ada", &word("2")).await.unwrap(),
        room.join("ada", &word("3")).await.unwrap(),
    ];
    let seen = other.room();
    for (left, tab) in tabs.into_iter().enumerate() {
        assert_eq!(
            listed(&seen).await,
            [(word("ada"), word("3"))].into(),
            "{left} left"
        );
        tab.leave().await.unwrap();
    }
    assert_eq!(seen.count().await.unwrap(), 0);
}

async fn what_was_said_last_is_what_everybody_sees(bed: Bed) {
    let [a, b] = bed.pods().await;
    let (on_a, on_b) = (a.room(), b.room());
    let first = on_a.join("ada", &word("1")).await.unwrap();
    let second = on_b.join("ada", &word("2")).await.unwrap();
    let seen = async || on_a.get("ada").await.unwrap().unwrap().meta.unwrap();
    assert_eq!(seen().await, "2");
    first.update(&word("3")).await.unwrap();
    assert_eq!(seen().await, "3");
    first.leave().await.unwrap();
    assert_eq!(seen().await, "3", "a lease that ends takes nothing back");
    second.update(&word("4")).await.unwrap();
    assert_eq!(seen().await, "4");
}

async fn many_join_in_few_round_trips(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let metas: Vec<_> = (0..1000).map(|n| (format!("m{n:04}"), word("x"))).collect();
    let metas = metas.iter().map(|(name, meta)| (&**name, meta));
    let leases = pod.room().join_many(metas).await.unwrap();
    let in_order = leases
        .iter()
        .enumerate()
        .all(|(n, lease)| lease.member() == format!("m{n:04}"));
    assert!(in_order);
    assert_eq!(pod.wire.calls("change"), 16);
    let room = other.room();
    assert_eq!(room.count().await.unwrap(), 1000);
    let mut account = Account::synced(&room).await;
    drop(leases);
    account.sees(&[]).await;
    let leaves = pod.wire.calls("change") - 16;
    assert!(leaves < 500, "leaves go together: {leaves}");
}

async fn joins_at_the_same_time_share_round_trips(bed: Bed) {
    let pod = bed.pod().await;
    let room = pod.room();
    let joins = (0..500).map(|n| {
        let room = room.clone();
        tokio::spawn(async move { room.join(&format!("m{n}"), &word("x")).await.unwrap() })
    });
    let mut leases = Vec::new();
    for join in joins.collect::<Vec<_>>() {
        leases.push(join.await.unwrap());
    }
    assert_eq!(room.count().await.unwrap(), 500);
    assert!(
        pod.wire.calls("change") < 400,
        "{}",
        pod.wire.calls("change")
    );
}

async fn a_join_that_nobody_waits_for_leaves_again(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    let kept = room.join("kept", &word("x")).await.unwrap();
    for wait in 0..50 {
        let ada = word("x");
        let mut join = Box::pin(room.join("ada", &ada));
        for _ in 0..wait {
            tokio::select! {
                biased;
                _ = &mut join => break,
                () = tokio::task::yield_now() => {}
            }
        }
        drop(join);
    }
    let seen = other.room();
    let update = async { kept.update(&word("y")).await };
    soon("the queue is served", update).await.unwrap();
    eventually("it left again", async || names(&seen).await == ["kept"]).await;
}

async fn a_lease_keeps_its_cache_going(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let lease = pod.room().join("ada", &word("x")).await.unwrap();
    let wire = pod.wire.clone();
    drop(pod);
    let room = other.room();
    nobody_comes_or_goes(&room, 2 * TTL, &["ada"]).await;
    drop(lease);
    eventually("its cache has ended", async || wire.links() == 0).await;
    eventually("it has left", async || room.count().await.unwrap() == 0).await;
}

async fn rooms_and_namespaces_do_not_mix(bed: Bed) {
    let pod = bed.pod().await;
    let mut stranger = Bed::on(crate::wire::Wire::new(bed.store.clone()));
    stranger.namespace = format!("{}x", bed.namespace);
    let stranger = stranger.pod().await;
    let _lease = pod.room_called("a").join("ada", &word("x")).await.unwrap();
    assert_eq!(pod.room_called("b").count().await.unwrap(), 0);
    assert_eq!(stranger.room_called("a").count().await.unwrap(), 0);
}

on_both_stores!(
    a_member_stays_while_its_lease_lives,
    a_dropped_lease_leaves_at_once,
    who_has_left_is_gone_when_the_call_returns,
    an_update_is_seen_by_every_pod,
    a_member_of_two_pods_counts_once_and_leaves_with_the_last,
    a_member_of_two_tabs_counts_once_and_leaves_with_the_last,
    what_was_said_last_is_what_everybody_sees,
    many_join_in_few_round_trips,
    joins_at_the_same_time_share_round_trips,
    a_join_that_nobody_waits_for_leaves_again,
    a_lease_keeps_its_cache_going,
    rooms_and_namespaces_do_not_mix,
);
