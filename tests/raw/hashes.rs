//! Hashes of fields.

use crate::{Bed, SHORT, bytes, eventually, on_both_stores};
use std::collections::HashMap;
use tidings::{StoreError, StoreErrorKind, Ttl};

async fn fields_are_set_read_counted_and_removed(bed: Bed) {
    let raw = bed.raw("p").await;
    assert_eq!(raw.hgetall("h").await.unwrap(), HashMap::new());
    assert!(raw.hset("h", "a", "1").await.unwrap());
    assert!(!raw.hset("h", "a", "2").await.unwrap());
    let more = [(b"\xff\0".to_vec(), "3"), (b"".to_vec(), "4")];
    assert_eq!(raw.hset_many("h", more).await.unwrap(), 2);
    assert_eq!(raw.hget("h", b"\xff\0").await.unwrap(), bytes("3"));
    assert_eq!(raw.hget("h", "b").await.unwrap(), None);
    assert_eq!(raw.hlen("h").await.unwrap(), 3);
    let all = raw.hgetall("h").await.unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!(all.get(&b"a"[..]).cloned(), bytes("2"));
    for field in [&b"a"[..], b"\xff\0", b""] {
        assert!(raw.hdel("h", field).await.unwrap());
        assert!(!raw.hdel("h", field).await.unwrap());
    }
    assert!(
        !raw.expire("h", SHORT).await.unwrap(),
        "gone with its last field"
    );
}

async fn a_large_hash_is_read_whole(bed: Bed) {
    let raw = bed.raw("p").await;
    let fields: Vec<_> = (0..3_500).map(|n| n.to_string()).collect();
    let pairs = || fields.iter().map(|field| (field, field));
    assert_eq!(raw.hset_many("h", pairs()).await.unwrap(), 3_500);
    assert_eq!(raw.hset_many("h", pairs()).await.unwrap(), 0);
    let all = raw.hgetall("h").await.unwrap();
    assert_eq!(all.len(), 3_500);
    assert!(all.iter().all(|(field, value)| field == value));
    assert!(raw.remove("h").await.unwrap());
    assert_eq!(raw.hlen("h").await.unwrap(), 0);
}

async fn a_hash_ends_when_it_is_told_to(bed: Bed) {
    let raw = bed.raw("p").await;
    raw.hset("h", "a", "1").await.unwrap();
    assert!(raw.expire("h", SHORT).await.unwrap());
    raw.hset("h", "b", "2").await.unwrap();
    eventually("h ends", async || raw.hlen("h").await.unwrap() == 0).await;
}

async fn values_and_hashes_are_told_apart_by_a_typed_error(bed: Bed) {
    let raw = bed.raw("p").await;
    let wrong = |error: StoreError| {
        assert_eq!(error.kind(), StoreErrorKind::WrongType, "{error}");
        assert!(!error.is_transient());
        assert!(error.operation().starts_with("raw "), "{error}");
    };
    raw.set("v", "1", Ttl::Forever).await.unwrap();
    raw.hset("h", "f", "1").await.unwrap();
    wrong(raw.get("h").await.unwrap_err());
    wrong(raw.get_many(["v", "h"]).await.unwrap_err());
    wrong(raw.hget("v", "f").await.unwrap_err());
    wrong(raw.hset("v", "f", "1").await.unwrap_err());
    wrong(raw.hset_many("v", [("f", "1")]).await.unwrap_err());
    wrong(raw.hgetall("v").await.unwrap_err());
    wrong(raw.hdel("v", "f").await.unwrap_err());
    wrong(raw.hlen("v").await.unwrap_err());
    raw.set("h", "2", Ttl::Forever).await.unwrap();
    assert_eq!(
        raw.get("h").await.unwrap(),
        bytes("2"),
        "set replaces either"
    );
    assert_eq!(raw.remove_many(["v", "h"]).await.unwrap(), 2);
}

on_both_stores! {
    fields_are_set_read_counted_and_removed
    a_large_hash_is_read_whole
    a_hash_ends_when_it_is_told_to
    values_and_hashes_are_told_apart_by_a_typed_error
}
