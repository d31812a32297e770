//! How a cache leaves its rooms.

use crate::bed::{Account, Bed, Pod, eventually, soon};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use tidings::StoreErrorKind;
use tidings::presence::PresenceError;
use tokio::runtime::Handle;

fn word(word: &str) -> String {
    word.to_owned()
}

async fn closing_leaves_every_room_at_once(bed: Bed) {
    let [here, there] = bed.pods().await;
    let mut leases = Vec::new();
    let mut accounts = Vec::new();
    for name in ["a", "b", "c"] {
        let room = here.room_called(name);
        leases.push(room.join("ada", &word("1")).await.unwrap());
        leases.push(room.join("bob", &word("1")).await.unwrap());
        leases.push(
            there
                .room_called(name)
                .join("bob", &word("1"))
                .await
                .unwrap(),
        );
        let mut account = Account::of(&there.room_called(name));
        account.sees(&["ada", "bob"]).await;
        account.news();
        accounts.push((name, account));
    }
    soon("closing", here.cache.close()).await;
    for (name, account) in &mut accounts {
        assert_eq!(
            there.room_called(name).count().await.unwrap(),
            1,
            "when it returns"
        );
        account.sees(&["bob"]).await;
        assert_eq!(account.news(), ["-ada Left"]);
    }
}

async fn after_close_every_call_says_so(bed: Bed) {
    let pod = bed.pod().await;
    let room = pod.room();
    let leases = [
        room.join("ada", &word("1")).await.unwrap(),
        room.join("bob", &word("1")).await.unwrap(),
    ];
    soon("closing", pod.cache.close()).await;
    soon("closing again", pod.cache.close()).await;
    let [ada, bob] = leases;
    let joined = room.join("carol", &word("1")).await;
    assert!(matches!(joined, Err(PresenceError::Closed)), "{joined:?}");
    let updated = ada.update(&word("2")).await;
    assert!(matches!(updated, Err(PresenceError::Closed)), "{updated:?}");
    let kinds = [
        ada.leave().await.unwrap_err().kind(),
        room.count().await.unwrap_err().kind(),
        room.get("ada").await.map(|_| ()).unwrap_err().kind(),
        room.list().await.map(|_| ()).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [StoreErrorKind::Closed; 4]);
    drop(bob);
    let late = pod.cache.presence::<()>("another").build().unwrap();
    assert!(late.watch().next().await.is_none());
    assert!(matches!(
        late.join("ada", &()).await,
        Err(PresenceError::Closed)
    ));
}

/// Runs `end` on a pod that is in rooms and watches some; then nothing of it may be left.
async fn nothing_is_left(bed: &Bed, end: impl AsyncFnOnce(Pod)) {
    let other = bed.pod().await;
    let seen = other.room();
    let tasks = Handle::current().metrics().num_alive_tasks();
    let pod = bed.pod().await;
    let wire = pod.wire.clone();
    let room = pod.room();
    let leases = [
        room.join("ada", &word("1")).await.unwrap(),
        pod.room_called("b").join("ada", &word("1")).await.unwrap(),
    ];
    let account = Account::synced(&room).await;
    drop((leases, account, room));
    end(pod).await;
    eventually("no link is left", async || wire.links() == 0).await;
    eventually("no task is left", async || {
        Handle::current().metrics().num_alive_tasks() <= tasks
    })
    .await;
    eventually("nobody is left", async || seen.count().await.unwrap() == 0).await;
}

async fn nothing_is_left_after_close(bed: Bed) {
    let mut kept = None;
    nothing_is_left(&bed, async |pod| {
        soon("closing", pod.cache.close()).await;
        kept = Some(pod);
    })
    .await;
}

async fn nothing_is_left_after_the_last_handle_is_dropped(bed: Bed) {
    nothing_is_left(&bed, async |pod| drop(pod)).await;
}

async fn dropping_everything_at_once_leaves_too(bed: Bed) {
    let [pod, other] = bed.pods().await;
    let lease = pod.room().join("ada", &word("1")).await.unwrap();
    let mut account = Account::of(&other.room());
    account.sees(&["ada"]).await;
    drop((pod, lease));
    account.sees(&[]).await;
    assert_eq!(account.news(), ["+ada", "=", "-ada Left"]);
}

on_both_stores!(
    closing_leaves_every_room_at_once,
    after_close_every_call_says_so,
    nothing_is_left_after_close,
    nothing_is_left_after_the_last_handle_is_dropped,
    dropping_everything_at_once_leaves_too,
);

/// 1. somebody looks at all rooms, and takes hold of one that only its handle keeps;
/// 2. the handle is dropped: the one who looks has the last hold of the room now;
/// 3. it lets go of it, and must not wait for itself.
#[tokio::test]
async fn rooms_may_go_while_they_are_looked_at() {
    let pod = Bed::memory().pod().await;
    let (cache, looking) = (pod.cache.clone(), pod.cache.clone());
    let (gone, looked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    // Threads of their own: what waits for itself keeps no runtime from its end.
    let (comes_and_goes, runtime) = (Arc::clone(&gone), Handle::current());
    thread::spawn(move || {
        let _inside = runtime.enter();
        for _ in 0..200_000 {
            drop(cache.presence::<u8>("room").build().unwrap());
        }
        comes_and_goes.store(true, SeqCst);
    });
    let (until, looks) = (Arc::clone(&gone), Arc::clone(&looked));
    thread::spawn(move || {
        while !until.load(SeqCst) {
            assert_eq!(looking.stats().presence.rooms, 0);
        }
        looks.store(true, SeqCst);
    });
    eventually("rooms come and go", async || gone.load(SeqCst)).await;
    eventually("the last look", async || looked.load(SeqCst)).await;
}
