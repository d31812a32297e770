//! Races between a tag and what turns out to carry it, in the order that hurts.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::source::Source;
use crate::tagged::{tagged, value};
use std::pin::pin;
use tokio::task::JoinHandle;

fn reader(numbers: &Numbers, key: u64) -> JoinHandle<u64> {
    let numbers = numbers.clone();
    tokio::spawn(async move { value(&numbers, key).await })
}

fn reader_of_many(numbers: &Numbers, key: u64) -> JoinHandle<u64> {
    let numbers = numbers.clone();
    tokio::spawn(async move {
        let got = numbers.get_many(&[key]).await;
        **got[0].as_ref().unwrap()
    })
}

/// Waits until `pod` has applied what `by` invalidated.
async fn applies(pod: &Pod, before: u64) {
    eventually("the hint", async || pod.cache.health().hints > before).await;
}

/// 1. A load reads version 0. 2. Version 1 is committed, and a tag invalidated that the value will have.
/// 3. The load ends.
async fn a_tag_that_is_invalidated_during_a_load_wins(bed: Bed) {
    for by_the_loading_pod in [true, false] {
        let source = Source::new();
        let key = 1 + 2 * u64::from(by_the_loading_pod);
        let (a, b) = (bed.pod().await, bed.pod().await);
        let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
        source.hold();
        let old = reader(&on_a, key);
        eventually("the load runs", async || source.running() == 1).await;
        source.commit(key, 1);
        let heard = a.cache.health().hints;
        let by = if by_the_loading_pod { &a } else { &b };
        by.cache.invalidate(["org:1"]).await.unwrap();
        applies(&a, heard).await;
        source.let_go();
        assert_eq!(old.await.unwrap(), 0, "who asked before may have it");
        assert_eq!(on_a.peek(&key), None);
        assert_eq!(value(&on_b, key).await, 1);
        assert_eq!(value(&on_a, key).await, 1);
    }
}

/// As before, but the loading pod does not hear of it until the value is stored.
async fn a_fill_that_did_not_hear_of_its_tag_is_dead_to_everybody(bed: Bed) {
    let source = Source::new();
    let (a, b, c) = (bed.pod().await, bed.pod().await, bed.pod().await);
    let (on_a, on_b, on_c) = (
        tagged(&a, &source),
        tagged(&b, &source),
        tagged(&c, &source),
    );
    // So that there is a floor, and pods that know it.
    for numbers in [&on_a, &on_b, &on_c] {
        value(numbers, 3).await;
    }
    a.done("fill", 1).await;
    a.wire.deafen(true);
    a.wire.hang("poll");
    source.hold();
    let old = reader(&on_a, 1);
    eventually("the load runs", async || source.running() == 1).await;
    source.commit(1, 1);
    b.cache.invalidate(["org:1"]).await.unwrap();
    source.let_go();
    assert_eq!(old.await.unwrap(), 0, "it could not know");
    a.done("fill", 2).await;
    assert_eq!(value(&on_b, 1).await, 1);
    assert_eq!(value(&on_c, 1).await, 1);
    a.wire.heal();
    eventually("the entry goes", async || on_a.peek(&1) != Some(0.into())).await;
    assert_eq!(value(&on_a, 1).await, 1);
}

/// 1. A load ends. 2. Its tag is invalidated. 3. The outcome goes to the store.
async fn a_tag_that_is_invalidated_between_load_and_fill_wins(bed: Bed) {
    for held_up in ["tags", "fill"] {
        let source = Source::new();
        let key = if held_up == "fill" { 1 } else { 3 };
        let (a, b) = (bed.pod().await, bed.pod().await);
        let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
        a.wire.hang(held_up);
        assert_eq!(value(&on_a, key).await, 0);
        eventually("the fill", async || a.wire.calls(held_up) > 0).await;
        source.commit(key, 1);
        b.cache.invalidate(["org:1"]).await.unwrap();
        a.wire.heal();
        assert_eq!(value(&on_b, key).await, 1, "{held_up}");
        eventually("the entry goes", async || on_a.peek(&key) != Some(0.into())).await;
        assert_eq!(value(&on_a, key).await, 1, "{held_up}");
    }
}

/// 1. A reader gets the old value, or its floor, out of the store. 2. The tag is invalidated. 3. The
///    reader makes of it what it is worth.
async fn a_tag_that_is_invalidated_between_a_look_and_its_use_wins(bed: Bed) {
    for (held_up, known) in [("read", true), ("read", false), ("tags", false)] {
        for by_the_reading_pod in [true, false] {
            let source = Source::new();
            let (a, b) = (bed.pod().await, bed.pod().await);
            let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
            a.cache.invalidate(["number"]).await.unwrap();
            value(&on_a, 1).await;
            a.done("fill", 1).await;
            if known {
                value(&on_a, 3).await;
                a.done("fill", 2).await;
                value(&on_b, 3).await;
            }
            b.wire.hold_answers(held_up);
            let before = b.wire.done(held_up);
            let old = reader(&on_b, 1);
            eventually("the look", async || b.wire.done(held_up) > before).await;
            source.commit(1, 1);
            let heard = b.cache.health().hints;
            let by = if by_the_reading_pod { &b } else { &a };
            by.cache.invalidate(["org:1"]).await.unwrap();
            applies(&b, heard).await;
            let new = reader(&on_b, 1);
            b.wire.heal();
            old.await.unwrap(); // either: it asked before
            assert_eq!(new.await.unwrap(), 1, "{held_up} {known}");
            assert_ne!(on_b.peek(&1), Some(0.into()), "{held_up} {known}");
            assert_eq!(value(&on_b, 1).await, 1, "{held_up} {known}");
        }
    }
}

/// 1. A load begins. 2. Its tag is invalidated, which is acknowledged. 3. Another reader comes. 4. The
///    load ends.
async fn who_comes_after_an_invalidation_of_a_tag_shares_no_load_from_before(bed: Bed) {
    for later in [reader, reader_of_many] {
        for first in [reader, reader_of_many] {
            let source = Source::new();
            let pod = bed.pod().await;
            let numbers = tagged(&pod, &source);
            pod.cache.invalidate(["number"]).await.unwrap();
            source.hold();
            let old = first(&numbers, 1);
            eventually("the load runs", async || source.running() == 1).await;
            source.commit(1, 1);
            pod.cache.invalidate(["org:1"]).await.unwrap();
            let after: Vec<_> = (0..10).map(|_| later(&numbers, 1)).collect();
            let mut one_more = pin!(numbers.get(&1));
            poll_once(&mut one_more).await;
            source.let_go();
            assert_eq!(old.await.unwrap(), 0, "it asked before");
            for reader in after {
                assert_eq!(reader.await.unwrap(), 1);
            }
            assert_eq!(*one_more.await.unwrap(), 1);
            assert!(source.loads() <= 3, "those who come after share one");
            assert_eq!(value(&numbers, 1).await, 1);
        }
    }
}

async fn who_refreshes_after_an_invalidation_of_a_tag_shares_no_refresh_from_before(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = tagged(&pod, &source);
    value(&numbers, 1).await;
    pod.done("fill", 1).await;
    source.hold();
    let refresh = |numbers: &Numbers| {
        let numbers = numbers.clone();
        tokio::spawn(async move { *numbers.refresh(&1).await.unwrap() })
    };
    let old = refresh(&numbers);
    eventually("the refresh runs", async || source.running() == 1).await;
    source.commit(1, 1);
    pod.cache.invalidate(["org:1"]).await.unwrap();
    let mut new = pin!(numbers.refresh(&1));
    poll_once(&mut new).await;
    let mut read = pin!(numbers.get(&1));
    poll_once(&mut read).await;
    source.let_go();
    assert_eq!(old.await.unwrap(), 0, "it asked before");
    assert_eq!(*new.await.unwrap(), 1);
    assert_eq!(*read.await.unwrap(), 1);
    assert_eq!(value(&numbers, 1).await, 1);
}

/// 1. The pod invalidates a tag, and the store does not hear of it. 2. The store has the old value.
async fn until_an_invalidation_of_a_tag_is_acknowledged_the_store_is_not_believed(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
    value(&on_a, 1).await;
    a.done("fill", 1).await;
    value(&on_b, 1).await;
    a.wire.hang("invalidate");
    source.commit(1, 1);
    let mut call = pin!(a.cache.invalidate(["org:1"]));
    poll_once(&mut call).await;
    assert_eq!(on_a.peek(&1), None, "at once");
    for _ in 0..3 {
        assert_eq!(value(&on_a, 1).await, 1, "the source is asked");
    }
    a.wire.heal();
    soon("the call", call).await.unwrap();
    assert_eq!(value(&on_a, 1).await, 1);
    eventually("the other pod", async || on_b.peek(&1) != Some(0.into())).await;
    assert_eq!(value(&on_b, 1).await, 1);
}

/// 1. The pod asks for a floor. 2. It begins to invalidate the tag. 3. The answer arrives: the old floor.
/// 4. The store acknowledges.
async fn a_floor_that_was_asked_for_beside_an_own_invalidation_is_not_kept(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (tagged(&a, &source), tagged(&b, &source));
    for key in [1, 3, 5] {
        value(&on_a, key).await;
    }
    a.done("fill", 3).await;
    b.wire.hang("invalidate");
    let mut call = pin!(b.cache.invalidate(["org:1"]));
    poll_once(&mut call).await;
    // Reads of the old values, which the store still believes in.
    value(&on_b, 1).await;
    source.commit(3, 1);
    b.wire.heal();
    soon("the call", call).await.unwrap();
    assert_eq!(value(&on_b, 3).await, 1);
    for key in [1, 5] {
        source.commit(key, 2);
    }
    b.cache.invalidate(["org:1"]).await.unwrap();
    for key in [1, 5] {
        assert_eq!(value(&on_b, key).await, 2);
    }
}

on_both_stores!(
    a_tag_that_is_invalidated_during_a_load_wins,
    a_fill_that_did_not_hear_of_its_tag_is_dead_to_everybody,
    a_tag_that_is_invalidated_between_load_and_fill_wins,
    a_tag_that_is_invalidated_between_a_look_and_its_use_wins,
    who_comes_after_an_invalidation_of_a_tag_shares_no_load_from_before,
    who_refreshes_after_an_invalidation_of_a_tag_shares_no_refresh_from_before,
    until_an_invalidation_of_a_tag_is_acknowledged_the_store_is_not_believed,
    a_floor_that_was_asked_for_beside_an_own_invalidation_is_not_kept,
);
