//! What is remembered, and for how long.

use crate::bed::{Answer, Bed, Refused};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tidings::{CacheError, Clock, DEFAULT_TTL, LoadContext, Loaded, Loader, Ttl};

#[tokio::test]
async fn a_value_is_computed_once_and_remembered() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    bed.source.commit(2, 22);
    for _ in 0..3 {
        assert_eq!(numbers.get(&1).await.unwrap(), 11);
        assert_eq!(numbers.get(&2).await.unwrap(), 22);
    }
    assert_eq!(bed.source.begun(), 2);
}

#[tokio::test]
async fn an_expiry_is_inclusive() {
    let bed = Bed::new().await;
    let numbers = bed.builder().ttl(Duration::from_millis(100)).build();
    let numbers = numbers.unwrap();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.commit(1, 12);
    bed.pass(99);
    assert_eq!(
        (numbers.get(&1).await.unwrap(), numbers.peek(&1)),
        (11, Some(11))
    );
    bed.pass(1);
    assert_eq!(numbers.peek(&1), None);
    assert_eq!(numbers.get(&1).await.unwrap(), 12);
}

#[tokio::test]
async fn the_life_begins_when_the_computation_ends() {
    let bed = Bed::new().await;
    let numbers = bed.builder().ttl(Duration::from_millis(100)).build();
    let numbers = numbers.unwrap();
    bed.source.hold();
    let call = crate::bed::getter(&numbers, 1);
    bed.source.runs(1).await;
    bed.pass(1_000);
    bed.source.let_go();
    call.await.unwrap().unwrap();
    bed.pass(99);
    assert!(numbers.peek(&1).is_some());
}

#[tokio::test]
async fn values_live_for_the_default_ttl_unless_told_otherwise() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    bed.clock.advance(DEFAULT_TTL - Duration::from_millis(1));
    assert!(numbers.peek(&1).is_some());
    bed.pass(1);
    assert!(numbers.peek(&1).is_none());
}

#[tokio::test]
async fn the_ttl_may_depend_on_argument_and_value() {
    let bed = Bed::new().await;
    let by_both = |key: &u64, version: &u64| match (key, version) {
        (1, _) => Ttl::Forever,
        (_, 0) => Ttl::NONE,
        (_, version) => Ttl::For(Duration::from_millis(*version)),
    };
    let numbers = bed.builder().ttl_with(by_both).build().unwrap();
    bed.source.commit(3, 50);
    for key in 1..=3 {
        numbers.get(&key).await.unwrap();
    }
    assert_eq!(
        [1, 2, 3].map(|key| numbers.peek(&key)),
        [Some(0), None, Some(50)]
    );
    bed.pass(50);
    assert_eq!(numbers.peek(&3), None);
    bed.clock.advance(Duration::from_secs(1_000_000_000));
    assert_eq!(numbers.peek(&1), Some(0), "for ever");
}

#[tokio::test]
async fn a_ttl_of_zero_remembers_nothing_and_removes_what_was_there() {
    let bed = Bed::new().await;
    let odd_is_kept = |_: &u64, version: &u64| match version % 2 {
        1 => Ttl::Forever,
        _ => Ttl::NONE,
    };
    let numbers = bed.builder().ttl_with(odd_is_kept).build().unwrap();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.commit(1, 12);
    assert_eq!(numbers.refresh(&1).await.unwrap(), 12);
    assert_eq!(numbers.peek(&1), None);
    bed.source.commit(1, 14);
    assert_eq!(numbers.get(&1).await.unwrap(), 14);
    assert_eq!(numbers.get(&1).await.unwrap(), 14);
    assert_eq!(bed.source.begun(), 4);
}

#[tokio::test]
async fn a_life_below_a_millisecond_is_a_millisecond() {
    let bed = Bed::new().await;
    let numbers = bed.builder().ttl(Duration::from_nanos(1)).build().unwrap();
    numbers.get(&1).await.unwrap();
    assert!(numbers.peek(&1).is_some());
    bed.pass(1);
    assert!(numbers.peek(&1).is_none());
}

#[tokio::test]
async fn an_error_is_not_remembered() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.answer(1, Answer::Refusal(7));
    for _ in 0..2 {
        let error = numbers.get(&1).await.unwrap_err();
        assert_eq!(error.load_error(), Some(&Refused(7)));
    }
    assert_eq!(bed.source.begun(), 2);
    bed.source.commit(1, 11);
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
}

#[tokio::test]
async fn an_error_is_remembered_for_as_long_as_error_ttl_says() {
    let bed = Bed::new().await;
    let by_number = |error: &Refused| match error.0 {
        0 => None,
        millis => Some(Duration::from_millis(millis.into())),
    };
    let numbers = bed.builder().error_ttl(by_number).build().unwrap();
    bed.source.answer(1, Answer::Refusal(50));
    let first = numbers.get(&1).await.unwrap_err();
    bed.source.commit(1, 11);
    bed.pass(49);
    let (CacheError::Load(first), Err(CacheError::Load(second))) = (first, numbers.get(&1).await)
    else {
        panic!("both are the computation's error");
    };
    assert!(Arc::ptr_eq(&first, &second), "the same error");
    assert_eq!(numbers.peek(&1), None, "a peek gives values");
    bed.pass(1);
    assert_eq!(numbers.get(&1).await.unwrap(), 11);

    bed.source.answer(2, Answer::Refusal(0));
    numbers.get(&2).await.unwrap_err();
    bed.source.commit(2, 22);
    assert_eq!(numbers.get(&2).await.unwrap(), 22);
}

#[tokio::test]
async fn an_argument_needs_a_hash_and_a_value_a_clone_and_nothing_else() {
    #[derive(Clone, PartialEq, Eq, Hash)]
    enum Shape {
        Circle,
        Polygon(Vec<u8>),
    }
    #[derive(Clone)]
    struct NotSerializable(fn(u8) -> u8);

    let bed = Bed::new().await;
    let inner = |shape| async move {
        match shape {
            Shape::Circle => Ok::<_, Infallible>(NotSerializable(|n| n)),
            Shape::Polygon(_) => Ok(NotSerializable(|n| n + 1)),
        }
    };
    let shapes = bed.cache.memo("shape", inner).build().unwrap();
    assert_eq!((shapes.get(&Shape::Circle).await.unwrap().0)(1), 1);
    let polygon = Shape::Polygon(vec![1, 2, 3]);
    assert_eq!((shapes.get(&polygon).await.unwrap().0)(1), 2);
    assert!(shapes.peek(&Shape::Polygon(vec![1, 2, 3])).is_some());
    assert!(shapes.peek(&Shape::Polygon(vec![])).is_none());
}

#[tokio::test]
async fn two_memos_of_one_name_share_nothing() {
    let bed = Bed::new().await;
    let (one, other) = (bed.numbers(), bed.numbers());
    one.get(&1).await.unwrap();
    assert_eq!(other.peek(&1), None);
}

#[tokio::test]
async fn time_is_the_caches() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    Clock::default().advance(Duration::from_secs(1 << 30));
    assert!(numbers.peek(&1).is_some());
}

/// Says how long its outcome is to be kept.
struct Sayer;

impl Loader<u32> for Sayer {
    type Value = u32;
    type Error = Infallible;

    async fn load(&self, _: &u32) -> Result<u32, Infallible> {
        unreachable!("memos call `load_with`")
    }

    async fn load_with(&self, load: LoadContext<u32, u32>) -> Result<Loaded<u32>, Infallible> {
        assert!(load.previous().is_none());
        Ok(Loaded::new(*load.key()).ttl(Duration::from_millis(5)))
    }
}

#[tokio::test]
async fn what_a_loader_says_of_the_ttl_comes_first() {
    let bed = Bed::new().await;
    let memo = bed.cache.memo("said", Sayer).ttl(Ttl::Forever);
    let memo = memo.build().unwrap();
    assert_eq!(memo.get(&7).await.unwrap(), 7);
    bed.pass(4);
    assert_eq!(memo.peek(&7), Some(7));
    bed.pass(1);
    assert_eq!(memo.peek(&7), None);
}
