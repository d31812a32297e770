//! What is counted.

use crate::bed::{Answer, Bed, getter, refresher};
use std::time::Duration;
use tidings::{LocalEngine, Memo};

#[tokio::test]
async fn each_call_is_a_hit_or_a_miss() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    for _ in 0..10 {
        numbers.get(&1).await.unwrap();
    }
    numbers.get(&2).await.unwrap();
    let _ = numbers.peek(&1);
    bed.source.answer(3, Answer::Refusal(1));
    numbers.get(&3).await.unwrap_err();
    numbers.refresh(&1).await.unwrap();
    let stats = numbers.stats();
    assert_eq!((stats.hits, stats.misses, stats.joins), (9, 3, 0));
    assert_eq!((stats.loads, stats.load_errors, stats.entries), (4, 1, 2));
}

#[tokio::test]
async fn who_joins_is_counted() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.hold();
    let calls = [
        getter(&numbers, 1),
        getter(&numbers, 1),
        refresher(&numbers, 1),
    ];
    crate::bed::eventually("they join", async || numbers.stats().joins == 2).await;
    bed.source.let_go();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let stats = numbers.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (0, 2, 1));
}

#[tokio::test]
async fn what_was_dropped_or_panicked_is_no_load() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    bed.source.answer(1, Answer::Panic);
    numbers.get(&1).await.unwrap_err();
    bed.source.hold();
    let call = getter(&numbers, 2);
    bed.source.runs(1).await;
    call.abort();
    bed.source.runs(0).await;
    assert_eq!(numbers.stats().loads, 0);
}

#[tokio::test]
async fn the_time_of_computations_is_summed_up() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    assert_eq!(numbers.stats().load_time, Duration::ZERO);
    numbers.get(&1).await.unwrap();
    let once = numbers.stats().load_time;
    assert!(once > Duration::ZERO);
    numbers.get(&2).await.unwrap();
    assert!(numbers.stats().load_time > once);
}

#[tokio::test]
async fn evictions_are_told_by_the_default_engine_and_by_no_other() {
    let bed = Bed::new().await;
    let small = |engine| bed.builder().engine(engine).capacity(10).build().unwrap();
    let numbers = small(LocalEngine::Quick);
    for key in 0..100 {
        numbers.get(&key).await.unwrap();
        numbers.refresh(&key).await.unwrap(); // replacing is not evicting
    }
    let stats = numbers.stats();
    assert_eq!(stats.evictions, Some(100 - stats.entries));
    numbers.clear();
    assert_eq!(numbers.stats().evictions, stats.evictions);
    assert_eq!(small(LocalEngine::Moka).stats().evictions, None);
}

/// More threads than are told apart, one after the other and at the same time.
#[tokio::test]
async fn no_hit_is_lost_whoever_hits() {
    const HITS: u64 = 5_000;
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    numbers.get(&1).await.unwrap();
    let hit = |numbers: &Memo<_, _, _>| {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            for _ in 0..HITS {
                numbers.get(&1).await.unwrap();
            }
        });
    };
    for _ in 0..4 {
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| hit(&numbers));
            }
        });
    }
    assert_eq!(numbers.stats().hits, 4 * 20 * HITS);
}
