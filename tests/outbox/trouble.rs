//! The database and the store go away and come back.

use crate::bed::{Backing, Bed, Heard, eventually};
use std::sync::Arc;
use tidings::outbox::DeliveryState;
use tidings::store::Memory;
use tidings::testing::{Fault, PostgresServer, Proxy, RedisServer};

/// Guards G11 of `docs/guarantees.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_before_the_database_died_is_delivered_after_it() {
    let mut postgres = PostgresServer::start().unwrap();
    let bed = Bed::on_both(Backing::Memory(Memory::new()), postgres.url());
    let client = bed.set_up().await;
    let (pod, heard) = (bed.pod().await, Heard::default());
    let _on = [1, 2, 3].map(|n| heard.on(&pod.cache, &format!("org:{n}")));
    let delivery = bed.deliver(&pod);
    bed.insert(&client, &["org:1"]).await;
    heard.hears("org:1").await;
    delivery.stop().await;
    bed.insert(&client, &["org:2"]).await;
    postgres.kill();

    let delivery = bed.deliver(&pod);
    eventually("it tries", async || delivery.health().failures > 0).await;
    assert_eq!(delivery.health().state, DeliveryState::Connecting);
    postgres.restart().unwrap();
    heard.hears("org:2").await;

    let before = delivery.health().failures;
    postgres.restart().unwrap();
    bed.insert(&bed.client().await, &["org:3"]).await;
    heard.hears("org:3").await;
    let noticed = async || delivery.health().failures > before;
    eventually("it has noticed", noticed).await;
    assert!(delivery.health().last_failure.is_some());
}

/// Guards G11 of `docs/guarantees.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_wait_for_a_store_that_is_away() {
    let store = Memory::new();
    let bed = Bed::on(Backing::Memory(store.clone()));
    let client = bed.set_up().await;
    let (pod, other) = (bed.pod().await, bed.pod().await);
    assert_eq!(other.name(1).await, "old");
    let delivery = bed.deliver(&pod);
    let delivers = async || delivery.health().state == DeliveryState::Delivering;
    eventually("it delivers", delivers).await;

    store.faults().set_down(true);
    let update = format!("UPDATE {}_users SET name = 'new' WHERE id = 1", bed.table);
    client.batch_execute(&update).await.unwrap();
    bed.insert(&client, &["user:1"]).await;
    let away = async || delivery.health().state == DeliveryState::StoreAway;
    eventually("it stands back", away).await;
    assert_eq!(bed.rows(&client, "true").await, 1, "the row stays");
    assert_eq!(delivery.health().delivered, 0);
    store.faults().set_down(false);
    bed.all_delivered(&client).await;
    other.sees(1, "new").await;
    eventually("it is counted", async || delivery.health().delivered == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_reach_the_store_leaves_the_table_to_one_that_can() {
    let redis = Arc::new(RedisServer::start().unwrap());
    let proxy = Proxy::start(redis.addr()).unwrap();
    let bed = Bed::on(Backing::Redis(redis));
    let client = bed.set_up().await;
    let cut_off = bed.pod_of(|| bed.builder().store_url(proxy.url())).await;
    let first = bed.deliver(&cut_off);
    let delivers = async || first.health().state == DeliveryState::Delivering;
    eventually("the first delivers", delivers).await;
    let pod = bed.pod().await;
    let second = bed.deliver(&pod);
    assert_eq!(pod.name(1).await, "old");

    proxy.set(Fault::Refuse);
    let update = format!("UPDATE {}_users SET name = 'new' WHERE id = 1", bed.table);
    client.batch_execute(&update).await.unwrap();
    bed.insert(&client, &["user:1"]).await;
    pod.sees(1, "new").await;
    bed.all_delivered(&client).await;
    eventually("it is counted", async || second.health().delivered == 1).await;
    assert_eq!(first.health().delivered, 0);
}
