//! Stamps: what one pod was told, another one sees at once.

use crate::bed::{Bed, eventually};
use crate::source::Source;
use tidings::{CacheError, Stamp};

async fn a_stamp_handed_to_another_pod_is_seen_there_at_once(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    b.wire.deafen(true);
    for version in 1..=200 {
        let key = version % 8;
        on_b.get(&key).await.unwrap();
        source.commit(key, version);
        let stamp = on_a.invalidate(&key).await.unwrap();
        let stamp: Stamp = stamp.to_string().parse().unwrap();
        assert_eq!(*on_b.get_at_least(&key, &stamp).await.unwrap(), version);
        assert_eq!(*on_b.get(&key).await.unwrap(), version, "and it is kept");
    }
}

async fn a_stamp_of_a_clear_is_seen_for_every_key(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    b.wire.deafen(true);
    for key in 0..20 {
        on_b.get(&key).await.unwrap();
        source.commit(key, 1);
    }
    let stamp = on_a.clear().await.unwrap();
    for key in 0..20 {
        assert_eq!(*on_b.get_at_least(&key, &stamp).await.unwrap(), 1);
    }
}

async fn a_stamp_that_was_applied_costs_nothing(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let stamp = numbers.invalidate(&1).await.unwrap();
    numbers.get(&1).await.unwrap();
    let reads = pod.wire.calls("read");
    for _ in 0..100 {
        numbers.get_at_least(&1, &stamp).await.unwrap();
        numbers.get_at_least(&1, &Stamp::default()).await.unwrap();
    }
    assert_eq!(pod.wire.calls("read"), reads);
}

/// A client may send anything. It must not keep others from being cached.
async fn a_stamp_that_was_made_up_does_no_harm(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let text = numbers.invalidate(&1).await.unwrap().to_string();
    let (before, _) = text.rsplit_once('.').unwrap();
    for seq in ["ffffffffffff", "ffffffffffffffff", "7fffffffffff"] {
        let stamp: Stamp = format!("{before}.{seq}").parse().unwrap();
        numbers.get_at_least(&1, &stamp).await.unwrap();
    }
    numbers.invalidate(&1).await.unwrap();
    numbers.get(&1).await.unwrap();
    let reads = pod.wire.calls("read");
    numbers.get(&1).await.unwrap();
    assert_eq!(pod.wire.calls("read"), reads, "it is kept here");
}

/// A stamp of an epoch that nobody knows any more is reached as soon as a poll confirms the lane.
async fn a_stamp_of_an_epoch_that_is_over_is_reached(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let text = numbers.invalidate(&1).await.unwrap().to_string();
    let parts: Vec<_> = text.split('.').collect();
    let stamp: Stamp = format!("{}.dead.{}", parts[0], parts[2]).parse().unwrap();
    source.commit(1, 5);
    numbers.invalidate(&1).await.unwrap();
    assert_eq!(*numbers.get_at_least(&1, &stamp).await.unwrap(), 5);
}

async fn without_the_store_an_unknown_epoch_is_an_error_and_a_known_one_a_load(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    let known = numbers.invalidate(&1).await.unwrap();
    let parts = known.to_string();
    let parts: Vec<_> = parts.split('.').collect();
    let unknown: Stamp = format!("{}.dead.{}", parts[0], parts[2]).parse().unwrap();
    pod.wire.cut(true);
    let down = async || !matches!(pod.cache.health().store, tidings::StoreState::Up);
    eventually("the link is down", down).await;
    assert!(numbers.get_at_least(&1, &known).await.is_ok());
    let error = numbers.get_at_least(&1, &unknown).await.unwrap_err();
    assert!(matches!(error, CacheError::Store(_)), "{error:?}");
}

#[test]
fn what_is_no_stamp_is_a_typed_error() {
    for text in [
        "x",
        "1",
        "1.2",
        "1.2.3.4",
        "1.2.3-",
        "-1.2.3",
        "10000.2.3",
        "1.2.g",
        "1. 2.3",
    ] {
        assert!(text.parse::<Stamp>().is_err(), "{text:?}");
    }
    assert_eq!("".parse::<Stamp>().unwrap(), Stamp::default());
    let stamp: Stamp = "0.ffffffffffffffff.1-f.0.2".parse().unwrap();
    assert_eq!(stamp.positions().count(), 2);
    assert_eq!(stamp.to_string(), "0.ffffffffffffffff.1-f.0.2");
}

on_both_stores!(
    a_stamp_handed_to_another_pod_is_seen_there_at_once,
    a_stamp_of_a_clear_is_seen_for_every_key,
    a_stamp_that_was_applied_costs_nothing,
    a_stamp_that_was_made_up_does_no_harm,
    a_stamp_of_an_epoch_that_is_over_is_reached,
    without_the_store_an_unknown_epoch_is_an_error_and_a_known_one_a_load,
);
