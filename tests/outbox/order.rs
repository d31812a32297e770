//! The order of commits is that of delivery.

use crate::bed::{Bed, Heard, eventually, soon};
use std::sync::Arc;
use tidings::Event;
use tidings::outbox::DeliveryState;

on_both_stores! {
    an_open_transaction_with_a_smaller_id_neither_delays_others_nor_is_passed_over,
    rows_of_one_look_are_carried_out_before_those_of_a_later_commit,
}

/// 1. One transaction takes the smaller id, another the greater.
/// 2. The second commits.
/// 3. The first does.
///
/// Whoever waits for the first delivers the second late; whoever remembers the greatest id never delivers
/// the first.
async fn an_open_transaction_with_a_smaller_id_neither_delays_others_nor_is_passed_over(bed: Bed) {
    let (mut one, mut two) = (bed.set_up().await, bed.client().await);
    let pod = bed.pod().await;
    let _delivery = bed.deliver(&pod);
    let heard = Heard::default();
    let _on = [heard.on(&pod.cache, "org:1"), heard.on(&pod.cache, "org:2")];

    let first = one.transaction().await.unwrap();
    bed.outbox()
        .invalidate_tags(&first, ["org:1"])
        .await
        .unwrap();
    let second = two.transaction().await.unwrap();
    bed.outbox()
        .invalidate_tags(&second, ["org:2"])
        .await
        .unwrap();
    second.commit().await.unwrap();
    heard.hears("org:2").await;
    assert_eq!(heard.tags(), ["org:2"], "the first has not committed");
    first.commit().await.unwrap();
    heard.hears("org:1").await;
    assert_eq!(heard.tags(), ["org:2", "org:1"]);
}

/// 1. More rows than are carried out at once wait.
/// 2. While their pod is in the midst of them, a transaction commits that took its id before theirs.
/// 3. Its row is found by the next look, after all of them.
async fn rows_of_one_look_are_carried_out_before_those_of_a_later_commit(bed: Bed) {
    let (mut early, mut client) = (bed.set_up().await, bed.client().await);
    let pod = bed.pod().await;
    let mut events = pod.cache.events();
    let late = early.transaction().await.unwrap();
    bed.outbox().invalidate_tags(&late, ["last"]).await.unwrap();

    let holding = bed.write_many_and_hold_one(&mut client).await;
    let delivery = bed.deliver(&pod);
    let began = async || delivery.health().waiting == Some(2001);
    eventually("it is in the midst of them", began).await;
    assert_eq!(delivery.health().state, DeliveryState::Delivering);
    late.commit().await.unwrap();
    assert_eq!(delivery.health().delivered, 0);
    holding.rollback().await.unwrap();
    let mut acknowledged: Vec<Arc<str>> = Vec::new();
    while !acknowledged.iter().any(|name| &**name == "last") {
        let event = soon("an event", events.next()).await;
        if let Some(Event::InvalidationAcknowledged { entity, .. }) = event {
            acknowledged.push(entity);
        }
    }
    let first = acknowledged.iter().any(|name| &**name == "first");
    assert!(first, "what was found before came later: {acknowledged:?}");
}
