//! What is committed is invalidated, what is not is not; and who does it may go.

use crate::bed::{Bed, Heard, eventually, soon};
use tidings::Cache;
use tidings::outbox::DeliveryState;

on_both_stores! {
    a_transaction_that_commits_invalidates_in_every_pod,
    a_transaction_that_is_rolled_back_invalidates_nothing,
    one_pod_delivers_and_another_takes_over_when_it_goes,
    a_delivery_that_is_stopped_has_ended_what_it_began,
    ten_thousand_rows_are_all_delivered,
    what_was_acknowledged_and_not_deleted_is_delivered_again,
}

/// Guards G11 of `docs/guarantees.md`.
async fn a_transaction_that_commits_invalidates_in_every_pod(bed: Bed) {
    let mut client = bed.set_up().await;
    let (a, b) = (bed.pod().await, bed.pod().await);
    let delivery = bed.deliver(&a);
    assert_eq!(
        (a.name(1).await, b.name(1).await),
        ("old".into(), "old".into())
    );

    let transaction = client.transaction().await.unwrap();
    bed.rename(&transaction, &b.users, 1).await;
    transaction.commit().await.unwrap();
    a.sees(1, "new").await;
    b.sees(1, "new").await;
    bed.all_delivered(&client).await;
    eventually("it is counted", async || delivery.health().delivered == 1).await;
}

/// Guards G11 of `docs/guarantees.md`.
async fn a_transaction_that_is_rolled_back_invalidates_nothing(bed: Bed) {
    let mut client = bed.set_up().await;
    let pod = bed.pod().await;
    let delivery = bed.deliver(&pod);
    let heard = Heard::default();
    let _on = [
        heard.on(&pod.cache, "user:1"),
        heard.on(&pod.cache, "user:2"),
    ];
    assert_eq!(pod.name(1).await, "old");
    assert_eq!(pod.name(2).await, "old");

    let transaction = client.transaction().await.unwrap();
    bed.rename(&transaction, &pod.users, 1).await;
    transaction.rollback().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    bed.rename(&transaction, &pod.users, 2).await;
    transaction.commit().await.unwrap();
    pod.sees(2, "new").await;
    eventually("it is delivered", async || delivery.health().delivered == 1).await;
    heard.hears("user:2").await;
    assert_eq!(heard.tags(), ["user:2"]);
    assert_eq!(pod.name(1).await, "old");
}

async fn one_pod_delivers_and_another_takes_over_when_it_goes(bed: Bed) {
    let client = bed.set_up().await;
    let (a, b) = (bed.pod().await, bed.pod().await);
    let first = bed.deliver(&a);
    let delivers = async || first.health().state == DeliveryState::Delivering;
    eventually("the first delivers", delivers).await;
    let second = bed.deliver(&b);
    let waits = async || second.health().state == DeliveryState::Standby;
    eventually("the second stands by", waits).await;

    let heard = Heard::default();
    let _on = [heard.on(&b.cache, "org:1"), heard.on(&b.cache, "org:2")];
    bed.insert(&client, &["org:1"]).await;
    heard.hears("org:1").await;
    drop(first);
    bed.insert(&client, &["org:2"]).await;
    heard.hears("org:2").await;
    let took_over = async || second.health().delivered > 0;
    eventually("the second has delivered", took_over).await;
}

async fn a_delivery_that_is_stopped_has_ended_what_it_began(bed: Bed) {
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    for _ in 0..5 {
        let delivery = bed.deliver(&pod);
        let rows = format!(
            "INSERT INTO {} (tag) SELECT 'org:' || id FROM generate_series(1, 3000) AS id",
            bed.table
        );
        client.batch_execute(&rows).await.unwrap();
        let some = async || delivery.health().delivered > 0;
        eventually("it has begun", some).await;
        soon("stopping", delivery.stop()).await;
        let left = bed.rows(&client, "true").await;
        assert!(
            left == 0 || left % 512 == 3000 % 512,
            "half a piece: {left}"
        );
        let delivery = bed.deliver(&pod);
        bed.all_delivered(&client).await;
        soon("stopping", delivery.stop()).await;
    }
    let closing: Cache = pod.cache.clone();
    let delivery = bed.deliver(&pod);
    closing.close().await;
    let ended = async || delivery.health().state == DeliveryState::Ended;
    eventually("it ends with its cache", ended).await;
}

async fn ten_thousand_rows_are_all_delivered(bed: Bed) {
    let mut client = bed.set_up().await;
    let pod = bed.pod().await;
    for id in 1..=10 {
        assert_eq!(pod.name(id).await, "old");
    }
    let transaction = client.transaction().await.unwrap();
    let update = format!("UPDATE {}_users SET name = 'new'", bed.table);
    transaction.batch_execute(&update).await.unwrap();
    let outbox = bed.outbox();
    outbox
        .invalidate(&transaction, &pod.users, 1..=10_000)
        .await
        .unwrap();
    transaction.commit().await.unwrap();

    let delivery = bed.deliver(&pod);
    bed.all_delivered(&client).await;
    eventually("all are counted", async || {
        delivery.health().delivered == 10_000
    })
    .await;
    for id in 1..=10 {
        pod.sees(id, "new").await;
    }
    assert_eq!(delivery.health().refused, 0);
}

/// 1. A pod has carried a row out.
/// 2. It loses its connection before it can delete it.
/// 3. The row is carried out again, and deleted.
async fn what_was_acknowledged_and_not_deleted_is_delivered_again(bed: Bed) {
    let mut client = bed.set_up().await;
    let pod = bed.pod().await;
    let heard = Heard::default();
    let _on = heard.on(&pod.cache, "org:7");
    bed.insert(&client, &["org:7"]).await;
    let holding = client.transaction().await.unwrap();
    let hold = format!("SELECT FROM {} FOR UPDATE", bed.table);
    assert_eq!(holding.query(&hold, &[]).await.unwrap().len(), 1);

    let delivery = bed.deliver(&pod);
    heard.hears("org:7").await;
    let cut = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM \"{}\"%'",
        bed.table
    );
    let observer = bed.client().await;
    let deleting = async || observer.query(&cut, &[]).await.unwrap().len() == 1;
    eventually("it is about to delete the row", deleting).await;
    eventually("it is delivered again", async || heard.all().len() > 1).await;
    assert_eq!(delivery.health().delivered, 0);
    holding.rollback().await.unwrap();
    bed.all_delivered(&client).await;
    eventually("it is counted", async || delivery.health().delivered == 1).await;
    assert!(delivery.health().failures > 0);
}
