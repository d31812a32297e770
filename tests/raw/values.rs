//! Values and how long they live.

use crate::{Bed, SHORT, all, bytes, eventually};
use std::time::Duration;
use tidings::{Clock, MAX_RAW_BYTES, Millis, StoreError, StoreErrorKind, Ttl, store::Memory};

async fn what_one_pod_writes_another_reads(bed: Bed) {
    let (a, b) = (bed.raw("p").await, bed.raw("p").await);
    a.set("k", "v", Ttl::Forever).await.unwrap();
    assert_eq!(b.get("k").await.unwrap(), bytes("v"));
    assert!(b.remove("k").await.unwrap());
    assert_eq!(a.get("k").await.unwrap(), None);
    assert!(!a.remove("k").await.unwrap());
}

async fn many_are_given_in_order_whatever_their_number(bed: Bed) {
    let raw = bed.raw("p").await;
    let keys: Vec<_> = (0..2_500).map(|n| format!("k{n}")).collect();
    let entries = keys.iter().map(|key| (key, key));
    raw.set_many(entries, Duration::from_secs(600))
        .await
        .unwrap();
    let mut asked: Vec<&str> = keys.iter().rev().map(String::as_str).collect();
    asked.insert(7, "missing");
    asked.push("k3");
    let found = raw.get_many(&asked).await.unwrap();
    assert_eq!(found.len(), asked.len());
    for (key, found) in asked.iter().zip(found) {
        let expected = (*key != "missing").then_some(key.as_bytes());
        assert_eq!(found.as_deref(), expected);
    }
    asked.push("k4");
    assert_eq!(raw.remove_many(&asked).await.unwrap(), 2_500);
    let none: [&str; 0] = [];
    assert_eq!(raw.get_many(none).await.unwrap(), []);
    assert_eq!(raw.remove_many(none).await.unwrap(), 0);
}

async fn a_ttl_of_zero_removes_instead_of_storing(bed: Bed) {
    let raw = bed.raw("p").await;
    raw.set_many([("a", "1"), ("b", "2"), ("c", "3")], Ttl::Forever)
        .await
        .unwrap();
    raw.hset("h", "f", "v").await.unwrap();
    raw.set("a", "new", Duration::ZERO).await.unwrap();
    raw.set_many([("b", "new"), ("h", "new")], Ttl::NONE)
        .await
        .unwrap();
    assert!(raw.expire("c", Ttl::NONE).await.unwrap());
    assert!(!raw.expire("c", Ttl::NONE).await.unwrap());
    assert!(all(raw.scan()).await.is_empty());
}

async fn a_new_value_forgets_the_ttl_of_the_old_one(bed: Bed) {
    let raw = bed.raw("p").await;
    raw.set_many([("a", "1"), ("b", "1"), ("c", "1")], SHORT)
        .await
        .unwrap();
    raw.set("a", "2", Ttl::Forever).await.unwrap();
    assert!(raw.expire("b", Ttl::Forever).await.unwrap());
    eventually("c ends", async || raw.get("c").await.unwrap().is_none()).await;
    assert_eq!(
        raw.get_many(["a", "b"]).await.unwrap(),
        [bytes("2"), bytes("1")]
    );
}

async fn a_nanosecond_is_a_ttl_and_ends(bed: Bed) {
    let raw = bed.raw("p").await;
    raw.set("k", "v", Duration::from_nanos(1)).await.unwrap();
    raw.set("long", "v", Duration::MAX).await.unwrap();
    eventually("k ends", async || raw.get("k").await.unwrap().is_none()).await;
    assert_eq!(raw.get("long").await.unwrap(), bytes("v"));
}

async fn a_batch_keeps_the_last_of_two_values_for_one_key(bed: Bed) {
    let raw = bed.raw("p").await;
    raw.set_many([("k", "1"), ("j", "2"), ("k", "3")], Ttl::Forever)
        .await
        .unwrap();
    assert_eq!(raw.get("k").await.unwrap(), bytes("3"));
}

async fn a_value_that_is_too_long_is_refused_and_nothing_is_sent(bed: Bed) {
    let cache = bed.patient_cache().await;
    let raw = cache.raw("p").unwrap();
    let long = vec![b'x'; MAX_RAW_BYTES];
    let refused = |answer: Result<(), StoreError>| {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::TooLong, "{error}");
        assert!(!error.is_transient());
        let limit = MAX_RAW_BYTES.to_string();
        assert!(error.to_string().contains(&limit), "{error}");
    };
    refused(raw.set("k", &long, Ttl::Forever).await);
    refused(
        raw.set_many([("a", &b"1"[..]), ("b", &long)], Ttl::Forever)
            .await,
    );
    refused(raw.hset("h", "f", &long).await.map(|_| ()));
    refused(
        raw.hset_many("h", [("f", &b"1"[..]), ("g", &long)])
            .await
            .map(|_| ()),
    );
    assert!(all(raw.scan()).await.is_empty());
    raw.set("k", &long[1..], Ttl::Forever).await.unwrap();
    assert_eq!(
        raw.get("k").await.unwrap().unwrap().len(),
        MAX_RAW_BYTES - 1
    );
}

/// They go one after the other: what others ask meanwhile waits for one part, not for all.
async fn many_long_values_are_written_in_parts(bed: Bed) {
    let cache = bed.patient_cache().await;
    let raw = cache.raw("p").unwrap();
    let long = vec![b'x'; MAX_RAW_BYTES / 2 - 10];
    let keys = ["a", "b", "c", "d", "e"];
    let entries = keys.map(|key| (key, &long));
    raw.set_many(entries, Ttl::Forever).await.unwrap();
    assert_eq!(raw.hset_many("h", entries).await.unwrap(), 5);
    for key in keys {
        assert_eq!(raw.get(key).await.unwrap().unwrap().len(), long.len());
        assert_eq!(raw.hget("h", key).await.unwrap().unwrap().len(), long.len());
    }
    let calls = cache.stats().store;
    assert_eq!((calls["raw set"].calls, calls["raw hset"].calls), (3, 3));
}

on_both_stores!(
    a_value_that_is_too_long_is_refused_and_nothing_is_sent,
    many_long_values_are_written_in_parts,
    what_one_pod_writes_another_reads,
    many_are_given_in_order_whatever_their_number,
    a_ttl_of_zero_removes_instead_of_storing,
    a_new_value_forgets_the_ttl_of_the_old_one,
    a_nanosecond_is_a_ttl_and_ends,
    a_batch_keeps_the_last_of_two_values_for_one_key,
);

#[tokio::test]
async fn expiry_is_inclusive_and_rounds_up_on_the_clock_of_the_store() {
    let clock = Clock::manual(Millis(1_000));
    let bed = Bed::on(Memory::new().with_clock(clock.clone()), None);
    let raw = bed.raw("p").await;
    raw.set("k", "v", Duration::from_micros(1_500))
        .await
        .unwrap();
    clock.advance(Duration::from_millis(1));
    assert!(raw.get("k").await.unwrap().is_some());
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        raw.get("k").await.unwrap(),
        None,
        "two milliseconds, not a moment more"
    );
}

#[tokio::test]
async fn raw_data_of_the_embedded_store_is_not_evicted() {
    let bed = Bed::on(Memory::new().max_entries(1), None);
    let raw = bed.raw("p").await;
    let keys: Vec<_> = (0..500).map(|n| n.to_string()).collect();
    let entries = keys.iter().map(|key| (key, key));
    raw.set_many(entries, Ttl::Forever).await.unwrap();
    assert_eq!(all(raw.scan()).await.len(), 500);
}

#[tokio::test]
async fn every_call_can_run_in_a_task() {
    let raw = Bed::memory().raw("p").await;
    let task = tokio::spawn(async move {
        let (key, value) = (String::from("k"), vec![1_u8]);
        raw.set(&key, &value, Ttl::Forever).await?;
        raw.set_many([(&key, value)], Ttl::Forever).await?;
        raw.get_many([&key]).await?;
        raw.expire(key, Ttl::Forever).await?;
        raw.scan().next().await.transpose()?;
        raw.hset_many("h", [("f", "v")]).await?;
        raw.hgetall("h").await?;
        raw.remove_many(["h"]).await?;
        raw.clear().await
    });
    assert_eq!(task.await.unwrap().unwrap(), 1);
}
