//! Following a room.

use crate::bed::{Account, Bed, Pod, eventually, listed, soon};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tidings::presence::{Event, LeftReason};

fn word(word: &str) -> String {
    word.to_owned()
}

async fn a_watch_starts_with_who_is_there(bed: Bed) {
    let [here, there] = bed.pods().await;
    let _ada = here.room().join("ada", &word("1")).await.unwrap();
    let _bob = there.room().join("bob", &word("2")).await.unwrap();
    for room in [here.room(), there.room(), here.room()] {
        let account = Account::synced(&room).await;
        assert_eq!(account.told, ["+ada", "+bob", "="]);
        assert_eq!(account.members, listed(&room).await);
    }
}

async fn a_watch_of_an_empty_room_is_synced_at_once(bed: Bed) {
    let pod = bed.pod().await;
    let account = Account::synced(&pod.room()).await;
    assert_eq!(account.told, ["="]);
}

async fn a_watch_tells_everything_that_happens(bed: Bed) {
    let [here, there, third] = bed.pods().await;
    let mut accounts = [
        Account::synced(&here.room()).await,
        Account::synced(&there.room()).await,
        Account::synced(&there.room()).await,
    ];
    let ada = third.room().join("ada", &word("1")).await.unwrap();
    let bob = here.room().join("bob", &word("1")).await.unwrap();
    ada.update(&word("2")).await.unwrap();
    ada.leave().await.unwrap();
    let ada = there.room().join("ada", &word("3")).await.unwrap();
    bob.leave().await.unwrap();
    ada.leave().await.unwrap();
    for account in &mut accounts {
        account
            .until("all of it", |account| account.told.len() == 8)
            .await;
        let expected = [
            "=",
            "+ada",
            "+bob",
            "~ada",
            "-ada Left",
            "+ada",
            "-bob Left",
            "-ada Left",
        ];
        assert_eq!(account.told, expected);
    }
}

/// What a pod does not hear, as the beat shows.
async fn lost_events_are_made_up_for_by_the_difference(bed: Bed) {
    let [here, deaf] = bed.pods().await;
    let mut leases = HashMap::new();
    for name in ["ada", "bob", "carol"] {
        leases.insert(name, here.room().join(name, &word("1")).await.unwrap());
    }
    let mut account = Account::of(&deaf.room());
    account.sees(&["ada", "bob", "carol"]).await;
    account.news();
    deaf.wire.deafen(true);
    leases.remove("ada").unwrap().leave().await.unwrap();
    leases["bob"].update(&word("2")).await.unwrap();
    let _dora = here.room().join("dora", &word("1")).await.unwrap();
    let fleeting = here.room().join("fleeting", &word("1")).await.unwrap();
    fleeting.leave().await.unwrap();
    account.sees(&["bob", "carol", "dora"]).await;
    account
        .until("bob's word", |account| account.members["bob"] == "2")
        .await;
    let mut news = account.news();
    news.sort();
    assert_eq!(news, ["+dora", "-ada Missed", "~bob"]);
}

/// A hole is noticed by the number of the next event.
async fn a_hole_between_events_is_healed_at_once(bed: Bed) {
    let [here, deaf] = bed.pods().await;
    let _ada = here.room().join("ada", &word("1")).await.unwrap();
    let mut account = Account::of(&deaf.room());
    account.sees(&["ada"]).await;
    let beats = deaf.wire.calls("beat");
    deaf.wire.deafen(true);
    let _bob = here.room().join("bob", &word("1")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(30)).await;
    deaf.wire.deafen(false);
    let _carol = here.room().join("carol", &word("1")).await.unwrap();
    account.sees(&["ada", "bob", "carol"]).await;
    assert!(
        deaf.wire.calls("beat") <= beats + 2,
        "no need to wait for a heartbeat"
    );
}

async fn a_watch_survives_a_broken_link(bed: Bed) {
    let [here, there] = bed.pods().await;
    let ada = here.room().join("ada", &word("1")).await.unwrap();
    let _bob = here.room().join("bob", &word("1")).await.unwrap();
    let mut account = Account::of(&there.room());
    account.sees(&["ada", "bob"]).await;
    account.news();
    there.wire.cut(true);
    eventually("the link is gone", async || there.wire.links() == 0).await;
    ada.leave().await.unwrap();
    let carol = here.room().join("carol", &word("1")).await.unwrap();
    there.wire.cut(false);
    account.sees(&["bob", "carol"]).await;
    assert_eq!(account.news(), ["-ada Missed", "+carol"]);
    carol.leave().await.unwrap();
    account.sees(&["bob"]).await;
    assert_eq!(account.news(), ["-carol Left"], "and goes on");
}

async fn a_watch_that_begins_without_the_store_waits_for_it(bed: Bed) {
    let [here, there] = bed.pods().await;
    let _ada = here.room().join("ada", &word("1")).await.unwrap();
    there.wire.cut(true);
    eventually("the link is gone", async || there.wire.links() == 0).await;
    let mut account = Account::of(&there.room());
    let early = tokio::time::timeout(Duration::from_millis(50), account.take()).await;
    assert!(early.is_err(), "nothing is known yet");
    there.wire.cut(false);
    account.sees(&["ada"]).await;
}

async fn a_slow_consumer_is_told_the_difference(bed: Bed) {
    let [here, there] = bed.pods().await;
    let room = here.room();
    let gone = room.join("gone", &word("0")).await.unwrap();
    let fickle = room.join("fickle", &word("0")).await.unwrap();
    let mut slow = Account::of(&there.room());
    let mut quick = Account::of(&there.room());
    slow.sees(&["fickle", "gone"]).await;
    quick.sees(&["fickle", "gone"]).await;
    gone.leave().await.unwrap();
    for n in 0..3000 {
        fickle.update(&n.to_string()).await.unwrap();
        if n % 10 == 0 {
            room.join("passing", &word("0"))
                .await
                .unwrap()
                .leave()
                .await
                .unwrap();
        }
    }
    let _new = room.join("new", &word("0")).await.unwrap();
    quick.sees(&["fickle", "new"]).await;
    slow.news();
    slow.sees(&["fickle", "new"]).await;
    slow.until("the last word", |slow| slow.members["fickle"] == "2999")
        .await;
    assert_eq!(slow.members, listed(&room).await);
    assert!(
        slow.told.len() <= 4,
        "only what differs: {:?}",
        slow.told.len()
    );
    assert_eq!(slow.left(LeftReason::Left), 1);
}

async fn a_pod_subscribes_once_and_only_while_somebody_watches(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    let first = Account::synced(&room).await;
    let second = Account::synced(&room).await;
    assert_eq!(pod.wire.calls("watch"), 1);
    drop(first);
    let _ada = other.room().join("ada", &word("1")).await.unwrap();
    let mut second = second;
    second.sees(&["ada"]).await;
    assert_eq!(pod.wire.calls("unwatch"), 0);
    drop(second);
    eventually("it unsubscribes", async || pod.wire.done("unwatch") == 1).await;
    let mut third = Account::of(&room);
    third.sees(&["ada"]).await;
    // Who comes while the subscription ends is told what was known, and then subscribed for.
    eventually("it subscribes again", async || pod.wire.done("watch") == 2).await;
}

async fn who_watches_in_turns_misses_nothing(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let room = pod.room();
    for n in 0..30 {
        let name = format!("m{n}");
        let mut account = Account::of(&room);
        let lease = other.room().join(&name, &word("x")).await.unwrap();
        account.sees(&[&name]).await;
        drop(account);
        lease.leave().await.unwrap();
    }
}

/// Members come and go on two pods; watches begin at any time, hear badly, and end up with the truth.
async fn whatever_happens_a_watch_ends_up_with_the_truth(bed: Bed) {
    let pods: [Pod; 3] = bed.pods().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = Vec::new();
    for (p, pod) in pods.iter().take(2).enumerate() {
        let (room, stop) = (pod.room(), Arc::clone(&stop));
        busy.push(tokio::spawn(async move {
            let mut leases = HashMap::new();
            for n in 0_u32.. {
                if stop.load(SeqCst) {
                    break;
                }
                // Some names are held by both pods.
                let name = format!("m{:03}", n.wrapping_mul(2_654_435_761) >> 23);
                if n % 3 == 2 {
                    leases.remove(&name);
                } else {
                    let lease = room.join(&name, &format!("{p}-{n}")).await.unwrap();
                    leases.insert(name, lease);
                }
            }
            leases
        }));
    }
    let ears = &pods[2];
    let mut accounts = Vec::new();
    for round in 0..20 {
        ears.wire.deafen(round % 4 == 1);
        let mut account = Account::of(&ears.room());
        let listening = tokio::time::timeout(Duration::from_millis(50), async {
            while account.take().await {}
        });
        assert!(listening.await.is_err(), "it goes on");
        accounts.push(account);
    }
    ears.wire.heal();
    stop.store(true, SeqCst);
    let mut leases = Vec::new();
    for busy in busy {
        leases.push(busy.await.unwrap());
    }
    let room = ears.room();
    let mut truth = listed(&room).await;
    for _ in 0..50 {
        // Leaves that are still under way.
        tokio::time::sleep(Duration::from_millis(10)).await;
        truth = listed(&room).await;
    }
    for account in &mut accounts {
        account
            .until("the truth", |account| {
                account.synced && account.members == truth
            })
            .await;
    }
}

async fn a_watch_ends_with_its_cache(bed: Bed) {
    let pod = bed.pod().await;
    let room = pod.room();
    let mut watch = room.watch();
    assert!(matches!(
        soon("synced", watch.next()).await,
        Some(Event::Synced)
    ));
    let closed = tokio::spawn(async move { while watch.next().await.is_some() {} });
    soon("closing", pod.cache.close()).await;
    soon("the stream ends", closed).await.unwrap();
    assert!(
        soon("one that comes too late", room.watch().next())
            .await
            .is_none()
    );
}

on_both_stores!(
    a_watch_starts_with_who_is_there,
    a_watch_of_an_empty_room_is_synced_at_once,
    a_watch_tells_everything_that_happens,
    lost_events_are_made_up_for_by_the_difference,
    a_hole_between_events_is_healed_at_once,
    a_watch_survives_a_broken_link,
    a_watch_that_begins_without_the_store_waits_for_it,
    a_slow_consumer_is_told_the_difference,
    a_pod_subscribes_once_and_only_while_somebody_watches,
    who_watches_in_turns_misses_nothing,
    whatever_happens_a_watch_ends_up_with_the_truth,
    a_watch_ends_with_its_cache,
);
