//! Forgetting, while nothing and while something is under way.

use crate::bed::{Bed, eventually, getter, refresher};

#[tokio::test]
async fn an_invalidated_key_is_computed_anew_and_others_are_not() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    numbers.get(&2).await.unwrap();
    bed.source.commit(1, 11);
    bed.source.commit(2, 22);
    numbers.invalidate(&1);
    assert_eq!(numbers.peek(&1), None);
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
    assert_eq!(numbers.get(&2).await.unwrap(), 0);
}

/// 1. A computation begins, and sees the old value. 2. The key is invalidated. 3. It ends.
#[tokio::test]
async fn a_computation_that_an_invalidation_overtook_is_neither_kept_nor_joined() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    bed.source.hold();
    let before = getter(&numbers, 1);
    bed.source.runs(1).await;
    bed.source.commit(1, 12);
    numbers.invalidate(&1);
    let after = getter(&numbers, 1);
    bed.source.runs(2).await;
    bed.source.let_go();
    assert_eq!(before.await.unwrap().unwrap(), 11, "it asked before");
    assert_eq!(after.await.unwrap().unwrap(), 12);
    assert_eq!(numbers.get(&1).await.unwrap(), 12);
    assert_eq!(bed.source.begun(), 2);
}

#[tokio::test]
async fn the_overtaken_outcome_is_not_kept_when_nobody_asked_since() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let before = getter(&numbers, 1);
    bed.source.runs(1).await;
    numbers.invalidate(&1);
    bed.source.let_go();
    before.await.unwrap().unwrap();
    assert_eq!(numbers.peek(&1), None);
}

#[tokio::test]
async fn a_refresh_that_an_invalidation_overtook_is_not_kept() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.hold();
    let refresh = refresher(&numbers, 1);
    bed.source.runs(1).await;
    numbers.invalidate(&1);
    assert_eq!(numbers.peek(&1), None, "nor is the old value served");
    bed.source.let_go();
    assert_eq!(refresh.await.unwrap().unwrap(), 11);
    assert_eq!(numbers.peek(&1), None);
}

#[tokio::test]
async fn clear_forgets_everything_and_overtakes_every_computation() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    for key in 0..100 {
        numbers.get(&key).await.unwrap();
    }
    bed.source.hold();
    let calls: Vec<_> = (100..150).map(|key| getter(&numbers, key)).collect();
    bed.source.runs(50).await;
    numbers.clear();
    assert_eq!(numbers.stats().entries, 0);
    bed.source.let_go();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(numbers.stats().entries, 0);
    bed.source.commit(100, 7);
    assert_eq!(numbers.get(&100).await.unwrap(), 7);
}

/// Reads, refreshes and invalidations of few keys from several threads; after an invalidation has
/// returned nothing older is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_after_an_invalidation_gives_what_was_there_before_it() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    let reader = |key| {
        let numbers = numbers.clone();
        tokio::spawn(async move {
            let mut newest = 0;
            while newest < 2_000 {
                let got = match newest % 7 {
                    0 => numbers.refresh(&key).await.unwrap(),
                    _ => numbers.get(&key).await.unwrap(),
                };
                newest = newest.max(got);
                tokio::task::yield_now().await;
            }
        })
    };
    let readers: Vec<_> = (0..4).map(|n| reader(n % 2)).collect();
    for version in 1..=2_000 {
        for key in 0..2 {
            bed.source.commit(key, version);
            match version % 10 {
                0 => numbers.clear(),
                _ => numbers.invalidate(&key),
            }
            let got = numbers.get(&key).await.unwrap();
            assert!(got >= version, "{got} after the invalidation of {version}");
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    eventually("nothing is left running", async || {
        bed.source.running() == 0
    })
    .await;
}

/// A value may do in its `Drop` what its owner may do, whichever call drops it.
#[tokio::test]
async fn a_value_may_use_the_memo_while_it_is_dropped() {
    use std::convert::Infallible;
    use std::sync::{Arc, OnceLock};
    use tidings::{Memo, Ttl};

    type Shared = Arc<OnceLock<Memo<u64, Arc<Curious>, Infallible>>>;
    struct Curious(Shared, u64);
    impl Drop for Curious {
        fn drop(&mut self) {
            if let Some(memo) = self.0.get() {
                let _ = memo.peek(&self.1);
                memo.invalidate(&(self.1 + 1000));
                let _ = memo.stats();
            }
        }
    }

    let bed = Bed::new().await;
    let shared = Shared::default();
    let of_memo = Arc::clone(&shared);
    let compute = move |key| {
        let value = Arc::new(Curious(Arc::clone(&of_memo), key));
        async move { Ok(value) }
    };
    let zero_for_three = |key: &u64, _: &_| match key {
        3 => Ttl::NONE,
        _ => Ttl::Forever,
    };
    let memo = bed.cache.memo("curious", compute).capacity(8);
    let memo = memo.ttl_with(zero_for_three).build().unwrap();
    let memo = shared.get_or_init(|| memo);
    for key in 0..100 {
        memo.get(&key).await.unwrap();
        memo.refresh(&key).await.unwrap();
    }
    memo.invalidate(&99);
    memo.clear();
}
