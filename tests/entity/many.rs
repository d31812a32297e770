//! Many keys at once: read together, and each as if it were alone.

use crate::bed::{Bed, Numbers, Pod, eventually, poll_once, soon};
use crate::source::{Answer, Refused, Source};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tidings::{CacheError, EntityBuilder, Origin, StoreState, Ttl};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) type Got = Result<u64, CacheError<Refused>>;

impl Pod {
    /// Numbers that are loaded many at a time.
    pub(crate) fn many(&self, source: &Source) -> EntityBuilder<u64, Source> {
        let many = source.clone();
        self.builder(source).loader_many(move |keys| {
            let many = many.clone();
            async move { Ok(many.ask_many(keys).await) }
        })
    }

    /// As [`many`](Self::many), of an entity that has found its lists in the store so far: it reads the
    /// next one before it leases anything. Others lease at once.
    pub(crate) async fn many_that_are_there(&self, source: &Source) -> Numbers {
        let numbers = self.many(source).build().unwrap();
        let keys: Vec<_> = (900_000..900_200).collect();
        let fills = self.wire.done("fill_many");
        values(&numbers, &keys).await;
        self.done("fill_many", fills + 1).await;
        numbers.local().clear();
        values(&numbers, &keys).await;
        numbers
    }

    fn calls(&self) -> [u64; 4] {
        ["read_many", "lease_many", "fill_many", "read"].map(|call| self.wire.calls(call))
    }
}

pub(crate) async fn get(numbers: &Numbers, keys: &[u64]) -> Vec<Got> {
    let got = numbers.get_many(keys).await.into_iter();
    got.map(|got| got.map(|value| *value)).collect()
}

pub(crate) async fn values(numbers: &Numbers, keys: &[u64]) -> Vec<u64> {
    let got = soon("all keys", get(numbers, keys)).await;
    got.into_iter().map(Result::unwrap).collect()
}

pub(crate) fn reader(numbers: &Numbers, keys: &[u64]) -> JoinHandle<Vec<Got>> {
    let (numbers, keys) = (numbers.clone(), keys.to_vec());
    tokio::spawn(async move { get(&numbers, &keys).await })
}

fn reader_of_one(numbers: &Numbers, key: u64) -> JoinHandle<u64> {
    let numbers = numbers.clone();
    tokio::spawn(async move { *numbers.get(&key).await.unwrap() })
}

pub(crate) async fn running(source: &Source, loads: usize) {
    eventually("the loads run", async || source.running() == loads).await;
}

async fn values_come_in_the_order_of_the_keys_however_often_they_are_named(bed: Bed) {
    let source = Source::new();
    (1..=5).for_each(|key| source.commit(key, 10 * key));
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    numbers.get(&4).await.unwrap();
    let keys = [5, 1, 4, 1, 3, 5, 2, 5];
    let expected: Vec<_> = keys.iter().map(|key| 10 * key).collect();
    assert_eq!(values(&numbers, &keys).await, expected, "from everywhere");
    assert_eq!(values(&numbers, &keys).await, expected, "from here");
    let [mut batch] = <[_; 1]>::try_from(source.batches()).unwrap();
    batch.sort_unstable();
    assert_eq!(batch, [1, 2, 3, 5], "each once");
}

async fn cold_keys_are_one_lease_one_load_and_one_fill(bed: Bed) {
    let source = Source::new();
    let keys: Vec<_> = (0..100).collect();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    assert_eq!(values(&on_a, &keys).await, [0; 100]);
    a.done("fill_many", 1).await;
    assert_eq!(a.calls(), [0, 1, 1, 0]);
    assert_eq!((source.batches().len(), source.loads()), (1, 1));
    values(&on_a, &keys).await;
    assert_eq!(a.calls(), [0, 1, 1, 0], "they are kept here");

    let on_b = b.many(&source).build().unwrap();
    values(&on_b, &keys).await;
    assert_eq!(b.calls(), [0, 1, 0, 0], "and in the store");
    assert_eq!(on_b.get_with(&7).await.unwrap().origin, Origin::Local);
    assert_eq!(source.loads(), 1);
    assert_eq!(a.wire.calls("release"), 0, "no lease is given back");
}

async fn lists_that_are_mostly_there_are_read_and_lease_what_is_missing(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many_that_are_there(&source).await;
    let [reads, leases, fills, _] = pod.calls();
    numbers.local().clear();
    let keys: Vec<_> = (900_000..900_200).collect();
    values(&numbers, &keys).await;
    assert_eq!(pod.calls(), [reads + 1, leases, fills, 0]);
    numbers.local().clear();
    values(&numbers, &[1, 900_000, 2, 900_001]).await;
    pod.done("fill_many", fills + 1).await;
    assert_eq!(pod.calls(), [reads + 2, leases + 1, fills + 1, 0]);
    assert_eq!(source.batches()[1..], [vec![1, 2]]);
}

async fn lists_that_are_mostly_missing_again_lease_at_once_again(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many_that_are_there(&source).await;
    let mut lists = (0..).map(|n| (100 * n..100 * n + 100).collect::<Vec<_>>());
    for _ in 0..5 {
        let [reads, ..] = pod.calls();
        values(&numbers, &lists.next().unwrap()).await;
        if pod.calls()[0] == reads {
            return;
        }
    }
    panic!("five cold lists were read before they were leased");
}

async fn only_what_is_missing_goes_on_to_the_next_step(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    let on_b = b.many(&source).build().unwrap();
    values(&on_a, &[1, 2, 3]).await;
    a.done("fill_many", 1).await;
    on_b.get(&1).await.unwrap();
    values(&on_b, &[1, 2, 3, 4]).await;
    assert_eq!(source.batches(), [vec![1, 2, 3], vec![4]]);
}

async fn a_long_list_is_several_loads_side_by_side(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).max_batch(10).build().unwrap();
    source.hold();
    let keys: Vec<_> = (0..25).collect();
    let reader = reader(&numbers, &keys);
    running(&source, 3).await;
    source.let_go();
    assert_eq!(reader.await.unwrap().len(), 25);
    let mut sizes: Vec<_> = source.batches().iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 10, 10]);
    assert_eq!(pod.calls()[..2], [0, 1], "leased together");
}

async fn a_very_long_list_goes_to_the_store_in_parts(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    let keys: Vec<_> = (0..2_500).collect();
    assert_eq!(values(&numbers, &keys).await.len(), 2_500);
    assert_eq!(pod.calls()[..2], [0, 3]);
    let sizes: Vec<_> = source.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 2_500);
    assert_eq!(sizes.len(), 3);
}

async fn an_empty_list_asks_nobody(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    assert!(get(&numbers, &[]).await.is_empty());
    assert_eq!((pod.calls(), source.loads()), ([0; 4], 0));
}

async fn without_a_batch_loader_keys_are_loaded_one_by_one_within_the_limit(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.builder(&source).max_unleased_loads(4).build().unwrap();
    source.hold();
    let keys: Vec<_> = (0..20).collect();
    let reader = reader(&numbers, &keys);
    running(&source, 4).await;
    source.let_go();
    assert!(reader.await.unwrap().into_iter().all(|got| got.is_ok()));
    assert_eq!((source.loads(), source.peak()), (20, 4));
    pod.done("fill", 20).await;
    assert_eq!(pod.calls()[..2], [0, 1]);
}

async fn each_key_has_an_error_of_its_own(bed: Bed) {
    let source = Source::new();
    source.commit(1, 11);
    source.answer(2, Answer::Refusal(7));
    source.commit(3, 13);
    let pod = bed.pod().await;
    let lives = |refused: &Refused| (refused.0 == 8).then_some(Duration::from_secs(60));
    let numbers = pod.many(&source).error_ttl(lives).build().unwrap();
    for refusal in [7, 8, 9] {
        source.answer(2, Answer::Refusal(refusal));
        let got = get(&numbers, &[1, 2, 3]).await;
        assert_eq!(*got[0].as_ref().unwrap(), 11);
        assert_eq!(*got[2].as_ref().unwrap(), 13);
        let expected = if refusal == 9 { 8 } else { refusal };
        match &got[1] {
            Err(CacheError::Load(error)) => assert_eq!(**error, Refused(expected)),
            other => panic!("{other:?}"),
        }
        // What is not kept gives its lease back.
        pod.done("release", 1).await;
    }
    assert_eq!(
        source.batches(),
        [vec![1, 2, 3], vec![2]],
        "the second is kept"
    );
}

async fn an_error_of_the_whole_batch_is_the_answer_for_every_key(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let fails = |_: Vec<u64>| async { Err::<HashMap<u64, Result<u64, Refused>>, _>(Refused(5)) };
    let numbers = pod.builder(&source).loader_many(fails).build().unwrap();
    let got = numbers.get_many(&[1, 2]).await;
    let errors: Vec<_> = got
        .into_iter()
        .map(|got| match got {
            Err(CacheError::Load(error)) => error,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(*errors[0], Refused(5));
    assert!(Arc::ptr_eq(&errors[0], &errors[1]), "one copy");
    pod.done("release", 2).await;
    assert_eq!(*numbers.get(&1).await.unwrap(), 0, "nothing of it is kept");
}

async fn a_key_that_the_batch_loader_forgot_is_aborted_alone(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let forgets = |keys: Vec<u64>| async move {
        let answers = keys.into_iter().filter(|key| *key != 2);
        let answers: Vec<_> = answers.map(|key| (key, Ok(key))).collect();
        // Nobody asked for this one.
        Ok([answers, vec![(99, Ok(99))]].concat())
    };
    let numbers = pod.builder(&source).loader_many(forgets).build().unwrap();
    let got = get(&numbers, &[1, 2, 3]).await;
    assert_eq!(*got[0].as_ref().unwrap(), 1);
    assert!(matches!(got[1], Err(CacheError::LoadAborted)), "{got:?}");
    assert_eq!(*got[2].as_ref().unwrap(), 3);
    assert_eq!(numbers.peek(&99), None);
    // Its lease was given back: this one's outcome is stored.
    pod.done("release", 1).await;
    assert_eq!(*numbers.get(&2).await.unwrap(), 0);
    pod.done("fill", 1).await;
}

async fn what_is_not_to_be_kept_is_kept_nowhere(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let life = |key: &u64, _: &u64| if *key == 1 { Ttl::NONE } else { Ttl::Forever };
    let numbers = pod.many(&source).ttl_with(life).build().unwrap();
    values(&numbers, &[1, 2]).await;
    assert_eq!(
        (numbers.peek(&1), numbers.peek(&2).as_deref()),
        (None, Some(&0))
    );
    pod.done("release", 1).await;
    pod.done("fill_many", 1).await;
    numbers.local().clear();
    values(&numbers, &[1, 2]).await;
    assert_eq!(source.batches(), [vec![1, 2], vec![1]]);
}

async fn values_of_many_bytes_are_stored_in_several_round_trips(bed: Bed) {
    let pod = bed.pod().await;
    let text = |key: u64| vec![key as u8; 300_000];
    let load_many = move |keys: Vec<u64>| async move {
        Ok::<_, Refused>(keys.into_iter().map(move |key| (key, Ok(text(key)))))
    };
    let texts = pod
        .cache
        .entity("text", move |key: u64| async move { Ok(text(key)) });
    let texts = texts.loader_many(load_many).build().unwrap();
    let keys: Vec<_> = (0..10).collect();
    texts.get_many(&keys).await;
    pod.done("fill_many", 4).await;
    texts.local().clear();
    for (key, got) in keys.iter().zip(texts.get_many(&keys).await) {
        assert_eq!(*got.unwrap(), text(*key));
    }
    assert_eq!(pod.calls()[2], 4, "nothing was loaded again");
}

/// A pod; one without the store, where no lease keeps two loads of a key apart, if `alone`.
async fn pod_that_may_be_alone(bed: &Bed, alone: bool) -> Pod {
    let pod = bed.pod().await;
    pod.wire.cut(alone);
    eventually("the link is as it should be", async || {
        alone == matches!(pod.cache.health().store, StoreState::Down { .. })
    })
    .await;
    pod
}

async fn a_batch_joins_the_loads_of_single_reads(bed: Bed) {
    for alone in [false, true] {
        let source = Source::new();
        source.commit(2, 12);
        let pod = pod_that_may_be_alone(&bed, alone).await;
        let numbers = pod.many(&source).build().unwrap();
        source.hold();
        let single = reader_of_one(&numbers, 2);
        running(&source, 1).await;
        let many = reader(&numbers, &[1, 2, 3]);
        running(&source, 2).await;
        assert_eq!(source.batches(), [[1, 3]]);
        source.let_go();
        assert_eq!(soon("the single read", single).await.unwrap(), 12);
        assert_eq!(*many.await.unwrap()[1].as_ref().unwrap(), 12);
        assert_eq!(source.loads(), 2);
    }
}

async fn single_reads_join_the_keys_of_a_batch(bed: Bed) {
    for alone in [false, true] {
        let source = Source::new();
        (1..=3).for_each(|key| source.commit(key, key));
        let pod = pod_that_may_be_alone(&bed, alone).await;
        let numbers = pod.many(&source).build().unwrap();
        source.hold();
        let many = reader(&numbers, &[1, 2, 3]);
        running(&source, 1).await;
        let mut single = pin!(numbers.get(&2));
        poll_once(&mut single).await;
        let other = reader(&numbers, &[3, 4]);
        running(&source, 2).await;
        assert_eq!(source.batches(), [vec![1, 2, 3], vec![4]]);
        source.let_go();
        assert_eq!(*soon("the single read", single).await.unwrap(), 2);
        assert_eq!(*other.await.unwrap()[0].as_ref().unwrap(), 3);
        assert_eq!(many.await.unwrap().len(), 3);
        assert_eq!(source.loads(), 2);
    }
}

async fn a_key_that_another_pod_loads_is_waited_for(bed: Bed) {
    let source = Source::new();
    source.commit(2, 12);
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    let on_b = b.many(&source).build().unwrap();
    source.hold();
    let there = reader(&on_a, &[2]);
    running(&source, 1).await;
    let here = reader(&on_b, &[1, 2, 3]);
    running(&source, 2).await;
    b.done("lease_many", 1).await;
    source.let_go();
    let got = soon("the batch", here).await.unwrap();
    assert_eq!(*got[1].as_ref().unwrap(), 12);
    there.await.unwrap();
    assert_eq!(source.batches(), [vec![2], vec![1, 3]]);
}

async fn pods_that_want_the_same_cold_keys_load_each_once(bed: Bed) {
    let source = Source::new();
    let keys: Vec<_> = (0..200).collect();
    let mut readers = JoinSet::new();
    for n in 0..6 {
        let pod = bed.pod().await;
        let numbers = pod.many(&source).build().unwrap();
        let mut keys = keys.clone();
        keys.rotate_left(30 * n);
        readers.spawn(async move {
            let got = values(&numbers, &keys).await.len();
            drop(pod);
            got
        });
    }
    assert_eq!(soon("all pods", readers.join_all()).await, [200; 6]);
    let mut loaded = source.batches().concat();
    loaded.sort_unstable();
    assert_eq!(loaded, keys);
}

on_both_stores!(
    values_come_in_the_order_of_the_keys_however_often_they_are_named,
    cold_keys_are_one_lease_one_load_and_one_fill,
    lists_that_are_mostly_there_are_read_and_lease_what_is_missing,
    lists_that_are_mostly_missing_again_lease_at_once_again,
    only_what_is_missing_goes_on_to_the_next_step,
    a_long_list_is_several_loads_side_by_side,
    a_very_long_list_goes_to_the_store_in_parts,
    an_empty_list_asks_nobody,
    without_a_batch_loader_keys_are_loaded_one_by_one_within_the_limit,
    each_key_has_an_error_of_its_own,
    an_error_of_the_whole_batch_is_the_answer_for_every_key,
    a_key_that_the_batch_loader_forgot_is_aborted_alone,
    what_is_not_to_be_kept_is_kept_nowhere,
    values_of_many_bytes_are_stored_in_several_round_trips,
    a_batch_joins_the_loads_of_single_reads,
    single_reads_join_the_keys_of_a_batch,
    a_key_that_another_pod_loads_is_waited_for,
    pods_that_want_the_same_cold_keys_load_each_once,
);
