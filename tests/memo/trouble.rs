//! Functions of the user's that panic.

use crate::bed::{Bed, Refused, soon};
use std::time::Duration;
use tidings::{CacheError, MemoBuilder, Ttl};

type Builder = MemoBuilder<u64, u64, Refused>;

/// The first value of each is 0, and panics; the second is 1.
#[tokio::test]
async fn a_panic_of_an_option_is_as_one_of_the_computation() {
    let bed = Bed::new().await;
    let options: [fn(Builder) -> Builder; 2] = [
        |b| {
            b.ttl_with(|_, value| match value {
                0 => panic!("of the TTL"),
                _ => Ttl::Forever,
            })
        },
        |b| {
            b.weight_capacity(100).weigher(|_, value| match value {
                0 => panic!("of the weigher"),
                _ => 1,
            })
        },
    ];
    for with in options {
        bed.source.commit(1, 0);
        let numbers = with(bed.builder()).build().unwrap();
        let error = soon("the call", numbers.get(&1)).await.unwrap_err();
        assert!(matches!(error, CacheError::LoadAborted));
        bed.source.commit(1, 1);
        assert_eq!(soon("the next", numbers.get(&1)).await.unwrap(), 1);
        assert_eq!(numbers.peek(&1), Some(1));
    }
}

#[tokio::test]
async fn a_closure_that_panics_before_it_gives_a_future_frees_its_callers() {
    let bed = Bed::new().await;
    let compute = |key: u64| {
        assert!(key != 0, "no zero");
        async move { Ok::<_, Refused>(key) }
    };
    let memo = bed.cache.memo("picky", compute).build().unwrap();
    let error = soon("the call", memo.get(&0)).await.unwrap_err();
    assert!(matches!(error, CacheError::LoadAborted));
    assert_eq!(memo.get(&1).await.unwrap(), 1);
}

#[tokio::test]
async fn a_value_whose_clone_panics_frees_its_callers() {
    struct Uncloneable;
    impl Clone for Uncloneable {
        fn clone(&self) -> Self {
            panic!("it cannot be cloned")
        }
    }
    let bed = Bed::new().await;
    let memo = bed
        .cache
        .memo_once("one", || async { Ok::<_, Refused>(Uncloneable) });
    let memo = memo.ttl(Duration::from_secs(1)).build().unwrap();
    let error = soon("the call", memo.get()).await.map(drop).unwrap_err();
    assert!(matches!(error, CacheError::LoadAborted));
}
