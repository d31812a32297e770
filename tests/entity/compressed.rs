//! Values that are compressed in the store.

use crate::bed::{Bed, Pod};
use crate::source::Refused;
use tidings::{Compression, Entity, Origin};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const WAYS: [Compression; 2] = [Compression::Lz4, Compression::Zstd { level: 3 }];

type Texts = Entity<u64, String, Refused>;

/// A text of as many bytes as its key says.
async fn load(len: u64) -> Result<String, Refused> {
    Ok("good tidings ".chars().cycle().take(len as usize).collect())
}

fn texts(pod: &Pod, how: Option<Compression>) -> Texts {
    let entity = pod.cache.entity("text", load).compress_above(500);
    match how {
        Some(how) => entity.compress(how),
        None => entity,
    }
    .build()
    .unwrap()
}

/// Has a pod fill `key`, and gives the pod and how many bytes stand in the store.
async fn filled(bed: &Bed, how: Option<Compression>, key: u64) -> (Pod, usize) {
    let pod = bed.pod().await;
    let texts = texts(&pod, how);
    texts.invalidate(&key).await.unwrap();
    texts.get(&key).await.unwrap();
    pod.done("fill", 1).await;
    let bytes = bed.hand().await.look(&pod.wire.last_place()).await.unwrap();
    (pod, bytes.len())
}

async fn long_values_are_smaller_in_the_store_and_short_ones_as_they_are(bed: Bed) {
    for how in WAYS {
        let (_pod, long) = filled(&bed, Some(how), 10_000).await;
        assert!(long < 500, "{how:?}: {long}");
        let (_pod, short) = filled(&bed, Some(how), 400).await;
        assert_eq!(short, filled(&bed, None, 400).await.1, "{how:?}");
    }
}

async fn a_pod_without_the_option_reads_what_others_compressed(bed: Bed) {
    for how in WAYS {
        filled(&bed, Some(how), 10_000).await;
        let pod = bed.pod().await;
        let served = texts(&pod, None).get_with(&10_000).await.unwrap();
        assert_eq!((served.value.len(), served.origin), (10_000, Origin::Store));
        assert_eq!(pod.cache.health().unusable_values, 0);
    }
}

async fn compressed_bytes_that_lie_are_a_miss_and_are_overwritten(bed: Bed) {
    for how in WAYS {
        let (filler, _) = filled(&bed, Some(how), 10_000).await;
        let (hand, at) = (bed.hand().await, filler.wire.last_place());
        let good = hand.look(&at).await.unwrap().to_vec();
        // Another way, lengths from one byte to 4 GiB, damage inside; each with the right checksum.
        let edits: [(usize, &[u8]); 6] = [
            (64, &[9]),
            (65, &[0, 0, 0, 1]),
            (65, &[4, 0, 0, 0]),
            (65, &[255; 4]),
            (69, &[0x55; 12]),
            (good.len() - 14, &[0xFF; 6]),
        ];
        for (from, edit) in edits {
            let mut bad = good[..good.len() - 8].to_vec();
            bad[from..from + edit.len()].copy_from_slice(edit);
            bad.extend(xxh3_64_with_seed(&bad, at.place().hash).to_be_bytes());
            hand.put(&at, &bad).await;
            let (first, second) = (bed.pod().await, bed.pod().await);
            let served = texts(&first, Some(how)).get_with(&10_000).await.unwrap();
            let expected = (10_000, Origin::Loader);
            assert_eq!(
                (served.value.len(), served.origin),
                expected,
                "{how:?} {from}"
            );
            assert_eq!(first.cache.health().unusable_values, 1, "{how:?} {from}");
            first.done("fill", 1).await;
            let served = texts(&second, Some(how)).get_with(&10_000).await.unwrap();
            assert_eq!(served.origin, Origin::Store, "{how:?} {from}");
        }
    }
}

async fn a_level_that_zstd_has_not_is_refused(bed: Bed) {
    let pod = bed.pod().await;
    let entity = pod.cache.entity("text", load);
    let built = entity.compress(Compression::Zstd { level: 99 }).build();
    assert_eq!(built.unwrap_err().option(), "compress");
}

on_both_stores!(
    long_values_are_smaller_in_the_store_and_short_ones_as_they_are,
    a_pod_without_the_option_reads_what_others_compressed,
    compressed_bytes_that_lie_are_a_miss_and_are_overwritten,
    a_level_that_zstd_has_not_is_refused,
);
