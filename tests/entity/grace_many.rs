//! Lists of keys that hold what has expired: each as a single read has it, and still together.

use crate::bed::{Bed, Numbers, Pod, eventually, soon};
use crate::many::{Got, get, reader, running, values};
use crate::source::{Answer, Source};
use std::time::{Duration, Instant};
use tidings::{CacheError, EntityBuilder, Refresh, Ttl};

const KEYS: [u64; 4] = [1, 2, 3, 4];
/// A life that is over soon.
const BRIEF: Duration = Duration::from_millis(40);
/// A life, or a grace, that no test outlives.
const LONG: Duration = Duration::from_secs(600);

/// Version 1 of odd keys is over soon; all else lives long.
fn graced(pod: &Pod, source: &Source) -> EntityBuilder<u64, Source> {
    let brief = |key: &u64, version: &u64| key % 2 == 1 && *version == 1;
    let ttl =
        move |key: &u64, version: &u64| Ttl::For(if brief(key, version) { BRIEF } else { LONG });
    pod.many(source).ttl_with(ttl).grace(LONG)
}

/// Loads version 1 of all keys, lets the life of the odd ones end, and commits version 2.
async fn age(pod: &Pod, numbers: &Numbers, source: &Source) {
    KEYS.iter().for_each(|key| source.commit(*key, 1));
    assert_eq!(values(numbers, &KEYS).await, [1; 4]);
    pod.done("fill_many", 1).await;
    let filled = Instant::now();
    eventually("their lives end", async || filled.elapsed() > 2 * BRIEF).await;
    KEYS.iter().for_each(|key| source.commit(*key, 2));
}

fn plain(got: Vec<Got>) -> Vec<u64> {
    got.into_iter().map(Result::unwrap).collect()
}

async fn stale_keys_of_a_list_are_served_at_once_and_refreshed_behind(bed: Bed) {
    for kept_here in [true, false] {
        let source = Source::new();
        let (a, b) = (bed.pod().await, bed.pod().await);
        let on_a = graced(&a, &source).build().unwrap();
        let on_b = graced(&b, &source).build().unwrap();
        age(&a, &on_a, &source).await;
        let numbers = if kept_here { &on_a } else { &on_b };
        source.hold();
        for _ in 0..3 {
            assert_eq!(values(numbers, &KEYS).await, [1; 4]);
        }
        running(&source, 2).await;
        source.let_go();
        eventually("the refreshes end", async || {
            values(numbers, &KEYS).await == [2, 1, 2, 1]
        })
        .await;
        assert_eq!(source.loads(), 3, "one for all, and one for each refresh");
        on_a.clear().await.unwrap();
    }
}

/// A list of many stale keys is no flood of loads.
async fn refreshes_behind_a_list_take_turns(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let keys: Vec<u64> = (0..40).map(|n| 2 * n + 1).collect();
    let numbers = graced(&pod, &source).max_unleased_loads(4).build().unwrap();
    keys.iter().for_each(|key| source.commit(*key, 1));
    values(&numbers, &keys).await;
    let filled = Instant::now();
    eventually("their lives end", async || filled.elapsed() > 2 * BRIEF).await;
    keys.iter().for_each(|key| source.commit(*key, 2));
    source.hold();
    assert_eq!(values(&numbers, &keys).await, [1; 40]);
    running(&source, 4).await;
    source.let_go();
    eventually("all are refreshed", async || {
        values(&numbers, &keys).await == [2; 40]
    })
    .await;
    assert!(source.peak() <= 4, "{} at once", source.peak());
}

async fn ahead_stale_keys_of_a_list_are_replaced_together(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = graced(&a, &source).build().unwrap();
    age(&a, &on_a, &source).await;
    let on_b = graced(&b, &source).refresh(Refresh::Ahead).build().unwrap();
    source.commit(5, 2);
    assert_eq!(values(&on_b, &[1, 2, 3, 4, 5]).await, [2, 1, 2, 1, 2]);
    let mut batch = source.batches().pop().unwrap();
    batch.sort_unstable();
    assert_eq!(batch, [1, 3, 5], "with what is cold");
    b.done("fill_many", 1).await;
    for (call, count) in [("read_many", 0), ("lease_many", 2), ("fill_many", 1)] {
        assert_eq!(b.wire.calls(call), count, "{call}");
    }
    assert_eq!((b.wire.calls("lease"), b.wire.calls("fill")), (0, 0));
    b.done("release", 2).await; // those that stood beside a value
    on_b.local().clear();
    assert_eq!(values(&on_b, &[1, 2, 3, 4, 5]).await, [2, 1, 2, 1, 2]);
    assert_eq!(source.loads(), 2, "they are stored");
}

async fn ahead_a_list_falls_back_on_what_is_stale_where_loads_fail(bed: Bed) {
    // What is kept in no process is found in the store once more.
    for local_ttl in [Duration::MAX, Duration::ZERO] {
        let source = Source::new();
        let pod = bed.pod().await;
        let numbers = graced(&pod, &source)
            .refresh(Refresh::Ahead)
            .local_ttl(local_ttl);
        let numbers = numbers.build().unwrap();
        age(&pod, &numbers, &source).await;
        source.answer(1, Answer::Refusal(7));
        source.answer(5, Answer::Refusal(8));
        let got = soon("the list", get(&numbers, &[1, 2, 3, 5])).await;
        assert!(
            matches!(got[3], Err(CacheError::Load(_))),
            "it has no value"
        );
        assert_eq!(plain(got[..3].to_vec()), [1, 1, 2]);
        let loads = source.loads();
        assert_eq!(plain(get(&numbers, &[1]).await), [1]);
        assert_eq!(source.loads(), loads, "it is left alone for a while");
        numbers.clear().await.unwrap();
    }
}

async fn ahead_a_batch_that_panics_leaves_what_is_stale(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = graced(&pod, &source).refresh(Refresh::Ahead);
    let numbers = numbers.build().unwrap();
    age(&pod, &numbers, &source).await;
    source.answer(1, Answer::Panic);
    let got = soon("the list", get(&numbers, &KEYS)).await;
    assert_eq!(plain(got), [1; 4]);
    let loads = source.loads();
    assert_eq!(values(&numbers, &KEYS).await, [1; 4]);
    assert_eq!(source.loads(), loads, "they are left alone for a while");
}

async fn ahead_a_list_waits_for_the_soft_timeout_where_something_is_stale(bed: Bed) {
    for local_ttl in [Duration::MAX, Duration::ZERO] {
        let source = Source::new();
        let pod = bed.pod().await;
        let numbers = graced(&pod, &source)
            .refresh(Refresh::Ahead)
            .soft_timeout(Duration::from_millis(20))
            .local_ttl(local_ttl);
        let numbers = numbers.build().unwrap();
        age(&pod, &numbers, &source).await;
        source.hold();
        assert_eq!(values(&numbers, &KEYS).await, [1; 4]);
        running(&source, 1).await; // it goes on
        assert_eq!(values(&numbers, &KEYS).await, [1; 4]);
        let cold = reader(&numbers, &[9]);
        running(&source, 2).await;
        source.let_go();
        assert_eq!(
            plain(cold.await.unwrap()),
            [0],
            "what is cold is waited for"
        );
        eventually("what goes on is kept", async || {
            values(&numbers, &KEYS).await == [2, 1, 2, 1]
        })
        .await;
        numbers.clear().await.unwrap();
    }
}

async fn an_invalidated_key_of_a_list_is_never_served_stale(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = graced(&pod, &source).refresh(Refresh::Ahead);
    let numbers = numbers.build().unwrap();
    age(&pod, &numbers, &source).await;
    source.hold();
    let list = reader(&numbers, &KEYS);
    running(&source, 1).await;
    KEYS.iter()
        .for_each(|key| source.answer(*key, Answer::Refusal(7)));
    numbers.invalidate(&1).await.unwrap();
    let after = reader(&numbers, &[1, 3]);
    running(&source, 2).await;
    source.let_go();
    assert_eq!(plain(list.await.unwrap()), [2, 1, 2, 1], "it asked before");
    let got = soon("who asked after", after).await.unwrap();
    assert!(matches!(got[0], Err(CacheError::Load(_))), "{got:?}");
    assert_eq!(*got[1].as_ref().unwrap(), 2);
}

on_both_stores!(
    stale_keys_of_a_list_are_served_at_once_and_refreshed_behind,
    refreshes_behind_a_list_take_turns,
    ahead_stale_keys_of_a_list_are_replaced_together,
    ahead_a_list_falls_back_on_what_is_stale_where_loads_fail,
    ahead_a_batch_that_panics_leaves_what_is_stale,
    ahead_a_list_waits_for_the_soft_timeout_where_something_is_stale,
    an_invalidated_key_of_a_list_is_never_served_stale,
);
