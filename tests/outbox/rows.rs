//! What rows may hold, and who may write them.

use crate::bed::{Bed, Heard, eventually, soon};
use std::sync::Arc;
use tidings::Tag;
use tidings::outbox::DeliveryState::{Delivering, Standby};
use tidings::outbox::{Outbox, OutboxError};
use tokio::sync::Notify;

on_both_stores! {
    rows_that_name_nothing_are_set_aside_and_block_nobody,
    a_trigger_s_rows_are_delivered_as_those_of_the_library,
    every_kind_of_key_comes_out_as_it_went_in,
}

async fn rows_that_name_nothing_are_set_aside_and_block_nobody(bed: Bed) {
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let loose = format!("ALTER TABLE {} ALTER tag DROP NOT NULL", bed.table);
    client.batch_execute(&loose).await.unwrap();
    let rubbish = format!(
        "INSERT INTO {0} (tag, key) VALUES (NULL, NULL), ('', NULL), (':42', NULL), ('', '\\x00'),
         (repeat('n', 100000), NULL), ('user', decode(repeat('00', 9000), 'hex')), (repeat('ü', 9000), '\\x01'),
         ('org:7', NULL)",
        bed.table
    );
    client.batch_execute(&rubbish).await.unwrap();
    let heard = Heard::default();
    let _on = heard.on(&pod.cache, "org:7");
    let delivery = bed.deliver(&pod);
    heard.hears("org:7").await;
    bed.all_delivered(&client).await;
    assert_eq!(bed.rows(&client, "refused IS NOT NULL").await, 7);
    eventually("they are counted", async || {
        delivery.health().delivered == 1
    })
    .await;
    assert_eq!(delivery.health().refused, 7);
    let why = format!("SELECT refused FROM {} WHERE tag IS NULL", bed.table);
    let why: String = client.query_one(&why, &[]).await.unwrap().get(0);
    assert_eq!(why, "no tag");
}

async fn a_trigger_s_rows_are_delivered_as_those_of_the_library(bed: Bed) {
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let trigger = format!(
        "CREATE FUNCTION {0}_changed() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO {0} (tag) VALUES ('user:' || NEW.id); RETURN NULL; END $$;
         CREATE TRIGGER changed AFTER UPDATE ON {0}_users FOR EACH ROW EXECUTE FUNCTION {0}_changed()",
        bed.table
    );
    client.batch_execute(&trigger).await.unwrap();
    assert_eq!(pod.name(3).await, "old");
    let heard = Heard::default();
    let _on = [
        heard.on(&pod.cache, "user:3"),
        heard.on(&pod.cache, "user:4"),
    ];
    let _delivery = bed.deliver(&pod);
    let update = format!("UPDATE {}_users SET name = 'new' WHERE id = 3", bed.table);
    client.batch_execute(&update).await.unwrap();
    pod.sees(3, "new").await;
    heard.hears("user:3").await;
    assert_eq!(heard.tags(), ["user:3"]);
}

async fn every_kind_of_key_comes_out_as_it_went_in(bed: Bed) {
    let client = bed.set_up().await;
    let pod = bed.pod().await;
    let tags = [
        Tag::from("org"),
        Tag::from("org:7"),
        Tag::from("org:"),
        Tag::from("org:a:b"),
        Tag::of("org", &vec![0_u8, 255, b'\\', b':']),
        Tag::of("org", &("a/b", 7_u32)),
        Tag::of("grüße", &"'; DROP TABLE users; --"),
    ];
    let delivery = bed.deliver(&pod);
    for tag in tags {
        let count = delivery.health().delivered;
        let heard = Arc::new(Notify::new());
        let told = heard.clone();
        let _on = pod.cache.reactivity().on([tag.clone()], move |_| {
            told.notify_one();
            async {}
        });
        bed.outbox().invalidate_tags(&client, [tag]).await.unwrap();
        soon("the tag is heard", heard.notified()).await;
        eventually("it is counted", async || {
            delivery.health().delivered == count + 1
        })
        .await;
    }
}

#[tokio::test]
async fn what_cannot_be_a_row_leaves_its_transaction_usable() {
    let bed = Bed::memory();
    let mut client = bed.set_up().await;
    let transaction = client.transaction().await.unwrap();
    for tag in ["", ":1", "a\0b", &"n".repeat(1025)] {
        let refused = bed
            .outbox()
            .invalidate_tags(&transaction, ["good", tag])
            .await;
        assert!(
            matches!(refused, Err(OutboxError::Tag { .. })),
            "{refused:?}"
        );
    }
    let none: [&str; 0] = [];
    bed.outbox()
        .invalidate_tags(&transaction, none)
        .await
        .unwrap();
    bed.outbox()
        .invalidate_tags(&transaction, ["good"])
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(bed.rows(&client, "true").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_create_the_table_at_the_same_time_all_succeed() {
    let bed = Bed::memory();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (client, outbox) = (bed.client().await, bed.outbox());
        tasks.push(tokio::spawn(
            async move { outbox.create_table(&client).await },
        ));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let client = bed.client().await;
    client.batch_execute(&bed.outbox().sql()).await.unwrap();
    client.batch_execute(&bed.outbox().sql()).await.unwrap();
    bed.insert(&client, &["org:1"]).await;
    assert_eq!(bed.rows(&client, "true").await, 1);
}

#[tokio::test]
async fn a_table_in_a_schema_of_its_own_is_one_outbox_however_it_is_named() {
    let bed = Bed::memory();
    let client = bed.set_up().await;
    let long = Outbox::builder(&format!("public.{}", bed.table))
        .build()
        .unwrap();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let first = long.deliver(&a.cache, bed.config());
    eventually("one delivers", async || first.health().state == Delivering).await;
    let second = bed.deliver(&b);
    eventually("the other waits", async || second.health().state == Standby).await;
    long.invalidate_tags(&client, ["org:1"]).await.unwrap();
    bed.all_delivered(&client).await;
}

#[test]
fn options_out_of_bounds_are_refused_by_name() {
    let bad = Outbox::builder("no; drop").build().unwrap_err();
    assert!(bad.to_string().contains("table"), "{bad}");
    let slow = Outbox::builder("good").poll(std::time::Duration::from_secs(60));
    let bad = slow.build().unwrap_err();
    assert!(bad.to_string().contains("poll"), "{bad}");
}
