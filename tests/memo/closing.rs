//! After the cache was closed.

use crate::bed::{Bed, getter, on_board, soon};
use tidings::CacheError;

#[tokio::test]
async fn every_call_gives_closed_what_is_remembered_included() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    bed.cache.close().await;
    for key in [1, 2] {
        let got = numbers.get(&key).await;
        assert!(matches!(got, Err(CacheError::Closed)), "{got:?}");
        let got = numbers.refresh(&key).await;
        assert!(matches!(got, Err(CacheError::Closed)), "{got:?}");
        assert_eq!(numbers.peek(&key), None);
    }
    assert_eq!(bed.source.begun(), 1);
    numbers.invalidate(&1);
    numbers.clear();
}

#[tokio::test]
async fn computations_under_way_are_dropped_and_their_callers_freed() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let leader = getter(&numbers, 1);
    bed.source.runs(1).await;
    let others = on_board(&numbers, 1, 10).await;
    bed.cache.close().await;
    let error = soon("the leader", leader).await.unwrap().unwrap_err();
    assert!(matches!(error, CacheError::Closed), "{error:?}");
    for other in others {
        let error = soon("a waiter", other).await.unwrap_err();
        assert!(matches!(error, CacheError::Closed), "{error:?}");
    }
    assert_eq!((bed.source.running(), bed.source.begun()), (0, 1));
}

#[tokio::test]
async fn a_memo_works_when_every_other_handle_of_the_cache_is_gone() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    drop(bed.cache);
    assert_eq!(numbers.get(&1).await.unwrap(), 0);
    assert_eq!(numbers.refresh(&1).await.unwrap(), 0);
}
