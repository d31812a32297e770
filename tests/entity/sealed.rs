//! Values that are sealed in the store: who reads them, and what becomes of those that were tampered
//! with.

use crate::bed::{Bed, Pod, eventually};
use crate::source::Refused;
use crate::wire::{Hand, OwnedPlace};
use std::time::Duration;
use tidings::{Cache, Compression, Entity, KeyRing, LoadContext, Loaded, Origin, Served};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];
const LONG: Duration = Duration::from_secs(60);
/// What is in every value, and must not be seen in the store.
const SECRET: &str = "the secret of ";

type Secrets = Entity<String, String, Refused>;

fn ring() -> KeyRing {
    KeyRing::new(1, &OLD)
}

async fn pod(bed: &Bed, ring: KeyRing) -> Pod {
    bed.pod_with(|builder| builder.seal(ring)).await
}

async fn load(key: String) -> Result<String, Refused> {
    Ok(format!("{SECRET}{key}"))
}

fn secrets(pod: &Pod) -> Secrets {
    pod.cache.entity("secret", load).build().unwrap()
}

async fn read(secrets: &Secrets, key: &str) -> Served<String> {
    let served = secrets.get_with(&key.to_owned()).await.unwrap();
    assert_eq!(*served.value, format!("{SECRET}{key}"));
    served
}

/// Fills `key` through a pod of its own with `ring`, and says where that is.
async fn filled(bed: &Bed, ring: KeyRing, key: &str) -> OwnedPlace {
    let pod = pod(bed, ring).await;
    read(&secrets(&pod), key).await;
    pod.done("fill", 1).await;
    pod.wire.last_place()
}

/// Asserts that a pod with `ring` misses what stands in the store, counts it, and overwrites it with
/// what the next pod reads.
async fn is_a_miss(bed: &Bed, ring: KeyRing, key: &str, what: &str) {
    let (first, second) = (pod(bed, ring.clone()).await, pod(bed, ring).await);
    assert_eq!(
        read(&secrets(&first), key).await.origin,
        Origin::Loader,
        "{what}"
    );
    assert_eq!(first.cache.health().unusable_values, 1, "{what}");
    first.done("fill", 1).await;
    assert_eq!(
        read(&secrets(&second), key).await.origin,
        Origin::Store,
        "{what}"
    );
    assert_eq!(second.cache.health().unusable_values, 0, "{what}");
}

/// The checksum is no secret: whoever tampers makes it right again.
fn with_checksum(mut bytes: Vec<u8>, at: &OwnedPlace) -> Vec<u8> {
    bytes.truncate(bytes.len() - 8);
    bytes.extend(xxh3_64_with_seed(&bytes, at.place().hash).to_be_bytes());
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

async fn pods_with_the_key_share_what_nobody_else_can_read(bed: Bed) {
    let at = filled(&bed, ring(), "a").await;
    let bytes = bed.hand().await.look(&at).await.unwrap();
    assert!(!holds(&bytes, SECRET));
    let other = pod(&bed, ring()).await;
    assert_eq!(read(&secrets(&other), "a").await.origin, Origin::Store);
    assert_eq!(other.cache.health().unusable_values, 0);
}

async fn a_pod_without_the_key_misses_and_overwrites(bed: Bed) {
    filled(&bed, ring(), "a").await;
    is_a_miss(&bed, KeyRing::new(2, &NEW), "a", "unknown id").await;
    filled(&bed, ring(), "b").await;
    is_a_miss(&bed, KeyRing::new(1, &NEW), "b", "wrong key").await;
    filled(&bed, ring(), "c").await;
    let without = bed.pod().await;
    assert_eq!(read(&secrets(&without), "c").await.origin, Origin::Loader);
    assert_eq!(without.cache.health().unusable_values, 1);
}

async fn values_survive_a_rotation_of_keys(bed: Bed) {
    filled(&bed, ring(), "a").await;
    // The new key is known everywhere, then it seals, then the old one goes.
    let ready = pod(&bed, ring().and(2, &NEW)).await;
    let turned = pod(&bed, KeyRing::new(2, &NEW).and(1, &OLD)).await;
    for pod in [&ready, &turned] {
        assert_eq!(read(&secrets(pod), "a").await.origin, Origin::Store);
    }
    read(&secrets(&turned), "b").await;
    turned.done("fill", 1).await;
    let done = pod(&bed, KeyRing::new(2, &NEW)).await;
    for pod in [&ready, &done] {
        assert_eq!(read(&secrets(pod), "b").await.origin, Origin::Store);
        assert_eq!(pod.cache.health().unusable_values, 0);
    }
    is_a_miss(&bed, KeyRing::new(2, &NEW), "a", "the old key is gone").await;
}

async fn what_was_tampered_with_is_a_miss_and_is_overwritten(bed: Bed) {
    let hand = bed.hand().await;
    let at = filled(&bed, ring(), "a").await;
    let good = hand.look(&at).await.unwrap().to_vec();
    let mut bad = Vec::new();
    // Kind, load, loaded, expires, soft expires, key id, nonce, content, tag.
    for field in [2, 5, 35, 43, 51, 67, 70, good.len() - 30, good.len() - 10] {
        let mut edited = good.clone();
        edited[field] ^= 3;
        bad.push((format!("byte {field}"), edited));
    }
    for len in [72, 90, good.len() - 1] {
        bad.push((format!("cut to {len}"), good[..len].to_vec()));
    }
    let from = filled(&bed, ring(), "b").await;
    let moved = hand.look(&from).await.unwrap().to_vec();
    bad.push(("of another key".to_owned(), moved));
    for (what, bytes) in bad {
        hand.put(&at, &with_checksum(bytes, &at)).await;
        is_a_miss(&bed, ring(), "a", &what).await;
    }
}

async fn a_value_that_is_not_sealed_is_a_miss_where_a_seal_is_demanded(bed: Bed) {
    let open = bed.pod().await;
    read(&secrets(&open), "a").await;
    open.done("fill", 1).await;
    let at = open.wire.last_place();
    assert!(holds(&bed.hand().await.look(&at).await.unwrap(), SECRET));
    is_a_miss(&bed, ring(), "a", "not sealed").await;
    let bytes = bed.hand().await.look(&at).await.unwrap();
    assert!(!holds(&bytes, SECRET), "the next load seals it");
}

async fn an_entity_may_differ_from_its_cache(bed: Bed) {
    let (open, closed) = (bed.pod().await, pod(&bed, ring()).await);
    let build = |pod: &Pod, name: &str, ring: Option<KeyRing>| {
        let builder = pod.cache.entity(name, load);
        let builder = match ring {
            Some(ring) => builder.seal(ring),
            None => builder.unsealed(),
        };
        builder.build().unwrap()
    };
    let hand = bed.hand().await;
    for (name, ring, readable) in [
        ("in", Some(KeyRing::new(2, &NEW)), false),
        ("out", None, true),
    ] {
        for (count, pod) in [&open, &closed].into_iter().enumerate() {
            let served = read(&build(pod, name, ring.clone()), "a").await;
            let expected = [Origin::Loader, Origin::Store][count];
            assert_eq!(served.origin, expected, "{name}");
            if count == 0 {
                pod.done("fill", 1 + u64::from(readable)).await;
            }
        }
        let bytes = hand.look(&closed.wire.last_place()).await.unwrap();
        assert_eq!(holds(&bytes, SECRET), readable, "{name}");
    }
}

async fn errors_and_long_keys_are_sealed_too(bed: Bed) {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct No(String);
    let refuse = |key: String| async move { Err::<(), _>(No(format!("{SECRET}{key}"))) };
    let build = |pod: &Pod| {
        let entity = pod.cache.entity("refused", refuse);
        entity.error_ttl(|_| Some(LONG)).build().unwrap()
    };
    let (one, two) = (pod(&bed, ring()).await, pod(&bed, ring()).await);
    // Too long for the physical key: the envelope carries it.
    let key = "a long key ".repeat(100);
    build(&one).get(&key).await.unwrap_err();
    one.done("fill", 1).await;
    let bytes = bed.hand().await.look(&one.wire.last_place()).await.unwrap();
    assert!(!holds(&bytes, SECRET) && !holds(&bytes, "a long key"));
    let error = build(&two).get(&key).await.unwrap_err();
    assert_eq!(error.load_error(), Some(&No(format!("{SECRET}{key}"))));
    assert_eq!(two.wire.done("lease"), 0, "it was read, not loaded");
}

async fn what_is_sealed_was_compressed_before(bed: Bed) {
    let load = |key: u64| async move { Ok::<_, Refused>(format!("{key} ").repeat(5000)) };
    let build = |pod: &Pod| {
        let entity = pod.cache.entity("text", load);
        entity.compress(Compression::Lz4).build().unwrap()
    };
    let (one, two) = (pod(&bed, ring()).await, pod(&bed, ring()).await);
    build(&one).get(&7).await.unwrap();
    one.done("fill", 1).await;
    let hand: Hand = bed.hand().await;
    let bytes = hand.look(&one.wire.last_place()).await.unwrap();
    assert!(bytes.len() < 500, "{}", bytes.len());
    let served = build(&two).get_with(&7).await.unwrap();
    assert_eq!((served.value.len(), served.origin), (10_000, Origin::Store));
}

/// Its time to live is over, it is served all the same, refreshed behind, and sealed anew; and nobody makes
/// it fresh by hand, for its times are under the seal.
async fn a_stale_value_is_sealed_and_refreshed_like_any_other(bed: Bed) {
    let brief = |pod: &Pod| {
        let entity = pod
            .cache
            .entity("secret", load)
            .ttl(Duration::from_millis(30));
        entity.grace(LONG).build().unwrap()
    };
    let (a, b) = (pod(&bed, ring()).await, pod(&bed, ring()).await);
    let (on_a, on_b) = (brief(&a), brief(&b));
    read(&on_a, "a").await;
    a.done("fill", 1).await;
    let (at, hand) = (a.wire.last_place(), bed.hand().await);
    let before = hand.look(&at).await.unwrap();
    eventually("it is stale in the store", async || {
        on_b.local().clear();
        let served = read(&on_b, "a").await;
        served.is_stale() && served.origin == Origin::Store
    })
    .await;
    b.done("fill", 1).await;
    let after = hand.look(&at).await.unwrap();
    assert!(before != after && !holds(&after, SECRET));
    let mut fresh = before.to_vec();
    fresh[44..52].copy_from_slice(&u64::MAX.to_be_bytes());
    hand.put(&at, &with_checksum(fresh, &at)).await;
    let c = pod(&bed, ring()).await;
    assert_eq!(read(&brief(&c), "a").await.origin, Origin::Loader);
    assert_eq!(c.cache.health().unusable_values, 1);
}

/// The version is what the store compares, so it is not under the seal; the value is.
async fn a_value_that_is_put_is_sealed_too(bed: Bed) {
    let (a, b) = (pod(&bed, ring()).await, pod(&bed, ring()).await);
    let entity = |pod: &Pod| {
        let load = |load: LoadContext<String, String>| async move {
            let value = format!("{SECRET}{}", load.key());
            Ok::<_, Refused>(Loaded::new(value).version(1))
        };
        pod.cache.entity_with("secret", load).build().unwrap()
    };
    let (on_a, on_b) = (entity(&a), entity(&b));
    read(&on_a, "a").await;
    a.done("fill", 1).await;
    let put = format!("{SECRET}another");
    let key = "a".to_owned();
    on_a.put_versioned(&key, put.clone(), 2).await.unwrap();
    let served = on_b.get_with(&key).await.unwrap();
    assert_eq!((&*served.value, served.origin), (&put, Origin::Store));
    let bytes = bed.hand().await.look(&b.wire.last_place()).await.unwrap();
    assert!(!holds(&bytes, SECRET));
}

async fn a_key_id_that_stands_for_two_keys_is_refused(bed: Bed) {
    let twice = ring().and(1, &NEW);
    let builder = Cache::builder("refused")
        .store_url("memory:")
        .seal(twice.clone());
    assert_eq!(builder.build().await.unwrap_err().option(), "seal");
    let pod = bed.pod().await;
    let built = pod.cache.entity("secret", load).seal(twice).build();
    assert_eq!(built.unwrap_err().option(), "seal");
}

on_both_stores!(
    pods_with_the_key_share_what_nobody_else_can_read,
    a_pod_without_the_key_misses_and_overwrites,
    values_survive_a_rotation_of_keys,
    what_was_tampered_with_is_a_miss_and_is_overwritten,
    a_value_that_is_not_sealed_is_a_miss_where_a_seal_is_demanded,
    an_entity_may_differ_from_its_cache,
    errors_and_long_keys_are_sealed_too,
    what_is_sealed_was_compressed_before,
    a_stale_value_is_sealed_and_refreshed_like_any_other,
    a_value_that_is_put_is_sealed_too,
    a_key_id_that_stands_for_two_keys_is_refused,
);
