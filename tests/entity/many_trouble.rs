//! Many keys at once, when something comes in between: invalidations, dropped calls, a store that
//! is away, a loader that panics.

use crate::bed::{Bed, PATIENCE, eventually, poll_once, soon};
use crate::dropped::dropped_after;
use crate::many::{get, reader, running, values};
use crate::source::{Answer, Source};
use std::pin::pin;
use std::time::Duration;
use tidings::error::StoreErrorKind;
use tidings::store::Memory;
use tidings::{CacheError, InvalidateError, Origin, StoreState};

/// A batch reads version 0 of its keys; version 1 of one is committed, and invalidated; the load ends.
async fn an_invalidation_fences_its_key_of_a_batch_and_no_other(bed: Bed) {
    for (by_the_loading_pod, base) in [(true, 10), (false, 20)] {
        let source = Source::new();
        let keys = [base, base + 1, base + 2];
        let (a, b) = (bed.pod().await, bed.pod().await);
        let on_a = a.many(&source).build().unwrap();
        let on_b = b.many(&source).build().unwrap();
        source.hold();
        let old = reader(&on_a, &keys);
        running(&source, 1).await;
        source.commit(keys[1], 1);
        let heard = a.cache.health().hints;
        let by = if by_the_loading_pod { &on_a } else { &on_b };
        by.invalidate(&keys[1]).await.unwrap();
        eventually("the hint", async || a.cache.health().hints > heard).await;
        let mut new = pin!(on_a.get_many(&keys[1..2]));
        poll_once(&mut new).await;
        source.let_go();
        let got = soon("the old reader", old).await.unwrap();
        assert!(
            got.into_iter().all(|got| got.unwrap() == 0),
            "it may have it"
        );
        assert_eq!(**soon("the new reader", new).await[0].as_ref().unwrap(), 1);
        a.done("fill_many", 2).await;
        assert_eq!(values(&on_b, &keys).await, [0, 1, 0]);
        assert_eq!(values(&on_a, &keys).await, [0, 1, 0]);
        assert!(on_a.peek(&keys[0]).is_some(), "the others are kept");
        assert_eq!(source.loads(), 2, "and stored");
    }
}

async fn a_clear_fences_all_keys_of_a_batch(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    let on_b = b.many(&source).build().unwrap();
    source.hold();
    let old = reader(&on_a, &[1, 2]);
    running(&source, 1).await;
    source.commit(1, 1);
    source.commit(2, 1);
    on_a.clear().await.unwrap();
    source.let_go();
    old.await.unwrap();
    a.done("fill_many", 1).await;
    assert_eq!((on_a.peek(&1), on_a.peek(&2)), (None, None));
    assert_eq!(values(&on_b, &[1, 2]).await, [1, 1]);
    assert_eq!(values(&on_a, &[1, 2]).await, [1, 1]);
}

/// The store answers a batch with version 0, and the answer is late; version 1 of one key is
/// invalidated, and the hint applied; the answer arrives.
async fn a_late_answer_for_many_is_not_kept_where_an_invalidation_overtook_it(bed: Bed) {
    for operation in ["lease_many", "read_many"] {
        a_late_answer_is_not_kept(&bed, operation).await;
    }
}

async fn a_late_answer_is_not_kept(bed: &Bed, operation: &'static str) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    let on_b = match operation {
        "read_many" => b.many_that_are_there(&source).await,
        _ => b.many(&source).build().unwrap(),
    };
    let first = if operation == "read_many" { 0 } else { 1_000 };
    for (n, base) in (first..).step_by(3).enumerate() {
        let keys = [base, base + 1, base + 2];
        values(&on_a, &keys).await;
        eventually("they are stored", async || {
            a.wire.done("fill_many") > n as u64
        })
        .await;
        let (answers, heard) = (b.wire.done(operation), b.cache.health().hints);
        b.wire.hold_answers(operation);
        let old = reader(&on_b, &keys);
        b.done(operation, answers + 1).await;
        source.commit(keys[1], 1);
        on_a.invalidate(&keys[1]).await.unwrap();
        eventually("the hint", async || b.cache.health().hints > heard).await;
        b.wire.heal();
        let late = *old.await.unwrap()[1].as_ref().unwrap() == 0;
        assert_eq!(values(&on_b, &keys).await, [0, 1, 0]);
        // If all this took longer than a read may take, they were loaded: another try.
        if late {
            return;
        }
    }
}

async fn a_pending_invalidation_hides_its_key_of_a_batch(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    values(&numbers, &[1, 2]).await;
    pod.done("fill_many", 1).await;
    source.commit(1, 1);
    pod.wire.hang("invalidate");
    let call = tokio::spawn({
        let numbers = numbers.clone();
        async move { numbers.invalidate(&1).await.map(drop) }
    });
    eventually("the call", async || pod.wire.calls("invalidate") == 1).await;
    numbers.local().clear();
    assert_eq!(values(&numbers, &[1, 2]).await, [1, 0]);
    assert_eq!(source.batches(), [vec![1, 2], vec![1]]);
    pod.wire.heal();
    soon("the call", call).await.unwrap().unwrap();
}

async fn a_value_that_cannot_be_read_is_loaded_among_the_others(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let on_a = a.many(&source).build().unwrap();
    on_a.get(&1).await.unwrap();
    a.done("fill", 1).await;
    let (hand, at) = (bed.hand().await, a.wire.last_place());
    values(&on_a, &[2, 3]).await;
    a.done("fill_many", 1).await;
    let mut bytes = hand.look(&at).await.unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 0xFF;
    hand.put(&at, &bytes).await;
    let on_b = b.many(&source).build().unwrap();
    values(&on_b, &[1, 2, 3]).await;
    assert_eq!(b.cache.health().unusable_values, 1);
    assert_eq!(source.batches(), [vec![2, 3], vec![1]]);
    b.done("fill_many", 1).await;
    assert_ne!(hand.look(&at).await.unwrap(), bytes);
}

/// Drops calls at every poll, each on keys of its own; afterwards all is as if they had never been, or
/// had ended.
async fn dropping_a_batch_at_any_poll_leaves_no_flight_and_no_lease(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    for (n, first) in ["lease, one by one", "lease", "read"]
        .into_iter()
        .enumerate()
    {
        let on_a = match first {
            "lease, one by one" => a.numbers(&source),
            "lease" => a.many(&source).max_batch(2).build().unwrap(),
            _ => a.many_that_are_there(&source).await,
        };
        let on_b = match first {
            "lease, one by one" => b.numbers(&source),
            _ => b.many(&source).build().unwrap(),
        };
        let mut key = 1_000 * n as u64;
        let mut polls = 0;
        loop {
            let keys = [key, key + 1, key + 2];
            // One of them stands in the store already.
            on_b.get(&keys[1]).await.unwrap();
            let ended = dropped_after(polls, on_a.get_many(&keys)).await;
            assert_eq!(values(&on_a, &keys).await, [0; 3], "they serve here");
            // Were a lease still there, nothing would be stored, and all of it loaded again.
            let loads = source.loads();
            assert_eq!(values(&on_b, &keys).await, [0; 3], "and there");
            eventually("they are stored", async || {
                on_b.local().clear();
                let mut stored = true;
                for key in &keys {
                    stored &= on_b.get_with(key).await.unwrap().origin == Origin::Store;
                }
                stored
            })
            .await;
            assert_eq!(source.loads(), loads, "after {polls} polls");
            key += 3;
            polls += 1;
            if ended {
                break;
            }
        }
    }
}

async fn leases_whose_answer_comes_too_late_are_given_back(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    pod.wire.hold_answers("lease_many");
    let many = reader(&numbers, &[1, 2, 3]);
    pod.done("lease_many", 1).await;
    many.abort();
    pod.done("release", 3).await;
    pod.wire.heal();
    values(&numbers, &[1, 2, 3]).await;
    pod.done("fill_many", 1).await;
}

async fn a_batch_that_nobody_waits_for_is_dropped_and_its_leases_returned(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    // Longer than the test waits for anything: nothing else ends the load.
    let on_a = a.many(&source).load_timeout(10 * PATIENCE);
    let on_a = on_a.build().unwrap();
    let on_b = b.many(&source).build().unwrap();
    source.hold();
    let many = reader(&on_a, &[1, 2, 3]);
    running(&source, 1).await;
    many.abort();
    running(&source, 0).await;
    a.done("release", 3).await;
    assert_eq!((source.ended(), a.wire.calls("fill_many")), (0, 0));
    source.let_go();
    // Were a lease still there, this would have to outwait it and could not store its outcome.
    values(&on_b, &[1, 2, 3]).await;
    b.done("fill_many", 1).await;
    values(&on_a, &[1, 2, 3]).await;
    assert_eq!(source.batches().len(), 2);
}

async fn a_batch_goes_on_for_whoever_waits_for_one_of_its_keys(bed: Bed) {
    let source = Source::new();
    source.commit(2, 12);
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    source.hold();
    let many = reader(&numbers, &[1, 2, 3]);
    running(&source, 1).await;
    let mut single = pin!(numbers.get(&2));
    poll_once(&mut single).await;
    many.abort();
    assert!(many.await.unwrap_err().is_cancelled());
    source.let_go();
    assert_eq!(*soon("the other reader", single).await.unwrap(), 12);
    assert_eq!(source.loads(), 1, "it was not started again");
    eventually("all are kept", async || {
        [1, 2, 3].iter().all(|key| numbers.peek(key).is_some())
    })
    .await;
}

async fn the_lead_of_a_batch_falls_to_whoever_waits_when_it_is_dropped_before_it_loads(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let leases = pod.many(&source).build().unwrap();
    let reads = pod.many_that_are_there(&source).await;
    let steps = [
        (&leases, "lease_many"),
        (&reads, "read_many"),
        (&reads, "lease_many"),
    ];
    for (base, (numbers, operation)) in (0..).step_by(10).zip(steps) {
        let keys = [base, base + 1, base + 2];
        pod.wire.hang(operation);
        let calls = pod.wire.calls(operation);
        let many = reader(numbers, &keys);
        eventually("it is on its way", async || {
            pod.wire.calls(operation) > calls
        })
        .await;
        let mut single = pin!(numbers.get(&keys[1]));
        poll_once(&mut single).await;
        let other = reader(numbers, &keys);
        many.abort();
        pod.wire.heal();
        assert_eq!(*soon("a single read", single).await.unwrap(), 0);
        let other = soon("another batch", other).await.unwrap();
        assert!(other.into_iter().all(|got| got.is_ok()));
    }
}

async fn a_caller_gets_what_is_there_at_the_limit_and_the_rest_is_loaded_all_the_same(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let limit = Duration::from_millis(200);
    let numbers = pod.many(&source).load_timeout(limit).build().unwrap();
    numbers.get(&2).await.unwrap();
    source.hold();
    let got = get(&numbers, &[1, 2, 3]).await;
    for at in [0, 2] {
        assert!(matches!(got[at], Err(CacheError::Timeout { after }) if after == limit));
    }
    assert_eq!(*got[1].as_ref().unwrap(), 0);
    source.let_go();
    eventually("they are kept", async || {
        numbers.peek(&1).is_some() && numbers.peek(&3).is_some()
    })
    .await;
}

async fn a_batch_loader_that_panics_fails_its_own_keys_once(bed: Bed) {
    let source = Source::new();
    source.answer(2, Answer::Panic);
    let pod = bed.pod().await;
    let numbers = pod.many(&source).max_batch(2).build().unwrap();
    let got = soon("the batches", get(&numbers, &[1, 2, 3, 4])).await;
    for aborted in &got[..2] {
        assert!(matches!(aborted, Err(CacheError::LoadAborted)), "{got:?}");
    }
    assert!(got[2].is_ok() && got[3].is_ok(), "{got:?}");
    pod.done("release", 2).await;
    source.commit(2, 12);
    assert_eq!(values(&numbers, &[1, 2, 3, 4]).await, [0, 12, 0, 0]);
}

async fn without_the_store_a_batch_is_loaded_within_the_limit(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let many = pod.many(&source).max_batch(10).max_unleased_loads(2);
    let numbers = many.build().unwrap();
    pod.wire.cut(true);
    pod.is_down().await;
    source.hold();
    let keys: Vec<_> = (0..50).collect();
    let reader = reader(&numbers, &keys);
    running(&source, 2).await;
    source.let_go();
    let got = soon("the batch", reader).await.unwrap();
    assert!(got.into_iter().all(|got| got.is_ok()));
    assert_eq!((source.peak(), source.loads()), (2, 5));
}

async fn a_store_that_fails_at_any_step_costs_a_batch_nothing_but_the_store(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let leases = pod.many(&source).build().unwrap();
    let reads = pod.many_that_are_there(&source).await;
    let steps = [
        (&leases, "lease_many"),
        (&leases, "fill_many"),
        (&reads, "read_many"),
        (&reads, "lease_many"),
        (&reads, "fill_many"),
    ];
    for (base, (numbers, operation)) in (0..).step_by(10).zip(steps) {
        let keys = [base, base + 1, base + 2];
        let loads = source.loads();
        pod.wire.hang(operation);
        // Were it held up, this would end in `Timeout` after five seconds.
        assert_eq!(values(numbers, &keys).await, [0; 3], "{operation} hangs");
        assert_eq!(source.loads(), loads + 1);
        pod.wire.heal();

        let keys = [base + 3, base + 4];
        let calls = pod.wire.calls(operation);
        pod.wire.hang(operation);
        let reader = reader(numbers, &keys);
        eventually("it is on its way", async || {
            pod.wire.calls(operation) > calls
        })
        .await;
        pod.wire.cut(true);
        let got = soon("the batch", reader).await.unwrap();
        assert!(
            got.into_iter().all(|got| got.is_ok()),
            "{operation} is cut off"
        );
        pod.is_down().await;
        pod.wire.heal();
        eventually("the link is up", async || {
            matches!(pod.cache.health().store, StoreState::Up)
        })
        .await;
    }
}

/// Time stands still: the next poll is refused as well, and with it the link is given up.
#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_writes_costs_a_batch_nothing_but_the_leases() {
    for kind in [StoreErrorKind::Full, StoreErrorKind::ReadOnly] {
        let store = Memory::new();
        let (bed, source) = (Bed::on(store.clone()), Source::new());
        let pod = bed.pod().await;
        let numbers = pod.many(&source).build().unwrap();
        values(&numbers, &[1, 2]).await;
        pod.done("fill_many", 1).await;
        numbers.local().clear();
        store.faults().set_error(Some(kind));
        assert_eq!(values(&numbers, &[1, 2, 3]).await, [0; 3]);
        assert_eq!(
            source.batches(),
            [vec![1, 2], vec![3]],
            "what is there is read"
        );
        assert_eq!(pod.wire.calls("release"), 0, "no lease was granted");
        store.faults().set_error(None);
    }
}

async fn a_closed_cache_serves_a_batch_nothing_it_would_have_to_load(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.many(&source).build().unwrap();
    source.hold();
    let caught = reader(&numbers, &[1, 2]);
    running(&source, 1).await;
    pod.cache.close().await;
    for got in soon("the batch", caught).await.unwrap() {
        assert!(matches!(got, Err(CacheError::Closed)), "{got:?}");
    }
    for got in get(&numbers, &[1, 3]).await {
        assert!(matches!(got, Err(CacheError::Closed)), "{got:?}");
    }
    let closed = numbers.invalidate(&1).await;
    assert!(matches!(closed, Err(InvalidateError::Closed)));
}

on_both_stores!(
    an_invalidation_fences_its_key_of_a_batch_and_no_other,
    a_clear_fences_all_keys_of_a_batch,
    a_late_answer_for_many_is_not_kept_where_an_invalidation_overtook_it,
    a_pending_invalidation_hides_its_key_of_a_batch,
    a_value_that_cannot_be_read_is_loaded_among_the_others,
    dropping_a_batch_at_any_poll_leaves_no_flight_and_no_lease,
    leases_whose_answer_comes_too_late_are_given_back,
    a_batch_that_nobody_waits_for_is_dropped_and_its_leases_returned,
    a_batch_goes_on_for_whoever_waits_for_one_of_its_keys,
    the_lead_of_a_batch_falls_to_whoever_waits_when_it_is_dropped_before_it_loads,
    a_caller_gets_what_is_there_at_the_limit_and_the_rest_is_loaded_all_the_same,
    a_batch_loader_that_panics_fails_its_own_keys_once,
    without_the_store_a_batch_is_loaded_within_the_limit,
    a_store_that_fails_at_any_step_costs_a_batch_nothing_but_the_store,
    a_closed_cache_serves_a_batch_nothing_it_would_have_to_load,
);
