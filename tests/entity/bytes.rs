//! Whatever stands in the store, and whatever a key is made of.

use crate::bed::{Bed, Pod};
use crate::source::{Refused, Source};
use crate::wire::{Hand, OwnedPlace};
use proptest::prelude::*;
use tidings::{Entity, Origin};

/// A pod that has filled key 1 with 11, where that is in the store, and the bytes.
async fn filled(bed: &Bed, source: &Source) -> (Pod, OwnedPlace, Hand, Vec<u8>) {
    source.commit(1, 11);
    let pod = bed.pod().await;
    pod.numbers(source).get(&1).await.unwrap();
    pod.done("fill", 1).await;
    let (hand, at) = (bed.hand().await, pod.wire.last_place());
    let bytes = hand.look(&at).await.unwrap().to_vec();
    (pod, at, hand, bytes)
}

async fn stored_bytes_that_cannot_be_used_are_a_miss_and_are_overwritten(bed: Bed) {
    let source = Source::new();
    let (filler, at, hand, good) = filled(&bed, &source).await;
    let mut bad: Vec<Vec<u8>> = vec![Vec::new(), b"rubbish".to_vec(), vec![0xFF; 200]];
    bad.extend([1, 27, 28, 40, good.len() - 1].map(|len| good[..len].to_vec()));
    bad.push([&good[..], b"more"].concat());
    // Each kind of field once: magic, version, state, codec, token, times, schema, payload, checksum.
    for at in [0, 1, 2, 3, 5, 30, 38, 57, good.len() - 9, good.len() - 1] {
        let mut changed = good.clone();
        changed[at] ^= 0x55;
        bad.push(changed);
    }
    filler.numbers(&source).get(&2).await.unwrap();
    filler.done("fill", 2).await;
    let foreign = hand.look(&filler.wire.last_place()).await.unwrap();
    bad.push(foreign.to_vec());
    for bytes in bad {
        hand.put(&at, &bytes).await;
        let (pod, other) = (bed.pod().await, bed.pod().await);
        let served = pod.numbers(&source).get_with(&1).await.unwrap();
        assert_eq!(
            (*served.value, served.origin),
            (11, Origin::Loader),
            "{bytes:x?}"
        );
        assert_eq!(pod.cache.health().unusable_values, 1, "{bytes:x?}");
        let served = other.numbers(&source).get_with(&1).await.unwrap();
        assert_eq!(
            (*served.value, served.origin),
            (11, Origin::Store),
            "{bytes:x?}"
        );
        assert_eq!(other.cache.health().unusable_values, 0);
    }
}

async fn a_value_of_another_schema_or_type_is_a_miss(bed: Bed) {
    let source = Source::new();
    let (_pod, ..) = filled(&bed, &source).await;
    let raised = bed.pod().await;
    let numbers = raised.builder(&source).schema(2).build().unwrap();
    assert_eq!(numbers.get_with(&1).await.unwrap().origin, Origin::Loader);
    raised.done("fill", 1).await;
    let named = bed.pod().await;
    let load = |key: u64| async move { Ok::<_, Refused>(format!("number {key}")) };
    let names = named
        .cache
        .entity("number", load)
        .schema(2)
        .build()
        .unwrap();
    assert_eq!(*names.get(&1).await.unwrap(), "number 1");
    for pod in [&raised, &named] {
        assert_eq!(pod.cache.health().unusable_values, 1);
    }
}

/// An entity whose values are its keys.
fn mirror<K>(pod: &Pod) -> Entity<K, K, Refused>
where
    K: tidings::Key + serde::Serialize + serde::de::DeserializeOwned,
{
    let load = |key: K| async move { Ok(key) };
    pod.cache.entity("mirror", load).build().unwrap()
}

/// Each key has a value of its own, in every pod, until it is invalidated.
async fn keys_are_kept_apart<K>(bed: &Bed, keys: &[K])
where
    K: tidings::Key + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (mirror(&a), mirror(&b));
    for (count, key) in (1..).zip(keys) {
        assert_eq!(&*on_a.get(key).await.unwrap(), key);
        a.done("fill", count).await;
    }
    for key in keys {
        let served = on_b.get_with(key).await.unwrap();
        assert_eq!((&*served.value, served.origin), (key, Origin::Store));
        assert_eq!(on_a.peek(key).as_deref(), Some(key));
    }
    on_b.invalidate_many(keys).await.unwrap();
    assert!(keys.iter().all(|key| on_b.peek(key).is_none()));
}

async fn keys_may_be_any_bytes_of_any_length(bed: Bed) {
    let mut keys: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        b"{}:%/*?[]".to_vec(),
        b"#".to_vec(),
        b"%23".to_vec(),
        b" \r\n\t".to_vec(),
        (0..=255).collect(),
    ];
    // As long as is kept in plain, one more, and long ones that differ at the end alone.
    for len in [1023, 1024, 1025, 5000, 70_000] {
        for end in 0..3 {
            let mut key = vec![b'k'; len];
            key[len - 1] = end;
            keys.push(key);
        }
        keys.push(vec![b'k'; len]);
    }
    keys_are_kept_apart(&bed, &keys).await;
}

async fn tuples_with_the_same_text_are_different_keys(bed: Bed) {
    let keys = [
        ("a/b", "c"),
        ("a", "b/c"),
        ("a%2Fb", "c"),
        ("", "a/b/c"),
        ("a/b/c", ""),
    ];
    let keys = keys.map(|(one, two)| (one.to_owned(), two.to_owned()));
    keys_are_kept_apart(&bed, &keys).await;
}

/// Bytes of any sort, and bytes that once were a value.
#[derive(Clone, Debug)]
enum Garbage {
    Any(Vec<u8>),
    Damaged {
        cut: Option<usize>,
        changes: Vec<(usize, u8)>,
        more: Vec<u8>,
    },
}

fn garbage() -> impl Strategy<Value = Garbage> {
    let changes = prop::collection::vec((0..100_usize, any::<u8>()), 0..4);
    let more = prop::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Garbage::Any),
        (prop::option::of(0..100_usize), changes, more)
            .prop_map(|(cut, changes, more)| Garbage::Damaged { cut, changes, more }),
    ]
}

impl Garbage {
    fn bytes(self, good: &[u8]) -> Vec<u8> {
        match self {
            Self::Any(bytes) => bytes,
            Self::Damaged { cut, changes, more } => {
                let mut bytes = good[..cut.unwrap_or(good.len()).min(good.len())].to_vec();
                for (at, byte) in changes {
                    if let Some(there) = bytes.get_mut(at) {
                        *there = byte;
                    }
                }
                bytes.extend(more);
                bytes
            }
        }
    }
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

#[test]
fn no_bytes_in_the_store_make_a_wrong_value_or_a_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let source = Source::new();
    let bed = Bed::memory();
    let (pod, at, hand, good) = runtime.block_on(filled(&bed, &source));
    let numbers = pod.numbers(&source);
    proptest!(cases(400), |(garbage in garbage())| {
        let bytes = garbage.bytes(&good);
        let value = runtime.block_on(async {
            hand.put(&at, &bytes).await;
            numbers.local().clear();
            *numbers.get(&1).await.unwrap()
        });
        prop_assert_eq!(value, 11);
    });
}

#[test]
fn any_keys_are_kept_apart() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = prop::collection::vec(any::<u8>(), 0..40);
    let keys = prop::collection::btree_set(key, 0..8);
    proptest!(cases(60), |(keys in keys)| {
        let keys: Vec<_> = keys.into_iter().collect();
        runtime.block_on(keys_are_kept_apart(&Bed::memory(), &keys));
    });
}

on_both_stores!(
    stored_bytes_that_cannot_be_used_are_a_miss_and_are_overwritten,
    a_value_of_another_schema_or_type_is_a_miss,
    keys_may_be_any_bytes_of_any_length,
    tuples_with_the_same_text_are_different_keys,
);
