//! Prefixes keep to themselves, whatever characters they and the keys hold.

use crate::{Bed, all, bytes, on_both_stores};
use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeSet;
use tidings::{Cache, Ttl};
use tokio::runtime::Runtime;

/// Prefixes that would catch each other if any of these characters kept its meaning.
const ODD: [&str; 16] = [
    "a", "a*", "a?", "a[b-z]", "[^b]", "*", "?", "a:", "a:b", "a%3A", "%", "\\", "a\\*", "{a}",
    "}r:a", "\0é\r\n",
];

async fn a_prefix_with_any_characters_keeps_to_itself(bed: Bed) {
    let cache = bed.cache().await;
    for prefix in ODD {
        let raw = cache.raw(prefix).unwrap();
        raw.set_many([("k", prefix), ("b:k", prefix)], Ttl::Forever)
            .await
            .unwrap();
    }
    for (n, prefix) in ODD.iter().enumerate() {
        let raw = cache.raw(prefix).unwrap();
        assert_eq!(all(raw.scan()).await.len(), 2, "{prefix:?}");
        assert_eq!(raw.clear().await.unwrap(), 2, "{prefix:?}");
        for other in &ODD[n + 1..] {
            let kept = cache.raw(other).unwrap().get("k").await.unwrap();
            assert_eq!(
                kept.as_deref(),
                Some(other.as_bytes()),
                "{prefix:?} {other:?}"
            );
        }
    }
}

async fn two_namespaces_share_no_raw_data(bed: Bed) {
    let here = bed.raw("p").await;
    let other = Bed {
        namespace: format!("{}x", bed.namespace),
        ..bed
    };
    let there = other.raw("p").await;
    here.set("k", "here", Ttl::Forever).await.unwrap();
    there.set("k", "there", Ttl::Forever).await.unwrap();
    assert_eq!(here.clear().await.unwrap(), 1);
    assert_eq!(there.get("k").await.unwrap(), bytes("there"));
}

async fn prefixes_are_checked_when_the_store_is_made(bed: Bed) {
    let cache = bed.cache().await;
    for refused in ["", &"p".repeat(65), &"é".repeat(33)] {
        let error = cache.raw(refused).unwrap_err();
        assert_eq!(error.option(), "raw");
        assert!(error.to_string().contains("1 to 64 bytes"), "{error}");
    }
    let longest = cache.raw(&"*".repeat(64)).unwrap();
    longest.set("k", "v", Ttl::Forever).await.unwrap();
    assert_eq!(longest.clear().await.unwrap(), 1);
}

on_both_stores! {
    a_prefix_with_any_characters_keeps_to_itself
    two_namespaces_share_no_raw_data
    prefixes_are_checked_when_the_store_is_made
}

fn prefix() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(&ODD[..]).prop_map(str::to_owned),
        "[ab:*?%{}\\[\\]\\\\^\u{0}é-]{1,6}",
        "\\PC{1,12}",
    ]
}

fn keys() -> impl Strategy<Value = BTreeSet<Vec<u8>>> {
    let odd = prop::sample::select(&b"ab:*?%{}[]\\\0\xff\r\n"[..]);
    let key = prop_oneof![
        prop::collection::vec(odd, 0..8),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::btree_set(key, 0..20)
}

async fn check(
    cache: &Cache,
    a: &str,
    b: &str,
    mine: &BTreeSet<Vec<u8>>,
    other: &BTreeSet<Vec<u8>>,
) {
    let (a, b) = (cache.raw(a).unwrap(), cache.raw(b).unwrap());
    let named = |keys: &BTreeSet<Vec<u8>>| keys.iter().cloned().map(Bytes::from).collect();
    a.set_many(mine.iter().map(|key| (key, key)), Ttl::Forever)
        .await
        .unwrap();
    b.set_many(other.iter().map(|key| (key, key)), Ttl::Forever)
        .await
        .unwrap();
    assert_eq!(all(a.scan()).await, named(mine));
    assert_eq!(a.clear().await.unwrap(), mine.len() as u64);
    assert!(all(a.scan()).await.is_empty());
    assert_eq!(all(b.scan()).await, named(other));
    let kept = b.get_many(other).await.unwrap();
    let kept: BTreeSet<_> = kept.into_iter().flatten().collect();
    assert_eq!(kept, named(other));
    assert_eq!(b.clear().await.unwrap(), other.len() as u64);
}

fn clearing_one_prefix_leaves_any_other_alone(bed: &Bed) {
    let runtime = Runtime::new().unwrap();
    let cache = runtime.block_on(bed.cache());
    let mut runner = TestRunner::new(Config {
        cases: 200,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(
        &(prefix(), prefix(), keys(), keys()),
        |(a, b, mine, other)| {
            prop_assume!(a != b && a.len() <= 64 && b.len() <= 64);
            runtime.block_on(check(&cache, &a, &b, &mine, &other));
            Ok(())
        },
    );
    outcome.unwrap();
}

#[test]
fn clearing_one_prefix_leaves_any_other_alone_in_memory() {
    clearing_one_prefix_leaves_any_other_alone(&Bed::memory());
}

#[test]
fn clearing_one_prefix_leaves_any_other_alone_on_redis() {
    clearing_one_prefix_leaves_any_other_alone(&Bed::redis());
}
