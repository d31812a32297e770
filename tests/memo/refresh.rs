//! Computing anew while the old value is served.

use crate::bed::{Answer, Bed, Refused, eventually, getter, refresher, soon};
use std::time::Duration;
use tidings::CacheError;

#[tokio::test]
async fn others_are_served_the_old_value_until_the_new_one_is_there() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.commit(1, 12);
    bed.source.hold();
    let refresh = refresher(&numbers, 1);
    bed.source.runs(1).await;
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
    bed.source.let_go();
    assert_eq!(refresh.await.unwrap().unwrap(), 12);
    assert_eq!(numbers.get(&1).await.unwrap(), 12);
    assert_eq!(bed.source.begun(), 2);
}

#[tokio::test]
async fn concurrent_refreshes_share_one_computation() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    bed.source.commit(1, 12);
    bed.source.hold();
    let refreshes: Vec<_> = (0..100).map(|_| refresher(&numbers, 1)).collect();
    eventually("all have come", async || numbers.stats().joins == 99).await;
    bed.source.let_go();
    for refresh in refreshes {
        assert_eq!(refresh.await.unwrap().unwrap(), 12);
    }
    assert_eq!(bed.source.begun(), 2);
}

#[tokio::test]
async fn a_refresh_and_the_calls_that_miss_share_one_computation() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let calls = [
        refresher(&numbers, 1),
        getter(&numbers, 1),
        refresher(&numbers, 1),
    ];
    eventually("all have come", async || numbers.stats().joins == 2).await;
    bed.source.let_go();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(bed.source.begun(), 1);
}

#[tokio::test]
async fn an_error_leaves_the_old_value_and_reaches_the_caller() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.answer(1, Answer::Refusal(5));
    let error = numbers.refresh(&1).await.unwrap_err();
    assert_eq!(error.load_error(), Some(&Refused(5)));
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
}

#[tokio::test]
async fn a_panic_leaves_the_old_value() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.answer(1, Answer::Panic);
    let error = soon("the refresh", numbers.refresh(&1)).await.unwrap_err();
    assert!(matches!(error, CacheError::LoadAborted));
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_leaves_the_old_value_and_the_new_one_may_still_come() {
    let bed = Bed::embedded().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.commit(1, 12);
    bed.source.hold();
    let error = numbers.refresh(&1).await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { .. }));
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
    bed.source.let_go();
    eventually("the new one is kept", async || numbers.peek(&1) == Some(12)).await;
}

#[tokio::test]
async fn an_error_with_a_ttl_replaces_the_value() {
    let bed = Bed::new().await;
    let ttl = |error: &Refused| (error.0 == 404).then_some(Duration::from_secs(1));
    let numbers = bed.builder().error_ttl(ttl).build().unwrap();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.answer(1, Answer::Refusal(404));
    numbers.refresh(&1).await.unwrap_err();
    let error = numbers.get(&1).await.unwrap_err();
    assert_eq!(error.load_error(), Some(&Refused(404)));
    assert_eq!(bed.source.begun(), 2);
}

#[tokio::test]
async fn a_refresh_that_every_caller_left_is_dropped_and_the_old_value_stays() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.commit(1, 11);
    numbers.get(&1).await.unwrap();
    bed.source.hold();
    let refresh = refresher(&numbers, 1);
    bed.source.runs(1).await;
    refresh.abort();
    bed.source.runs(0).await;
    assert_eq!(numbers.get(&1).await.unwrap(), 11);
}

#[tokio::test]
async fn a_refresh_renews_the_life() {
    let bed = Bed::new().await;
    let numbers = bed.builder().ttl(Duration::from_millis(100)).build();
    let numbers = numbers.unwrap();
    numbers.get(&1).await.unwrap();
    bed.pass(99);
    numbers.refresh(&1).await.unwrap();
    bed.pass(99);
    assert!(numbers.peek(&1).is_some());
}
