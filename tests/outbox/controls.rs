//! Negative controls: with one protection of the delivery off, something is lost, late, out of order, or
//! stands still. The tests of the other files are the same with it on.

use crate::bed::{Backing, Bed, Heard, Pod, eventually};
use std::time::Duration;
use tidings::outbox::{Delivery, DeliveryState, Outbox, Protection};
use tidings::store::Memory;
use tidings::{Event, Events};

impl Bed {
    fn deliver_without(&self, protection: Protection, pod: &Pod) -> Delivery {
        let outbox = Outbox::builder(&self.table).without(protection);
        outbox.build().unwrap().deliver(&pod.cache, self.config())
    }
}

/// 1. A row is deleted. 2. The store is away. 3. The pod ends.
///
/// With it: `trouble::rows_wait_for_a_store_that_is_away`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_deleted_before_it_is_acknowledged_is_lost_with_its_pod() {
    let store = Memory::new();
    let bed = Bed::on(Backing::Memory(store.clone()));
    let client = bed.set_up().await;
    let (pod, other) = (bed.pod().await, bed.pod().await);
    assert_eq!(other.name(1).await, "old");
    eventually("it is stored", async || other.users.stats().fills == 1).await;
    let delivery = bed.deliver_without(Protection::AckFirst, &pod);
    let delivers = async || delivery.health().state == DeliveryState::Delivering;
    eventually("it delivers", delivers).await;
    store.faults().set_down(true);
    let update = format!("UPDATE {}_users SET name = 'new' WHERE id = 1", bed.table);
    client.batch_execute(&update).await.unwrap();
    bed.insert(&client, &["user:1"]).await;
    bed.all_delivered(&client).await; // so it says
    delivery.stop().await;
    pod.cache.close().await;
    store.faults().set_down(false);

    // Another one delivers, and there is nothing to deliver.
    let (next, heard) = (bed.pod().await, Heard::default());
    let _on = [
        heard.on(&next.cache, "user:1"),
        heard.on(&next.cache, "org:1"),
    ];
    let _delivery = bed.deliver(&next);
    bed.insert(&client, &["org:1"]).await;
    heard.hears("org:1").await;
    assert_eq!(heard.tags(), ["org:1"]);
    let back = async || {
        let health = other.cache.health();
        health.live_lanes == health.lanes
    };
    eventually("the store is back", back).await;
    assert_eq!(other.name(1).await, "old", "and so it stays");
}

/// With it: `order::an_open_transaction_with_a_smaller_id_neither_delays_others_nor_is_passed_over`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_remembers_the_greatest_id_passes_over_what_commits_late() {
    let bed = Bed::memory();
    let (mut one, two) = (bed.set_up().await, bed.client().await);
    let pod = bed.pod().await;
    let _delivery = bed.deliver_without(Protection::AllVisible, &pod);
    let heard = Heard::default();
    let _on = [1, 2, 3].map(|n| heard.on(&pod.cache, &format!("org:{n}")));
    let first = one.transaction().await.unwrap();
    bed.outbox()
        .invalidate_tags(&first, ["org:1"])
        .await
        .unwrap();
    bed.insert(&two, &["org:2"]).await;
    heard.hears("org:2").await;
    first.commit().await.unwrap();
    // Whoever finds this finds the other as well.
    bed.insert(&two, &["org:3"]).await;
    heard.hears("org:3").await;
    let delivered = async || bed.rows(&two, "true").await == 1;
    eventually("what was carried out is deleted", delivered).await;
    assert_eq!(heard.tags(), ["org:2", "org:3"]);
}

/// A row whose notification does not come: written by a program that switches triggers off.
async fn wrote_in_silence(bed: &Bed, delivery: &Delivery) -> i64 {
    let client = bed.client().await;
    let looked = async || delivery.health().waiting == Some(0);
    eventually("its first look is over", looked).await;
    let silent = "SET session_replication_role = replica"; // no trigger runs
    client.batch_execute(silent).await.unwrap();
    bed.insert(&client, &["org:1"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    bed.rows(&client, "true").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_that_only_listens_waits_for_ever_for_what_it_was_not_told() {
    let bed = Bed::memory();
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let delivery = bed.deliver_without(Protection::Poll, &pod);
    assert_eq!(wrote_in_silence(&bed, &delivery).await, 1);
    delivery.stop().await;
    let _delivery = bed.deliver(&pod);
    bed.all_delivered(&client).await;
}

async fn acknowledged(events: &mut Events, name: &str) {
    loop {
        match crate::bed::soon("an event", events.next()).await {
            Some(Event::InvalidationAcknowledged { entity, .. }) if &*entity == name => return,
            Some(_) => {}
            None => panic!("the cache is closed"),
        }
    }
}

/// 1. A pod is in the midst of many rows. 2. A transaction commits. 3. Another pod carries its row out.
///
/// With it: `order::rows_of_one_look_are_carried_out_before_those_of_a_later_commit`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pods_that_deliver_at_once_carry_out_a_later_commit_before_an_earlier_one() {
    let bed = Bed::memory();
    let (mut early, mut client) = (bed.set_up().await, bed.client().await);
    let (pod, other) = (bed.pod().await, bed.pod().await);
    let heard = Heard::default();
    let _on = heard.on(&pod.cache, "first");
    let late = early.transaction().await.unwrap();
    bed.outbox().invalidate_tags(&late, ["last"]).await.unwrap();
    let holding = bed.write_many_and_hold_one(&mut client).await;
    let first = bed.deliver_without(Protection::Lock, &pod);
    let began = async || first.health().waiting == Some(2001);
    eventually("it is in the midst of them", began).await;
    late.commit().await.unwrap();
    let mut events = other.cache.events();
    let second = bed.deliver_without(Protection::Lock, &other);
    acknowledged(&mut events, "last").await;
    assert_eq!(
        heard.all(),
        Vec::<String>::new(),
        "what was committed before"
    );
    assert_eq!(first.health().delivered + second.health().delivered, 0);
    holding.rollback().await.unwrap();
    bed.all_delivered(&early).await;
}

/// With it: `rows::rows_that_name_nothing_are_set_aside_and_block_nobody`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_names_nothing_would_hold_up_all_others() {
    let bed = Bed::memory();
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let delivery = bed.deliver_without(Protection::SetAside, &pod);
    bed.insert(&client, &[":42", "org:1"]).await;
    eventually("it fails again and again", async || {
        delivery.health().failures >= 3
    })
    .await;
    assert_eq!(bed.rows(&client, "refused IS NULL").await, 2);
    delivery.stop().await;
    let _delivery = bed.deliver(&pod);
    bed.all_delivered(&client).await;
    assert_eq!(bed.rows(&client, "refused IS NOT NULL").await, 1);
}
