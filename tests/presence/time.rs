//! Time is the store's. Here it stands still until a test moves it.

use crate::bed::{Account, Bed, Pod, eventually, names};
use crate::wire::Wire;
use std::sync::Arc;
use std::time::Duration;
use tidings::presence::{DEFAULT_TTL, Presence};
use tidings::store::Memory;
use tidings::{Cache, Clock, Millis};

fn stopped() -> (Bed, Clock) {
    let clock = Clock::manual(Millis(1_000_000));
    (Bed::on(Memory::new().with_clock(clock.clone())), clock)
}

fn room(pod: &Pod) -> Presence<String> {
    pod.cache.presence("room").build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_gone_when_its_ttl_is_over_by_the_clock_of_the_store() {
    let (bed, clock) = stopped();
    let [here, there] = bed.pods().await;
    let _ada = room(&here).join("ada", &String::new()).await.unwrap();
    let seen = room(&there);
    here.wire.cut(true);
    eventually("the link is gone", async || here.wire.links() == 0).await;
    clock.advance(DEFAULT_TTL - Duration::from_millis(1));
    assert_eq!(names(&seen).await, ["ada"]);
    assert!(seen.get("ada").await.unwrap().is_some());
    clock.advance(Duration::from_millis(1));
    assert!(seen.get("ada").await.unwrap().is_none());
    assert_eq!(seen.count().await.unwrap(), 0);
    assert!(names(&seen).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_only_watches_is_told_within_one_heartbeat_of_the_end() {
    let (bed, clock) = stopped();
    let [here, there] = bed.pods().await;
    let _ada = room(&here).join("ada", &String::new()).await.unwrap();
    let mut account = Account::of(&room(&there));
    account.sees(&["ada"]).await;
    here.wire.cut(true);
    clock.advance(DEFAULT_TTL);
    let beats = there.wire.done("beat");
    account.sees(&[]).await;
    assert_eq!(account.news(), ["+ada", "=", "-ada Expired"]);
    assert!(there.wire.done("beat") <= beats + 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_heartbeat_is_in_time_if_nobody_has_looked() {
    let (bed, clock) = stopped();
    let [here, there] = bed.pods().await;
    let _ada = room(&here).join("ada", &String::new()).await.unwrap();
    let beats = here.wire.done("beat");
    clock.advance(2 * DEFAULT_TTL);
    eventually("a heartbeat", async || here.wire.done("beat") > beats).await;
    assert_eq!(names(&room(&there)).await, ["ada"]);
    assert_eq!(here.wire.done("change"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_taken_for_dead_comes_back_with_its_members() {
    let (bed, clock) = stopped();
    let [here, there] = bed.pods().await;
    let _ada = room(&here).join("ada", &"word".to_owned()).await.unwrap();
    let _bob = room(&here).join("bob", &String::new()).await.unwrap();
    let seen = room(&there);
    let mut account = Account::of(&seen);
    account.sees(&["ada", "bob"]).await;
    clock.advance(DEFAULT_TTL);
    assert_eq!(seen.count().await.unwrap(), 0);
    account.sees(&[]).await;
    account.sees(&["ada", "bob"]).await;
    assert_eq!(account.members["ada"], "word");
    assert!(
        account
            .news()
            .starts_with(&["+ada".into(), "+bob".into(), "=".into()])
    );
}

#[tokio::test(start_paused = true)]
async fn the_clock_of_a_pod_has_no_say() {
    let bed = Bed::memory();
    let clock = Clock::manual(Millis(5));
    let wire = Wire::new(Arc::clone(&bed.store));
    let cache = Cache::builder(&*bed.namespace)
        .store(wire.clone())
        .clock(clock.clone());
    let cache = cache.build().await.unwrap();
    let pod = Pod { cache, wire };
    let _ada = room(&pod).join("ada", &String::new()).await.unwrap();
    clock.advance(Duration::from_secs(1_000_000));
    let seen = room(&bed.pod().await);
    assert_eq!(names(&seen).await, ["ada"]);
}
